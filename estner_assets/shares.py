"""Which notes a cell is given."""

import hashlib
from collections.abc import Iterable

from estner_assets.declarations import Cell, Declarations
from estner_assets.versions import notes_of


def share_of(declarations: Declarations, cell: Cell, note_ids: Iterable[str]) -> list[str]:
    """Return the cell's notes, by a seeded hash of their ids: a smaller share lies within a larger one."""
    seed = declarations.profile.annotation.seed
    ranked = sorted(note_ids, key=lambda note_id: hashlib.sha256(f"{seed}\0{note_id}".encode()).digest())
    return ranked[: notes_of(declarations, cell)]
