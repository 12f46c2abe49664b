"""What is out of date, and why: the state of the warehouse against the declarations.

Level-triggered: nothing is remembered between calls, so no edit can be missed, and an upstream asset that came
out the same as before makes nothing downstream stale.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from estner_assets.declarations import Cell, Declarations
from estner_assets.graph import NODES, Node
from estner_assets.llm.configuration import missing_configuration
from estner_assets.reasons import Difference, differences, reasons
from estner_assets.resources.lineage import Input, Materialization, Partition, SettingVersion
from estner_assets.resources.warehouse import Warehouse
from estner_assets.settings import NO_PROMPT, ConsensusAnnotator, LlmAnnotator, ReferenceAnnotator
from estner_assets.versions import KEYED_SETTINGS, content_version, setting

State = Mapping[Partition, Materialization]
_SHOWN_REASONS = 3


@dataclass(frozen=True, slots=True)
class Step:
    """An asset partition that is to be made, why, and which other steps it must wait for.

    Without reasons of its own it is here only because of those other steps, and may turn out to be up to date.
    """

    partition: Partition
    state: Literal["missing", "stale"]
    reasons: tuple[str, ...]
    waits_for: tuple[Partition, ...]

    @property
    def explanation(self) -> str:
        """Return the first reasons as one line, and how many more there are."""
        texts = (*self.reasons, *(f"upstream {source}" for source in self.waits_for))
        more = f"; and {len(texts) - _SHOWN_REASONS} more" if len(texts) > _SHOWN_REASONS else ""
        return "; ".join(texts[:_SHOWN_REASONS]) + more


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build would make, inputs first, and the cells that cannot be made here."""

    steps: tuple[Step, ...]
    not_configured: Mapping[Cell, str]
    retired: tuple[Partition, ...] = ()
    """Partitions that were made once and are declared no longer; their rows and their history stay."""


