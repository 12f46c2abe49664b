"""A cell whose server fails in every way that servers do: it completes, its ledger balances, its cost is exact."""

import json
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import dagster as dg
import pytest

from assets_tests.builds import edit_prompt, rebuild, rows
from assets_tests.llm.fake_openai import FakeOpenAI, Question, Reply, completion, error
from assets_tests.projects import DRUGS, edit_yaml, write_yaml
from estner_assets.builder import Options
from estner_assets.defs.checks import ledger_balances
from estner_assets.defs.table_asset import ProjectResource
from estner_assets.ner.parsing import AnswerStatus
from estner_assets.project import Project
from estner_assets.resources.lineage import Partition
from estner_assets.retrying import failed_notes, set_answers_aside

PRICE = {"input_per_million": "2", "output_per_million": "8", "currency": "EUR", "as_of": "2026-01-01"}
CELL = Partition("annotations", "stub", "second")


def found(question: Question) -> str:
    asked = question["messages"][-1]["content"]
    return json.dumps({"DRUG": [drug for drug in DRUGS if drug in asked], "PROCEDURE": []})


TRANSIENT: list[Callable[[Question], Reply]] = [
    lambda question: error(429, "slow down", retry_after="0"),
    lambda question: error(500, "oops"),
    lambda question: error(503, "overloaded"),
    lambda question: Reply("", 200),
    lambda question: Reply(completion(found(question)).body, cut_at=20),
    lambda question: Reply(completion(found(question)).body, cut_at=0),
    lambda question: Reply(completion(found(question)).body, delay_s=3),
]
LASTING: list[Callable[[Question], Reply]] = [
    lambda question: Reply(completion(found(question)).body.replace("fake-1", "another-model")),
    lambda question: completion("I see no way to do that."),
    lambda question: completion(None, refusal="I cannot help with that."),
    lambda question: completion(found(question)[:9], finish_reason="length"),
    lambda question: completion("", finish_reason="content_filter"),
    lambda question: completion(json.dumps({"DRUG": ["aspiriin", "aspiriin", "kuukivi"], "PROCEDURE": ["EKG"]})),
    lambda question: completion(
        json.dumps({"PROCEDURE": [], "DRUG": list(reversed(json.loads(found(question))["DRUG"]))})
    ),
]


@pytest.fixture
def faulty(copied: Path, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose LLM fails three times in ten, in turn in each way; its prices are declared."""
    rng = random.Random(1)
    transient, lasting = list(TRANSIENT), list(LASTING)

    def answer(question: Question) -> Reply:
        if rng.random() >= 0.3:
            return completion(found(question))
        kind = transient if rng.random() < 0.5 else lasting
        kind.append(kind.pop(0))
        return kind[-1](question)

    monkeypatch.setattr(server, "answer", answer)
    annotators = copied / "declarations" / "annotators.yaml"
    edit_yaml(annotators, "stub", "timeout_s", value=1)
    edit_yaml(annotators, "stub", "retries", value=8)
    write_yaml(copied / "declarations" / "prices.yaml", {"stub": PRICE})
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    return copied


def test_a_cell_completes_whatever_its_server_does(faulty: Path) -> None:
    """Every note has a status and a reason, no failed note is trained on, and the answers' cost is exact."""
    assert rebuild(faulty).failed == {}
    cell = rows(faulty, "select * from cells where annotator = 'stub' and prompt = 'second'")[0]
    statuses = ("annotated", "refused", "malformed", "truncated", "filtered", "timed_out", "failed", "over_budget")
    assert cell["notes"] == sum(cell[status] for status in (*statuses, "pending")) == 30
    assert cell["annotated"] < 30
    assert cell["mentions"] == cell["grounded"] + cell["ambiguous"] + cell["absent"]
    tokens = cell["prompt_tokens"] * 2 + cell["completion_tokens"] * 8
    assert (cell["cost"], cell["currency"]) == (Decimal(tokens).scaleb(-6), "EUR")
    trained = rows(faulty, "select annotated_notes from ner_models where annotator = 'stub' and prompt = 'second'")
    assert trained == [{"annotated_notes": cell["annotated"]}]
    result = ledger_balances(project=ProjectResource(root=str(faulty), profile="demo"))
    assert isinstance(result, dg.AssetCheckResult)
    assert result.passed


def test_what_is_over_budget_is_not_sent_and_fails_the_cell(faulty: Path, server: FakeOpenAI) -> None:
    """A limit for half of the notes: it is never exceeded; raised, the rest is asked and nothing twice."""
    profile = faulty / "declarations" / "profiles" / "demo.yaml"
    edit_yaml(profile, "budget", value={"currency": "EUR", "max_cost_per_cell": "0.004"})
    outcome = rebuild(faulty)
    assert "max_cost_per_cell is 0.004 EUR" in outcome.failed[CELL].replace("0.004000", "0.004")
    sent = len(server.questions)
    assert 0 < sent < 30
    edit_yaml(profile, "budget", "max_cost_per_cell", value="1")
    assert rebuild(faulty).failed == {}


def test_a_budget_without_a_price_asks_nothing(faulty: Path, server: FakeOpenAI) -> None:
    """What cannot be checked is not sent; the message says where the price belongs."""
    edit_yaml(
        faulty / "declarations" / "profiles" / "demo.yaml", "budget", value={"currency": "EUR", "max_cost_per_day": "1"}
    )
    (faulty / "declarations" / "prices.yaml").unlink()
    outcome = rebuild(faulty)
    assert "the price of 'stub' is unknown" in outcome.failed[CELL]
    assert server.questions == []


def test_failed_notes_are_asked_again_and_their_answers_kept(
    faulty: Path, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retry asks about refused and malformed notes alone; what was paid for stays in the store, set aside."""
    rebuild(faulty)
    project = Project.open(faulty, "demo")
    statuses = (AnswerStatus.REFUSED, AnswerStatus.MALFORMED, AnswerStatus.TRUNCATED, AnswerStatus.FILTERED)
    failed = failed_notes(project, statuses, annotator="stub", prompt="second")
    assert failed.notes == len(failed.answers) > 0
    assert failed.cells == {CELL}
    bodies = {key: raw_body(project, "responses", key) for key in failed.answers}
    monkeypatch.setattr(server, "answer", lambda question: completion(found(question)))
    server.questions.clear()
    assert set_answers_aside(project, failed) == failed.notes
    assert rebuild(faulty, Options(forced=failed.cells)).failed == {}
    assert len(server.questions) == failed.notes
    assert rows(faulty, "select not_annotated from cells where prompt = 'second'") == [{"not_annotated": 0}]
    assert {key: raw_body(project, "set_aside", key) for key in failed.answers} == bodies


def raw_body(project: Project, table: str, key: str) -> str:
    with closing(sqlite3.connect(project.responses_path)) as connection:
        return str(connection.execute(f"select raw_body from {table} where key = ?", [key]).fetchone()[0])
