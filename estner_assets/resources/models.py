"""The model store: folders that are named by the content of their files and never change."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ModelCorruptError(RuntimeError):
    """A stored model whose files are not what its name says."""


class ModelStore:
    """Keeps models under ``root/<model_id>``; a model is either there whole or not at all."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """Give an empty folder to write a model into; it is gone afterwards, ``keep`` what should stay."""
        self._sweep()
        folder = self.root / f".incoming-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, folder: Path, kind: str) -> str:
        """Move a written model to its place and return its id, ``<kind>-<hash of its files>``."""
        model_id = f"{kind}-{content_hash(folder)}"
        place = self.root / model_id
        try:
            folder.rename(place)
        except OSError:
            if not place.is_dir():  # otherwise the same model is there already
                raise
        return model_id

    def folder(self, model_id: str) -> Path:
        """Return a model's folder after checking its files; raise ``ModelCorruptError`` where they differ."""
        place = self.root / model_id
        if not place.is_dir():
            raise ModelCorruptError(f"{place} is gone; materialise the asset that made it again")
        if content_hash(place) != model_id.rpartition("-")[2]:
            raise ModelCorruptError(
                f"the files in {place} changed after they were written; delete that folder "
                "and materialise the asset that made it again"
            )
        return place

    def _sweep(self) -> None:
        """Remove what killed processes left behind."""
        for folder in self.root.glob(".incoming-*"):
            if not Path("/proc", folder.name.split("-")[1]).exists():
                shutil.rmtree(folder, ignore_errors=True)


def content_hash(folder: Path) -> str:
    """Return a hash of the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder)}\0{content}\n".encode())
    return digest.hexdigest()[:16]
