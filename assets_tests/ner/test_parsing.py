"""Laws of reading an LLM's answer."""

import json

import pytest

from estner_assets.ner.parsing import (
    AnswerStatus,
    Mention,
    answer_schema,
    parse_json_answer,
    parse_reasoned_answer,
    parse_word_answer,
    word_grammar,
)

LABELS = ("DRUG", "PROCEDURE")
A, B, KT = Mention("DRUG", "a"), Mention("DRUG", "b"), Mention("PROCEDURE", "KT")


@pytest.mark.parametrize(
    "text",
    [
        '{"DRUG": ["a", "b"], "PROCEDURE": ["KT"]}',
        '{"drug": ["a", "b"], "Procedures": "KT"}',
        'See: {DRUG and PROCEDURE}\n```json\n{"DRUG": ["a", "b"], "PROCEDURE": ["KT"]}\n```\nAll?',
        '{"DRUG": ["a"], "DRUG": ["b"], "PROCEDURE": ["KT"]}',
        '{"DRUG": ["a", "b"]}\n{"PROCEDURE": ["KT"]}',
        '{"DRUG": ["draft"]} No, better: {"DRUG": ["a", "b"], "PROCEDURE": ["KT"]}',
        '<think>{"DRUG": ["wrong"]</think>{"answer": {"DRUG": [{"text": "a"}, "b"], "PROCEDURE": ["KT", "none"]}}',
        '{"entities": [{"label": "DRUG", "text": " a "}, {"label": "drug", "text": "b"},'
        ' {"label": "PROCEDURE", "text": "KT"}]}',
        '[{"label": "DRUG", "text": "a"}, {"label": "DRUG", "text": "b"}, {"label": "PROCEDURE", "text": "KT"}]',
    ],
)
def test_every_usual_form_of_an_answer_gives_the_same_mentions(text: str) -> None:
    """The form of an answer, and the prose around it, do not change what was answered."""
    assert parse_json_answer(text, LABELS) == (AnswerStatus.ANNOTATED, (A, B, KT), "")


def test_braces_inside_a_string_end_nothing() -> None:
    """An answer is not cut at its first closing brace."""
    text = json.dumps({"DRUG": ["a}b", "{c", 'd"}'], "PROCEDURE": []})
    mentions = tuple(Mention("DRUG", text) for text in ("a}b", "{c", 'd"}'))
    assert parse_json_answer(text, LABELS) == (AnswerStatus.ANNOTATED, mentions, "")


def test_a_repeated_mention_is_kept_in_its_place() -> None:
    """A mention answered twice stands twice, in order."""
    assert parse_json_answer('{"DRUG": ["a", "b", "a"]}', LABELS)[1] == (A, B, A)


@pytest.mark.parametrize("nothing", ['{"DRUG": [], "PROCEDURE": null}', '{"DRUG": ["none"]}', '{"entities": []}', "{}"])
def test_nothing_found_is_an_answer(nothing: str) -> None:
    """An answer that finds nothing is annotated, with no mention and nothing to complain of."""
    assert parse_json_answer(nothing, LABELS) == (AnswerStatus.ANNOTATED, (), "")


@pytest.mark.parametrize(
    "text",
    [
        '{"DRUG": ["a", 7, {"name": "x"}, "\\ud83d"], "DISEASE": ["gripp"]}',
        '{"entities": [{"label": "DRUG", "text": "a"}, {"label": "DISEASE", "text": "x"}, 3,'
        ' {"label": "DRUG"}, {"text": "y"}]}',
    ],
)
def test_a_bad_entity_costs_only_itself(text: str) -> None:
    """Entities that cannot be used are dropped and counted; the others stay."""
    expected = (AnswerStatus.ANNOTATED, (A,), "4 malformed or unknown entities dropped")
    assert parse_json_answer(text, LABELS) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON object in the answer"),
        ("I found no drugs.", "no JSON object in the answer"),
        ('{"result": "none found"}', "no known label in the JSON; expected DRUG, PROCEDURE"),
        ('{"DRUG": ["a", "b', "the JSON breaks off: Unterminated string starting at"),
        (
            '{"entities": [{"label": "DRUG", "text": "a"}, {"lab',
            "the JSON breaks off: Unterminated string starting at",
        ),
        ('{"DRUG": ["a"],', "the JSON breaks off: Expecting property name enclosed in double quotes"),
        ('{"DRUG":' + "[" * 200_000, "the JSON is nested too deeply"),
    ],
)
def test_what_is_no_whole_answer_is_malformed(text: str, reason: str) -> None:
    """A broken answer is never read as an answer without entities, nor as the part that came through."""
    assert parse_json_answer(text, LABELS) == (AnswerStatus.MALFORMED, (), reason)


