"""Laws of asking word by word."""

import pytest

from estner_assets.llm.words import askable_words, mentions_of, word_spans
from estner_assets.ner.languages import language
from estner_assets.ner.parsing import Mention
from estner_assets.ner.spans import Span

ET = language("et")


@pytest.mark.parametrize(
    ("note", "words"),
    [
        ("Võtab raviga.Allergia 2x20 mg ja õ", ["Võtab", "raviga", "Allergia"]),
        ("keemia- ja kiiritusravi, herceptin-ravi", ["keemia-", "kiiritusravi", "herceptin-ravi"]),
        ("Pea KT, KT-uuring; B12 (CA15-3)", ["Pea", "KT", "KT-uuring", "B12", "CA15-3"]),
        ("12.03.2020 120/80 - % ja ei on", []),
        ("", []),
    ],
)
def test_words_are_asked_whole_and_the_rest_is_not_asked(note: str, words: list[str]) -> None:
    """Words keep their hyphens and endings; numbers, punctuation, units and function words are left out."""
    assert [note[start:end] for start, end in askable_words(note, ET)] == words


def test_what_is_not_asked_belongs_to_the_language() -> None:
    """Estonian function words and units are ordinary words of a language that lists none."""
    note = "Võtab ja mg õ 12"
    words = [[note[start:end] for start, end in askable_words(note, language(code))] for code in ("et", "lv")]
    assert words == [["Võtab"], ["Võtab", "ja", "mg"]]


def test_neighbours_of_one_label_are_one_span() -> None:
    """Words of one label join over blanks, not over punctuation, other words, lines or another label."""
    note = "aju MRT, KT EKG\nUH tehti UH Enap"
    labels = {place: "PROCEDURE" for place in askable_words(note, ET)}
    tehti, enap = note.index("tehti"), note.index("Enap")
    labels |= {(tehti, tehti + 5): "other", (enap, enap + 4): "DRUG"}
    spans = word_spans(note, labels)
    assert mentions_of(note, spans) == (
        Mention("PROCEDURE", "aju MRT"),
        Mention("PROCEDURE", "KT EKG"),
        Mention("PROCEDURE", "UH"),
        Mention("PROCEDURE", "UH"),
        Mention("DRUG", "Enap"),
    )
    assert spans[0] == Span(0, 7, "PROCEDURE")
