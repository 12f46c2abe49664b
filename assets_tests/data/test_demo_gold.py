"""Laws of the hand-written gold test set of the demo project (``data/demo/gold``)."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

GOLD = Path(__file__).parents[2] / "data" / "demo" / "gold"
LABELS = {"DRUG", "PROCEDURE"}
WORD = re.compile(r"\w")


@pytest.fixture(scope="module")
def notes():
    with open(GOLD / "gold.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def mentions(notes):
    return [(note, start, end, label, note["text"][start:end]) for note in notes for start, end, label in note["label"]]


@pytest.fixture(scope="module")
def terms():
    lines = (GOLD / "terms.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "label\tlemma"
    return [tuple(line.split("\t")) for line in lines[1:]]


def test_size(notes):
    """There are at least 150 notes, and neither an id nor a text occurs twice."""
    assert len(notes) >= 150
    assert len({note["id"] for note in notes}) == len(notes)
    assert len({note["text"] for note in notes}) == len(notes)


def test_metadata(notes):
    """Every note has its metadata, in the vocabulary of the project."""
    for note in notes:
        assert set(note) == {
            "id",
            "text",
            "label",
            "genre",
            "age_group",
            "sex",
            "diagnosis",
            "patient_id",
            "date",
        }
        assert note["genre"] in {"anamnees", "protseduur"}
        assert note["sex"] in {"naine", "mees"}
        assert re.fullmatch(r"\d", note["age_group"])
        assert re.fullmatch(r"[A-Z]\d\d(\.\d)?", note["diagnosis"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", note["date"])
        assert note["patient_id"]


def test_diagnosis_fits_sex(notes):
    """No man has a diagnosis of the female organs or of childbirth, and no woman one of the prostate."""
    female = {note["diagnosis"] for note in notes if re.match(r"C5[3-6]|D2[57]|N8[0-9]|N9[1-7]|O", note["diagnosis"])}
    male = {note["diagnosis"] for note in notes if re.match(r"C61|N40", note["diagnosis"])}
    assert female and male
    assert all(note["sex"] == "naine" for note in notes if note["diagnosis"] in female)
    assert all(note["sex"] == "mees" for note in notes if note["diagnosis"] in male)


def test_both_genres(notes):
    """Each genre makes up at least two fifths of the notes, and at least 60 diagnoses occur."""
    genres = Counter(note["genre"] for note in notes)
    assert set(genres) == {"anamnees", "protseduur"}
    assert min(genres.values()) >= 0.4 * len(notes)
    assert len({note["diagnosis"] for note in notes}) >= 60


def test_notes_without_mention(notes):
    """Between 5 and 15 per cent of the notes have no mention, in both genres."""
    free = [note for note in notes if not note["label"]]
    assert 0.05 * len(notes) <= len(free) <= 0.15 * len(notes)
    assert len({note["genre"] for note in free}) == 2


def test_length(notes):
    """A note has 12 to 110 words, about 40 on average."""
    words = [len(note["text"].split()) for note in notes]
    assert min(words) >= 12
    assert max(words) <= 110
    assert 32 <= sum(words) / len(words) <= 48


def test_labels(notes):
    """A label is DRUG or PROCEDURE, and each has at least 330 mentions."""
    labels = Counter(label for note in notes for _, _, label in note["label"])
    assert set(labels) == LABELS
    assert min(labels.values()) >= 330


def test_spans_are_sorted_and_disjoint(notes):
    """The spans of a note lie inside its text, are not empty, ascend and do not overlap."""
    for note in notes:
        last = 0
        for start, end, _ in note["label"]:
            assert last <= start < end <= len(note["text"]), note["id"]
            last = end


def test_spans_are_whole_words(mentions):
    """A span takes in whole words: it starts where a word starts, and ends where one ends or at the hyphen of
    a coordination part (``keemia-``)."""
    hyphens = 0
    for note, start, end, _, span in mentions:
        text, where = note["text"], f"{note['id']}: {span}"
        assert span == span.strip(), where
        assert WORD.match(span[0]), where
        assert start == 0 or not re.match(r"[\w-]", text[start - 1]), where
        if span.endswith("-"):
            assert re.match(r" (ja|või|ning) ", text[end:]), where
            hyphens += 1
        else:
            assert WORD.match(span[-1]), where
            assert not re.match(r"\w|[-']\w", text[end:]), where
    assert hyphens


def test_spans_hold_no_dose_and_no_placeholder(mentions):
    """A span holds no strength, no placeholder, no sentence end and no line end."""
    for note, _, _, _, span in mentions:
        assert not re.search(r"\d\s*(mg|mcg|ml|TÜ|g)\b|\b(DATE|NAME)\b|[.,;:!?()\n]", span), f"{note['id']}: {span}"


def test_placeholders_occur(notes):
    """Dates and names are replaced by placeholders, and both occur."""
    text = " ".join(note["text"] for note in notes)
    assert len(re.findall(r"\bDATE\b", text)) >= 20
    assert len(re.findall(r"\bNAME\b", text)) >= 5


def test_marked_words_are_marked_everywhere(notes, mentions):
    """A one-word name that is marked in one note is marked in every note (abbreviations: in capitals)."""
    forms = {span if span.isupper() else span.lower() for *_, span in mentions if " " not in span}
    assert len(forms) >= 400
    for note in notes:
        rest = list(note["text"])
        for start, end, _ in note["label"]:
            rest[start:end] = "|" * (end - start)
        for word in re.findall(r"[\w][\w'/-]*", "".join(rest)):
            assert word not in forms and (word.isupper() or word.lower() not in forms), f"{note['id']}: {word}"


def test_unmarked_words_are_never_marked(mentions):
    """Laboratory values, drug classes and general words that stand alone are no mention."""
    general = {
        "kreatiniin",
        "kolesterool",
        "albumiin",
        "crv",
        "hemogramm",
        "antibiootikum",
        "antibiootikumi",
        "valuvaigisti",
        "statiin",
        "operatsioon",
        "op",
        "uuring",
        "ravi",
        "protseduur",
        "vastuvõtt",
    }
    assert not [span for *_, span in mentions if span.lower() in general]


def test_unmarked_words_occur(notes):
    """The notes hold such laboratory values and general words, so that a tagger can be wrong about them."""
    text = " ".join(note["text"].lower() for note in notes)
    for word in (
        "kreatiniin",
        "kolesterool",
        "albumiin",
        "crv",
        "hemogramm",
        "antibiootikum",
        "operatsioon",
        "ravi",
    ):
        assert re.search(rf"\b{word}", text), word


def test_terms(terms):
    """The list of lemmas is sorted, lower-case, without repetition and wide."""
    assert terms == sorted(set(terms))
    assert all(lemma and lemma == lemma.lower().strip() for _, lemma in terms)
    labels = Counter(label for label, _ in terms)
    assert set(labels) == LABELS
    assert labels["DRUG"] >= 170
    assert labels["PROCEDURE"] >= 140


def test_terms_cover_mentions(terms, mentions):
    """Nine out of ten mentions begin like a lemma of their label (the rest is misspelled or short), and
    nine out of ten lemmas begin like a mention."""
    for label in LABELS:
        spans = {span.lower() for *_, other, span in mentions if other == label}
        lemmas = {lemma for other, lemma in terms if other == label}
        heads = {lemma[:4] for lemma in lemmas}
        assert sum(span[:4] in heads for span in spans) >= 0.9 * len(spans)
        starts = {span[:4] for span in spans}
        assert sum(lemma[:4] in starts for lemma in lemmas) >= 0.9 * len(lemmas)
