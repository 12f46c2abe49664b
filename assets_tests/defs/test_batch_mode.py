"""A cell that asks by batches: what is not answered yet fails it for now, and the next build collects."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from assets_tests.builds import URL, edit_prompt, rebuild, rows
from assets_tests.llm.fake_batches import FakeBatches, fake_batches
from assets_tests.llm.fake_openai import Question, Reply, completion
from assets_tests.projects import DRUGS, edit_yaml
from estner_assets.builder import Options
from estner_assets.resources.lineage import Partition
from estner_assets.selection import Selection


def answer(question: Question) -> Reply:
    asked = question["messages"][-1]["content"]
    return completion(json.dumps({"DRUG": [drug for drug in DRUGS if drug in asked], "PROCEDURE": []}))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBatches]:
    """A server that has finished a batch when it is asked about it for the third time."""
    with fake_batches(FakeBatches(answer, polls=3)) as fake:
        monkeypatch.setenv(URL, fake.url)
        yield fake


def test_a_batch_survives_the_end_of_a_build(copied: Path, batches: FakeBatches) -> None:
    """The first build submits and stops waiting; the next one collects. No question is submitted twice."""
    annotators = copied / "declarations" / "annotators.yaml"
    for name, value in (("mode", "batch"), ("batch_poll_s", 0.05), ("batch_max_wait_s", 0)):
        edit_yaml(annotators, "stub", name, value=value)
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    wanted = Options(selection=Selection(prompt="second"))
    outcome = rebuild(copied, wanted)
    assert "30 of 30 notes of stub/second got no answer" in outcome.failed[Partition("annotations", "stub", "second")]
    edit_yaml(annotators, "stub", "batch_max_wait_s", value=30)
    assert rebuild(copied, wanted).failed == {}
    cell = rows(copied, "select notes, annotated from cells where annotator = 'stub' and prompt = 'second'")
    assert cell == [{"notes": 30, "annotated": 30}]
    assert sum(call == "POST /batches" for call in batches.calls) == 1
