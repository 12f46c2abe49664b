"""A project on disk: its declarations, its warehouse, its models and its stored answers."""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from estner_assets.declarations import DEFAULT_PROFILE, DeclarationError, Declarations, load
from estner_assets.resources.models import ModelStore
from estner_assets.resources.warehouse import Warehouse

PATIENCE_S = 60.0
"""How long a build waits for somebody who edits a declaration."""
_POLL_S = 0.2


@dataclass(frozen=True)
class Project:
    """Where everything of one study lies; nothing is opened before it is used."""

    declarations: Declarations

    @classmethod
    def open(cls, root: Path | None = None, profile: str | None = None) -> "Project":
        """Read and check the project's declarations; raise ``DeclarationError`` with all mistakes."""
        return cls(load(root, profile))

    def reopened(self, patience_s: float = 0.0) -> "Project":
        """Return the project with its declarations as they are now; the same ones where no file moved.

        A file that is being edited may be broken for a moment: it is looked at again for ``patience_s`` seconds
        before ``DeclarationError`` is raised.
        """
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return Project.open(self.root, self.declarations.profile.key)
            except DeclarationError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)

    @property
    def root(self) -> Path:
        return self.declarations.root

    @cached_property
    def warehouse(self) -> Warehouse:
        """The profile's own database; the demo's is ``estner.duckdb``."""
        key = self.declarations.profile.key
        name = "estner" if key == DEFAULT_PROFILE else f"estner-{key}"
        return Warehouse(self.root / "data" / "warehouse" / f"{name}.duckdb", self.declarations.tables)

    @cached_property
    def models(self) -> ModelStore:
        return ModelStore(self.root / "data" / "models")

    @property
    def responses_path(self) -> Path:
        return self.root / "data" / "responses" / "responses.sqlite"

    @property
    def spending_path(self) -> Path:
        """The ledger of what LLMs cost; one for all profiles, as a day's limit is."""
        return self.responses_path.with_name("spending.sqlite")

    @property
    def reports_folder(self) -> Path:
        return self.root / "data" / "reports" / self._own_folder

    @property
    def _own_folder(self) -> str:
        key = self.declarations.profile.key
        return "" if key == DEFAULT_PROFILE else key

    @property
    def dagster_home(self) -> Path:
        """The profile's own instance, so that no run of one study passes for another's."""
        return self.root / "dagster_home" / self._own_folder

    def shown(self, path: Path) -> str:
        """Return a path as people should read it, relative to the project."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)
