"""Fixtures that several rooms share."""

import os

# Before torch is loaded: tests run in parallel, one core each.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

from pathlib import Path

import pytest

from assets_tests.builds import built, copied, server, undisturbed
from assets_tests.projects import write_project
from estner_assets.project import Project

__all__ = ["built", "copied", "project", "root", "server", "undisturbed"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small project on disk."""
    return write_project(tmp_path / "project")


@pytest.fixture
def project(root: Path) -> Project:
    """The same, read and checked."""
    return Project.open(root, "demo")
