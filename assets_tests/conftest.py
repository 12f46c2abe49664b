"""Fixtures that several rooms share."""

from pathlib import Path

import pytest

from assets_tests.projects import write_project
from estner_assets.project import Project


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small project on disk."""
    return write_project(tmp_path / "project")


@pytest.fixture
def project(root: Path) -> Project:
    """The same, read and checked."""
    return Project.open(root, "demo")
