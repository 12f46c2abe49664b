"""Whatever an asset passes on, only vetted notes leave the machine."""

from pathlib import Path

import pytest

from assets_tests.defs.test_checks import note, publish
from assets_tests.projects import ANNOTATORS, edit_yaml, write_yaml
from estner_assets.defs import annotating
from estner_assets.defs.step import Step
from estner_assets.llm.wall import EgressRefused
from estner_assets.project import Project
from estner_assets.resources.lineage import Partition
from estner_assets.resources.records import text_hash
from estner_assets.settings import LlmAnnotator

SECRET = "Patsient NAME, isikukood eemaldatud, kasutab enalapriili."
VETTED = "Sünteetiline märge, kasutab enalapriili."


@pytest.fixture
def remote(root: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose LLM answers at a host that is not this machine, and does not exist."""
    monkeypatch.setenv("ESTNER_TEST_REMOTE_URL", "http://llm.invalid/v1")
    annotator = {
        "kind": "openai_compatible",
        "title": "A remote server",
        "model": "remote",
        "base_url_env": "ESTNER_TEST_REMOTE_URL",
        "prompts": ["zero_shot"],
        "retries": 0,
        "timeout_s": 5,
    }
    write_yaml(root / "declarations" / "annotators.yaml", ANNOTATORS | {"remote": annotator})
    edit_yaml(root / "declarations" / "profiles" / "demo.yaml", "annotation", "annotators", value=["remote"])
    project = Project.open(root, "demo")
    publish(project, Partition("records"), [note(SECRET, "r1", "record_id", "p1")])
    vetted = {
        name: value for name, value in note(VETTED, "n1", "note_id", "").items() if name not in ("patient_id", "date")
    }
    publish(project, Partition("vetted_notes"), [vetted])
    for partition, row in (
        (Partition("prompts", prompt="zero_shot"), {"language": "en", "mode": "json", "body": "x"}),
        (Partition("annotators", annotator="remote"), {"kind": "openai_compatible", "model": "remote"}),
    ):
        publish(project, partition, [{"version": "v", "title": "t", "declaration": "{}", **row}])
    return project


@pytest.mark.parametrize(
    ("note_id", "text"),
    [("r1", SECRET), ("n1", SECRET), ("n1", VETTED + " "), ("n2", VETTED)],
)
def test_a_text_that_is_not_vetted_is_refused(remote: Project, note_id: str, text: str) -> None:
    """A record, a record under a vetted note's id, a changed vetted note and an unknown id never leave."""
    step = Step(remote, Partition("annotations", "remote", "zero_shot"), lambda message: None)
    annotator = remote.declarations.annotators["remote"]
    assert isinstance(annotator, LlmAnnotator)
    notes = [{"note_id": note_id, "text": text, "text_sha256": text_hash(text)}]
    with pytest.raises(EgressRefused):
        annotating._llm_rows(step, annotator, notes, "vetted_notes")