ANSWER = '{"DRUG": ["a", "b"], "PROCEDURE": ["KT"]}'


@pytest.mark.parametrize(
    "text",
    [
        ANSWER,
        f"a is a drug, KT a scan.\n{ANSWER}",
        f'Draft:\n{{"DRUG": ["draft"]}}\nNo, b counts as well.\n```json\n{ANSWER}\n```\n',
        f'The note quotes {{"DRUG": [], "PROCEDURE": []}} and {{broken.\n\nFinal answer: {ANSWER}',
        f'{ANSWER}\nI passed over the line {{"DRUG": ["x"]}} in the note.',
        f'{ANSWER}\n{{"sure": true}}',
        'It is {"DRUG": ["x"]}?\n{"DRUG": ["a", "b"]},\n{"PROCEDURE": ["KT"]}',
        'So:\n[{"label": "DRUG", "text": "a"}, {"label": "DRUG", "text": "b"}, {"label": "PROCEDURE", "text": "KT"}]',
        f'<think>{{"DRUG": ["wrong"]</think>**{ANSWER}**',
        f"```json {ANSWER} ```",
    ],
)
def test_the_last_answer_behind_the_reasons_counts(text: str) -> None:
    """Drafts and quotations inside the reasons are no answers, whatever they say."""
    assert parse_reasoned_answer(text, LABELS) == (AnswerStatus.ANNOTATED, (A, B, KT), "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a is a drug.", "no JSON object in the answer"),
        ('The note says {"DRUG": []} but I cannot decide.', "no JSON object in the answer"),
        ('Reasons.\n{"sure": true}', "no known label in the JSON; expected DRUG, PROCEDURE"),
        ('Draft:\n{"DRUG": ["a"]}\nBetter:\n{"DRUG": ["a", "b', "the JSON breaks off: Unterminated string starting at"),
    ],
)
def test_reasons_without_an_answer_are_malformed(text: str, reason: str) -> None:
    """A quotation or a draft never stands in for the answer that is lacking or was cut off."""
    assert parse_reasoned_answer(text, LABELS) == (AnswerStatus.MALFORMED, (), reason)


def test_the_schema_asks_for_every_label_and_nothing_else() -> None:
    """The schema has one required list of strings per label."""
    strings = {"type": "array", "items": {"type": "string"}}
    assert answer_schema(LABELS) == {
        "type": "object",
        "properties": {"DRUG": strings, "PROCEDURE": strings},
        "required": ["DRUG", "PROCEDURE"],
        "additionalProperties": False,
    }


def test_the_grammar_has_the_labels_and_other() -> None:
    """The grammar's sentences are the labels in lower case and ``other``."""
    assert word_grammar(LABELS) == 'root ::= "drug" | "procedure" | "other"'


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("drug", "DRUG"),
        (" Procedure.\n", "PROCEDURE"),
        ("The word is OTHER", "other"),
        ("pro", "PROCEDURE"),
        ("drug or procedure", None),
        ("medicine", None),
        ("", None),
    ],
)
def test_a_word_answer_names_one_choice_or_none(text: str, label: str | None) -> None:
    """A word answer is a label or ``other`` when it names exactly one, else unreadable."""
    assert parse_word_answer(text, LABELS) == label


@pytest.mark.parametrize(
    "answer",
    [
        '{"entities": [{"entity": "DRUG", "text": "tamoxifen"}]}',
        '{"entities": ["tamoxifen"]}',
        '{"DRUG": [{"name": "x"}]}',
        '{"error": {}}',
        '{"meta": {}, "found": ["tamoxifen"]}',
    ],
)
def test_trap_11_an_answer_of_which_nothing_can_be_read_is_malformed(answer: str) -> None:
    """Something was answered, in a shape that nobody asked for: never a note without entities."""
    status, mentions, reason = parse_json_answer(answer, ["DRUG", "PROCEDURE"])
    assert (status, mentions, reason != "") == (AnswerStatus.MALFORMED, (), True)


@pytest.mark.parametrize("answer", ["{}", '{"DRUG": [], "PROCEDURE": []}', '{"entities": []}'])
def test_an_empty_answer_says_that_there_is_nothing(answer: str) -> None:
    """The shapes that were asked for, without a mention."""
    assert parse_json_answer(answer, ["DRUG", "PROCEDURE"]) == (AnswerStatus.ANNOTATED, (), "")
