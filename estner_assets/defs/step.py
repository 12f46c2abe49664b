"""A step: one making of one asset partition, from versions that it notes to rows that it publishes."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import dagster as dg

from estner_assets.declarations import Cell, Declarations
from estner_assets.graph import NODES
from estner_assets.planner import Planner
from estner_assets.project import Project
from estner_assets.resources import warehouse as wh
from estner_assets.resources.lineage import Input, Materialization, Partition
from estner_assets.settings import Profile
from estner_assets.tables import Row

Metadata = Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """What an asset function returns: its rows, and what the UI shows beside them."""

    rows: list[Row]
    metadata: Metadata = field(default_factory=dict)


class Step:
    """One making of one asset partition: gives inputs to the asset function and remembers their versions."""

    def __init__(self, project: Project, partition: Partition, log: Callable[[str], None], build_id: str = "") -> None:
        """``build_id`` says which build, or which single run, pays for what is asked."""
        self.project = project
        self.partition = partition
        self.progress = log
        self.build_id = build_id
        self.started = time.monotonic()
        self.planner = Planner(project.declarations)
        self.inputs = self._current_inputs()

    @property
    def declarations(self) -> Declarations:
        return self.project.declarations

    @property
    def profile(self) -> Profile:
        return self.project.declarations.profile

    @cached_property
    def cell(self) -> Cell:
        return Cell(self.partition.annotator, self.partition.prompt)

    def _current_inputs(self) -> tuple[Input, ...]:
        inputs, missing = self.planner.expected_inputs(self.partition, self.project.warehouse.current())
        if missing:
            names = ", ".join(map(str, missing))
            raise dg.Failure(
                f"{self.partition} is made from {names}, not there yet; materialise that first or run `estner build`",
                allow_retries=False,
            )
        return tuple(inputs)

    def rows(self, asset: str, sql: str = "") -> list[Row]:
        """Return an input's rows: exactly those of the partitions and versions that this step is made from.

        ``sql`` may follow ``select * from <asset> where …``. Raises where the input has changed since the
        step began, so that no row is ever credited to another version.
        """
        sources = [one for one in self.inputs if one.kind == "asset" and one.name == asset]
        if asset not in NODES[self.partition.asset].inputs:
            raise LookupError(f"{asset} is no declared input of {self.partition.asset}; add it to the graph")
        columns = (*self.declarations.tables[asset].partition_columns, "data_version")
        wanted = [".".join((*(getattr(one, name) for name in columns[:-1]), one.version)) for one in sources]
        with self.project.warehouse.reading() as connection:
            self._check_unchanged(connection, asset, sources)
            where = f"list_contains(?, concat_ws('.', {', '.join(columns)}))"
            return wh.fetch(connection, f"select * from {asset} where {where} {sql}", [wanted])

    def _check_unchanged(self, connection: Any, asset: str, sources: list[Input]) -> None:
        now = connection.execute(
            "select annotator, prompt, data_version from materializations where is_current and asset = ?", [asset]
        ).fetchall()
        current = {(annotator, prompt): version for annotator, prompt, version in now}
        for one in sources:
            if current.get((one.annotator, one.prompt)) != one.version:
                source = Partition(asset, one.annotator, one.prompt)
                raise dg.Failure(f"{source} changed while {self.partition} was being made; run it again")

    def publish(self, made: Made, run_id: str) -> str:
        """Write rows and lineage together; return the data version."""
        table = self.declarations.tables[self.partition.asset]
        table.check_rows(made.rows)
        version = table.data_version(made.rows)
        materialization = Materialization(
            self.partition,
            version,
            NODES[self.partition.asset].code_version,
            run_id,
            wh.now(),
            time.monotonic() - self.started,
            self.inputs,
        )
        settings = self.planner.setting_versions(self.partition)
        self.project.warehouse.publish(materialization, made.rows, settings)
        return version
