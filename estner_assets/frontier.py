"""Which steps of a plan can be made now, which need not be, and which cannot."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from estner_assets.planner import Plan, Step
from estner_assets.resources.lineage import Partition


@dataclass
class Frontier:
    """The steps of a plan, sorted by what a build does with them next.

    ``held_back`` says for what a step waits in vain. What is ``settled`` is up to date after all.
    """

    due: list[Step] = field(default_factory=list)
    waiting: list[Step] = field(default_factory=list)
    settled: set[Partition] = field(default_factory=set)
    held_back: dict[Partition, str] = field(default_factory=dict)


def frontier(
    plan: Plan,
    selected: Collection[Partition] | None,
    failed: Mapping[Partition, str],
    is_fan_in: Callable[[Partition, Partition], bool],
) -> Frontier:
    """Sort the steps of a plan; ``selected`` is None where everything is.

    A step waits for all that it is made from. A fan-in is made without cells that failed or are not selected, if
    anything else of it has changed; if nothing has, it is held back, and what is made from it is not.
    """
    found = Frontier()
    given_up: dict[Partition, str] = {partition: "failed" for partition in failed}
    incomplete: set[Partition] = set()
    for step in plan.steps:
        partition = step.partition
        waits = [source for source in step.waits_for if source not in found.settled]
        lost = [source for source in waits if source in given_up]
        needed = [source for source in lost if not is_fan_in(partition, source)]
        open_waits = [source for source in waits if source not in given_up and source not in incomplete]
        if partition in given_up:
            continue
        if not (waits or step.reasons):
            found.settled.add(partition)
        elif selected is not None and partition not in selected:
            given_up[partition] = "is not selected; add --upstream"
        elif needed:
            found.held_back[partition] = f"it is made from {needed[0]}, which {given_up[needed[0]]}"
            given_up[partition] = "is held back"
        elif open_waits:
            found.waiting.append(step)
        elif step.reasons:
            found.due.append(step)
        else:
            cause = f"{lost[0]}, which {given_up[lost[0]]}" if lost else f"{waits[0]}, which is held back"
            found.held_back[partition] = f"it is made from {cause}"
            incomplete.add(partition)
    return found
