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

    A step waits for all that it is made from. A fan-in does without cells that failed or are not selected, and
    when it is up to date but for those, it is settled.
    """
    found = Frontier()
    given_up: dict[Partition, str] = {partition: "failed" for partition in failed}
    for step in plan.steps:
        partition = step.partition
        waits = [source for source in step.waits_for if source not in found.settled]
        lost = [source for source in waits if source in given_up and not is_fan_in(partition, source)]
        waits = [source for source in waits if source not in given_up]
        if selected is not None and partition not in selected:
            is_current = not (step.reasons or (step.waits_for and (waits or lost)))
            if is_current:
                found.settled.add(partition)
            else:
                given_up[partition] = "is not selected; add --upstream"
        elif partition in given_up:
            continue
        elif lost:
            given_up[partition] = "is held back"
            found.held_back[partition] = f"it is made from {lost[0]}, which {given_up[lost[0]]}"
        elif waits:
            found.waiting.append(step)
        elif step.reasons:
            found.due.append(step)
        else:
            found.settled.add(partition)
    return found
