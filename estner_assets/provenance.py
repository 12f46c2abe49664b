"""Where an asset partition came from: the chain of makings and settings behind it, as the warehouse tells it."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from estner_assets.resources.lineage import Partition
from estner_assets.resources.warehouse import Warehouse


class NeverMadeError(LookupError):
    """There is no chain to show; the message says why, and which partitions of the asset there are."""


@dataclass
class Making:
    """One making in the chain: its settings by name and version with their content, and what it was made from.

    Where it is not ``is_current``, the partition was made again since, and came out as it had been.
    """

    materialization_id: str
    partition: Partition
    version: str
    code_version: str
    run_id: str
    materialized_at: datetime
    is_current: bool
    settings: list[tuple[str, str, Any]] = field(default_factory=list)
    sources: list["Making"] = field(default_factory=list)


def provenance(warehouse: Warehouse, partition: Partition) -> Making:
    """Return the current making of a partition with everything behind it.

    Makings that several others used are one object. Raises ``NeverMadeError``.
    """
    with warehouse.reading():
        if not warehouse.is_of_this_version():
            raise NeverMadeError("the database was written by another version; run `estner build` once, then ask again")
        rows = warehouse.query(
            "select * from provenance_of(?, ?, ?) order by kind, name, annotator, prompt",
            [partition.asset, partition.annotator, partition.prompt],
        )
        if not rows:
            raise NeverMadeError(_never_made(warehouse, partition))
        edges = warehouse.query(
            "select materialization_id, source_id from materialization_inputs "
            "where source_id is not null and list_contains(?, materialization_id) order by name, annotator, prompt",
            [[row["materialization_id"] for row in rows if row["kind"] == "asset"]],
        )
    makings = {row["materialization_id"]: _making(row) for row in rows if row["kind"] == "asset"}
    for row in rows:
        if row["kind"] == "setting":
            content = json.loads(row["content"]) if row["content"] else None
            makings[row["materialization_id"]].settings.append((row["name"], row["version"], content))
    for edge in edges:
        makings[edge["materialization_id"]].sources.append(makings[edge["source_id"]])
    root = next(row["materialization_id"] for row in rows if row["kind"] == "asset" and row["depth"] == 0)
    return makings[root]


def _making(row: dict[str, Any]) -> Making:
    partition = Partition(row["name"], row["annotator"], row["prompt"])
    return Making(
        row["materialization_id"],
        partition,
        row["version"],
        row["code_version"],
        row["run_id"],
        row["materialized_at"],
        row["is_current"],
    )


def _never_made(warehouse: Warehouse, partition: Partition) -> str:
    made = warehouse.query(
        "select distinct asset, annotator, prompt from materializations where is_current and asset = ? order by all",
        [partition.asset],
    )
    others = ", ".join(str(Partition(**row)) for row in made)
    return f"{partition} was never made; " + (f"there are {others}" if made else "run `estner build`")


def as_json(making: Making) -> dict[str, Any]:
    """Return the chain as nested JSON; a making that stands in it already is only named again."""
    return _as_json(making, set())


def _as_json(making: Making, seen: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"asset": str(making.partition), "data_version": making.version}
    if making.materialization_id in seen:
        return found
    seen.add(making.materialization_id)
    settings = [{"name": name, "version": version, "content": content} for name, version, content in making.settings]
    return found | {
        "code_version": making.code_version,
        "run_id": making.run_id,
        "materialized_at": making.materialized_at.isoformat(),
        "is_current": making.is_current,
        "settings": settings,
        "made_from": [_as_json(source, seen) for source in making.sources],
    }
