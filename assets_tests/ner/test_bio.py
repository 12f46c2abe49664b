"""Laws of BIO tags."""

import random

import pytest

from estner_assets.ner.bio import from_bio, label_names, to_bio
from estner_assets.ner.spans import Span
from estner_assets.ner.tokens import tokenize


def test_trap_20_label_map_follows_the_declaration_and_not_the_data() -> None:
    """Ids come from the declared order, so that a subset without a class permutes nothing."""
    assert label_names(["PROCEDURE", "DRUG"]) == ["O", "B-PROCEDURE", "I-PROCEDURE", "B-DRUG", "I-DRUG"]
    with pytest.raises(ValueError, match="named twice"):
        label_names(["DRUG", "DRUG"])


def test_trap_19_adjacent_mentions_stay_two() -> None:
    """Two mentions of one type without a word between them are two spans again."""
    text = "aspiriin ibuprofeen KT"
    spans = (Span(0, 8, "DRUG"), Span(9, 19, "DRUG"), Span(20, 22, "PROCEDURE"))
    tags = to_bio(tokenize(text), spans)
    assert tags == ["B-DRUG", "B-DRUG", "B-PROCEDURE"]
    assert from_bio(text, tokenize(text), tags) == spans


def test_trap_19_no_tag_leaks_into_the_next_document() -> None:
    """A document's tags hang on its own spans, whatever the document before ended with."""
    before = to_bio(tokenize("sai aspiriini"), [Span(4, 13, "DRUG")])
    after = to_bio(tokenize("sai infot"), [])
    assert (before, after) == (["O", "B-DRUG"], ["O", "O"])


def test_a_token_that_overlaps_a_span_takes_its_tag() -> None:
    """A span inside a word marks the word; of two spans in one word the earlier has it."""
    text = "insuliinravi jätkub"
    assert to_bio(tokenize(text), [Span(0, 8, "DRUG")]) == ["B-DRUG", "O"]
    assert to_bio(tokenize(text), [Span(0, 4, "DRUG"), Span(4, 19, "PROCEDURE")]) == ["B-DRUG", "B-PROCEDURE"]


def test_spans_at_token_boundaries_survive_the_way_to_tags_and_back() -> None:
    """from_bio(to_bio(spans)) is spans, for any spans that tokens can represent."""
    rng = random.Random(3)
    for _ in range(200):
        text = " ".join(rng.choices(["keemia-", "ja", "5mg", "KT/MRT", "herceptin-ravi", "x."], k=12))
        tokens = tokenize(text)
        edges = sorted(rng.sample(range(len(tokens) + 1), k=2 * rng.randint(0, 4)))
        pairs = zip(edges[::2], edges[1::2], strict=True)
        spans = tuple(Span(tokens[a].start, tokens[b - 1].end, rng.choice(["X", "Y"])) for a, b in pairs)
        assert from_bio(text, tokens, to_bio(tokens, spans)) == spans


def test_inside_without_begin_starts_a_span_and_the_least_sure_token_decides() -> None:
    """Stray tags are read as conlleval reads them; confidences stay in 0..1."""
    text = "a b c d"
    spans = from_bio(text, tokenize(text), ["I-X", "I-X", "I-Y", "O"], [0.9, 0.4, 1.2, 0.1])
    assert spans == (Span(0, 3, "X", 0.4), Span(4, 5, "Y", 1.0))


@pytest.mark.parametrize(
    ("tags", "message"), [(["O"], "one per token"), (["O", "Z-X"], "is not O"), (["O", "B-"], "is not O")]
)
def test_tags_that_cannot_be_read_raise(tags: list[str], message: str) -> None:
    """Neither a missing tag nor an unknown one is passed over."""
    with pytest.raises(ValueError, match=message):
        from_bio("a b", tokenize("a b"), tags)


def test_tokens_of_another_text_raise() -> None:
    """Offsets beyond the text's end show that text and tokens do not belong together."""
    with pytest.raises(ValueError, match="tokenise this very text"):
        from_bio("a", tokenize("a b"), ["O", "O"])
