"""Asset checks find what they are there for, and say it."""

from datetime import UTC, date, datetime

import dagster as dg
import pytest

from estner_assets.defs.checks import broken_rules, ledger_balances, outside_records
from estner_assets.defs.table_asset import ProjectResource
from estner_assets.project import Project
from estner_assets.resources.lineage import Materialization, Partition
from estner_assets.resources.records import text_hash
from estner_assets.tables import Row

RECORD = (
    "Patsient kasutab ravimit enalapriil 10 mg, tehti EKG ja koronaarangiograafia, enesetunne hea. "
    "Allergiat ei ole, suitsetamist eitab, elab koos abikaasaga, iseseisvalt toimetulev."
)


def publish(project: Project, partition: Partition, rows: list[Row]) -> None:
    made = Materialization(partition, "v", "1", "run", datetime(2024, 1, 1, tzinfo=UTC), 0.0, ())
    project.warehouse.publish(made, rows, [])


def resource(project: Project) -> ProjectResource:
    return ProjectResource(root=str(project.root), profile="demo")


def note(text: str, key: str, name: str, patient: str) -> Row:
    return {
        name: key,
        "patient_id": patient,
        "date": date(2020, 1, 1),
        "genre": "anamnees",
        "age_group": "6",
        "sex": "naine",
        "diagnosis": "I10",
        "text": text,
        "text_sha256": text_hash(text),
    }


@pytest.mark.parametrize(
    ("text", "patient", "passed", "said"),
    [
        ("Hoopis teine tekst, kus räägitakse põlveliigese artroskoopiast.", "g1", True, "no gold note"),
        (RECORD, "g1", False, "gold g1 repeats record r1"),
        (RECORD.upper() + " Lõpp.", "g1", False, "gold g1 repeats record r1"),
        ("Hoopis teine tekst samast patsiendist.", "p1", False, "patient p1 stands in both"),
    ],
)
def test_trap_6_gold_lies_outside_the_records(
    project: Project, text: str, patient: str, passed: bool, said: str
) -> None:
    """The same text, nearly the same text, or the same patient on both sides fails the check."""
    publish(project, Partition("records"), [note(RECORD, "r1", "record_id", "p1")])
    publish(project, Partition("gold_documents"), [note(text, "g1", "document_id", patient)])
    result = outside_records(project=resource(project))
    assert isinstance(result, dg.AssetCheckResult)
    assert result.passed is passed
    assert said in (result.description or "")


def answer(note_id: str, status: str, reason: str | None, mentions: list[Row]) -> Row:
    return {
        "note_id": note_id,
        "source": "vetted_notes",
        "text_sha256": "x",
        "status": status,
        "reason": reason,
        "mentions": mentions,
        "raw_answer": None,
        "model_version": None,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "cost": None,
        "currency": None,
        "request_keys": [],
    }


MENTION = {
    "label": "DRUG",
    "answered": "Enap",
    "grounding": "exact",
    "score": 1.0,
    "start_char": 0,
    "end_char": 4,
    "text": "Enap",
    "confidence": None,
}


@pytest.mark.parametrize(
    ("rows", "passed"),
    [
        ([answer("a", "annotated", None, []), answer("b", "refused", "it said no", [])], True),
        ([answer("a", "refused", None, [])], False),
        ([answer("a", "malformed", "no JSON", [MENTION])], False),
        ([answer("a", "annotated", None, [MENTION, MENTION | {"grounding": "ambiguous"}])], True),
        ([answer("a", "annotated", None, [MENTION | {"grounding": "guessed"}])], False),
        ([answer("a", "vanished", "no such status", [])], False),
    ],
)
def test_trap_11_every_note_is_accounted_for(project: Project, rows: list[Row], passed: bool) -> None:
    """A note that failed says why and has no mentions; otherwise the ledger does not balance."""
    publish(project, Partition("annotations", "lexicon", "none"), rows)
    result = ledger_balances(project=resource(project))
    assert isinstance(result, dg.AssetCheckResult)
    assert result.passed is passed


def test_declared_rules_find_broken_rows(project: Project) -> None:
    """Double keys, values that are not accepted, and references to nothing are each a sentence."""
    table = project.declarations.tables["annotations"]
    rows = [answer("a", "annotated", None, []), answer("a", "vanished", None, [])]
    publish(project, Partition("annotations", "lexicon", "none"), rows)
    assert list(broken_rules(project.warehouse, table)) == [
        "annotations: (annotator, prompt, note_id) is not unique, for example ['lexicon', 'none', 'a']",
        "annotations.status: 'vanished' is not one of annotated, refused, malformed, truncated, filtered, "
        "timed_out, failed, over_budget, pending",
    ]
    spans = project.declarations.tables["gold_spans"]
    orphan = {"document_id": "nobody", "start_char": 0, "end_char": 4, "label": "DRUG", "text": "Enap"}
    publish(project, Partition("gold_spans"), [orphan])
    assert list(broken_rules(project.warehouse, spans)) == [
        "gold_spans.document_id: 'nobody' does not stand in gold_documents.document_id"
    ]
