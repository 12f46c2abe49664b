"""Table declarations, one YAML file a table: grain, columns, and the checks that its rows must pass."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from estner_assets.settings import Declaration

PARTITION_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "prompt": ("prompt",),
    "annotator": ("annotator",),
    "cell": ("annotator", "prompt"),
}
PROVENANCE_COLUMNS = ("run_id", "data_version")

Row = dict[str, Any]


class Column(Declaration):
    """A column: a DuckDB type, what it holds, and what it may hold.

    A ``volatile`` column (a duration, say) does not count when two results are compared.
    """

    type: str
    description: str
    nullable: bool = False
    volatile: bool = False
    accepted: list[str] | None = None
    references: Annotated[str, Field(pattern=r"^[a-z_]+\.[a-z_]+$")] | None = None


class Table(Declaration):
    """A table and the asset of the same name; ``key`` is unique within a partition."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z_]*$")]
    grain: str
    description: str
    group: str
    kinds: list[str]
    partitions: Literal["none", "prompt", "annotator", "cell"] = "none"
    may_be_empty: bool = False
    keeps_history: bool = False
    """Rows of earlier makings stay readable in ``past_rows``."""
    key: Annotated[list[str], Field(min_length=1)]
    columns: Annotated[dict[str, Column], Field(min_length=1)]

    @property
    def partition_columns(self) -> tuple[str, ...]:
        return PARTITION_COLUMNS[self.partitions]

    def data_version(self, rows: Iterable[Row]) -> str:
        """Return a hash of the rows' lasting columns that does not depend on the rows' order."""
        lasting = [name for name, column in self.columns.items() if not column.volatile]
        encoded = sorted(json.dumps([row[name] for name in lasting], ensure_ascii=False, default=str) for row in rows)
        return hashlib.sha256("\n".join(encoded).encode()).hexdigest()[:16]

    def check_rows(self, rows: Sequence[Row]) -> None:
        """Raise ``ValueError`` for a row that has other columns than the declaration, or an empty table."""
        expected = set(self.columns)
        for row in rows:
            if set(row) != expected:
                wrong = sorted(set(row) ^ expected)
                raise ValueError(f"table {self.name}: a row and the declaration differ in {', '.join(wrong)}")
        if not rows and not self.may_be_empty:
            raise ValueError(f"table {self.name} would be empty; look at the asset's inputs and their checks")


def read_table(path: Path) -> Table:
    """Read one table declaration; the file's name is the table's."""
    return Table.model_validate({"name": path.stem, **yaml.safe_load(path.read_text(encoding="utf-8"))})