class Planner:
    """Compares declarations with what was made; holds the versions of settings for one look."""

    def __init__(self, declarations: Declarations) -> None:
        self.declarations = declarations
        self._settings: dict[tuple[str, str | Cell | None], SettingVersion] = {}
        self.not_configured = missing_configurations(declarations)

    # --- what there is ------------------------------------------------------------------------------

    def partitions(self, node: Node) -> list[Partition]:
        """Return the partitions of a node that should exist under this profile and environment."""
        return [one for one in self._declared(node) if Cell(one.annotator, one.prompt) not in self.not_configured]

    def declared_partitions(self) -> set[Partition]:
        """Return all partitions that the declarations know, whether they can be made here or not."""
        return {partition for node in NODES.values() for partition in self._declared(node)}

    def _declared(self, node: Node) -> list[Partition]:
        match node.partitions:
            case "none":
                return [Partition(node.name)]
            case "prompt":
                used = {cell.prompt for cell in self.declarations.cells} | set(self.declarations.prompts)
                return [Partition(node.name, prompt=key) for key in sorted(used | {NO_PROMPT})]
            case "annotator":
                return [Partition(node.name, annotator=key) for key in self.declarations.annotators]
            case "cell":
                cells = (cell for cell in self.declarations.cells if self._is_made(node.name, cell))
                return [Partition(node.name, cell.annotator, cell.prompt) for cell in cells]

    def _is_made(self, asset: str, cell: Cell) -> bool:
        """Whether a cell has a partition of this asset: it is annotated, or agreed on from others' annotations."""
        is_consensus = isinstance(self.declarations.annotators[cell.annotator], ConsensusAnnotator)
        return asset not in ("annotations", "consensus") or is_consensus == (asset == "consensus")

    def inputs(self, partition: Partition) -> Iterator[Partition]:
        """Yield the asset partitions that a partition is made from."""
        node = NODES[partition.asset]
        for name in node.inputs:
            yield from self._inputs_of(partition, NODES[name])

    def _inputs_of(self, partition: Partition, node: Node) -> Iterator[Partition]:
        if partition.asset == "annotations" and node.name in ("vetted_notes", "records"):
            # Reference spans belong to records; every other annotator may read vetted notes alone.
            reads_records = isinstance(self.declarations.annotators[partition.annotator], ReferenceAnnotator)
            if (node.name == "records") != reads_records:
                return
        match node.partitions:
            case "none":
                yield Partition(node.name)
            case "prompt":
                yield Partition(node.name, prompt=partition.prompt)
            case "annotator":
                yield Partition(node.name, annotator=partition.annotator)
            case "cell" if partition.asset == "consensus":
                consensus = self.declarations.annotators[partition.annotator]
                assert isinstance(consensus, ConsensusAnnotator)
                yield from (one for one in self.partitions(node) if one.annotator in consensus.members)
            case "cell" if NODES[partition.asset].partitions == "cell":
                if self._is_made(node.name, Cell(partition.annotator, partition.prompt)):
                    yield Partition(node.name, partition.annotator, partition.prompt)
            case "cell":
                yield from self.partitions(node)

    def is_fan_in(self, partition: Partition, source: Partition) -> bool:
        """Whether a partition gathers many cells of an input, of which some may still be missing."""
        gathers = NODES[partition.asset].partitions == "none" or partition.asset == "consensus"
        return gathers and NODES[source.asset].partitions == "cell"

    def setting_versions(self, partition: Partition) -> list[SettingVersion]:
        """Return the settings that reach a partition."""
        key = _key_of(partition)
        names = NODES[partition.asset].settings
        return [self._setting(name, key if name in KEYED_SETTINGS else None) for name in names]

    def _setting(self, name: str, key: str | Cell | None) -> SettingVersion:
        if (name, key) not in self._settings:
            content = self._cells() if name == "cells" else setting(self.declarations, name, key)
            annotator, prompt = _owner(name, key)
            encoded = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
            self._settings[name, key] = SettingVersion(name, annotator, prompt, content_version(content), encoded)
        return self._settings[name, key]

    def _cells(self) -> dict[str, str]:
        """Return what the leaderboard says of each cell before it has a score."""
        return {str(cell): self.not_configured.get(cell, "configured") for cell in self.declarations.cells}

    def expected_inputs(self, partition: Partition, state: State) -> tuple[list[Input], list[Partition]]:
        """Return the current versions of everything that a partition is made from, and what is missing."""
        found: list[Input] = []
        missing: list[Partition] = []
        for source in self.inputs(partition):
            if made := state.get(source):
                found.append(Input("asset", source.asset, source.annotator, source.prompt, made.data_version))
            elif not self.is_fan_in(partition, source):
                missing.append(source)
        found += [
            Input("setting", one.name, one.annotator, one.prompt, one.version)
            for one in self.setting_versions(partition)
        ]
        return sorted(found), missing

    # --- what is out of date ------------------------------------------------------------------------

    def plan(self, warehouse: Warehouse, forced: Collection[Partition] = ()) -> Plan:
        """Return everything that is missing or stale, and what is ``forced`` to be made anew."""
        with warehouse.reading():
            made = warehouse.current()
            state = self._usable(made, warehouse)
            pending: dict[Partition, Step] = {}
            changed: dict[Partition, list[Difference]] = {}
            for node in NODES.values():
                for partition in self.partitions(node):
                    step = self._step(partition, state, pending, changed, partition in forced)
                    if step and step.state == "missing" and partition in made:
                        step = replace(step, reasons=("its files are gone",))
                    if step:
                        pending[partition] = step
            steps = self._explained(pending, changed, warehouse)
            declared = self.declared_partitions()
            retired = tuple(sorted(partition for partition in made if partition not in declared))
            return Plan(tuple(steps), self.not_configured, retired)

    def _usable(self, made: State, warehouse: Warehouse) -> dict[Partition, Materialization]:
        """Leave out models without their files: their row is of no use."""
        gone = {
            partition
            for partition, folder in warehouse.model_folders().items()
            if not self.declarations.path(folder).is_dir()
        }
        return {partition: one for partition, one in made.items() if partition not in gone}

    def _step(
        self,
        partition: Partition,
        state: State,
        pending: Mapping[Partition, Step],
        changed: dict[Partition, list[Difference]],
        is_forced: bool,
    ) -> Step | None:
        waits = tuple(source for source in self.inputs(partition) if source in pending)
        made = state.get(partition)
        if made is None:
            return Step(partition, "missing", ("never made",), waits)
        found = ["asked for"] if is_forced else []
        code_version = NODES[partition.asset].code_version
        if made.code_version != code_version:
            found.append(f"code {made.code_version} → {code_version}")
        expected, _ = self.expected_inputs(partition, state)
        different = differences(made.inputs, expected)
        if different:
            changed[partition] = different
        if not (found or different or waits):
            return None
        return Step(partition, "stale", tuple(found), waits)

    def _explained(
        self,
        pending: Mapping[Partition, Step],
        changed: Mapping[Partition, list[Difference]],
        warehouse: Warehouse,
    ) -> Iterator[Step]:
        """Add to each step what changed in its inputs; old settings are looked up once for all steps."""
        old = {was.version for pairs in changed.values() for was, _ in pairs if was and was.kind == "setting"}
        contents = warehouse.setting_contents(sorted(old)) if old else {}
        contents |= {one.version: one.content for one in self._settings.values()}
        for partition, step in pending.items():
            causes = tuple(reason for pair in changed.get(partition, ()) for reason in reasons(pair, contents))
            yield Step(partition, step.state, causes + step.reasons, step.waits_for)


def missing_configurations(declarations: Declarations) -> dict[Cell, str]:
    """Return the profile's cells that cannot be made here, with what is missing."""
    missing: dict[Cell, str] = {}
    for key in declarations.profile.annotation.annotators:
        annotator = declarations.annotators[key]
        text = missing_configuration(annotator) if isinstance(annotator, LlmAnnotator) else None
        if text:
            missing |= {cell: text for cell in declarations.cells if cell.annotator == key}
    for cell in declarations.cells:
        annotator = declarations.annotators[cell.annotator]
        if isinstance(annotator, ConsensusAnnotator):
            voters = [one for one in declarations.cells if one.annotator in annotator.members and one not in missing]
            if len(voters) < annotator.least_voters:
                missing[cell] = (
                    f"{annotator.method} needs {annotator.least_voters} cells, {len(voters)} of "
                    f"{', '.join(annotator.members)} can be made here"
                )
    return missing


def _key_of(partition: Partition) -> str | Cell | None:
    match NODES[partition.asset].partitions:
        case "prompt":
            return partition.prompt
        case "annotator":
            return partition.annotator
        case "cell":
            return Cell(partition.annotator, partition.prompt)
        case _:
            return None


def _owner(setting_name: str, key: str | Cell | None) -> tuple[str, str]:
    """Return the annotator and the prompt that a setting belongs to, empty where it belongs to all."""
    match key:
        case Cell(annotator=annotator, prompt=prompt):
            return annotator, prompt
        case str():
            return (key, "") if setting_name == "annotator" else ("", key)
        case None:
            return "", ""
