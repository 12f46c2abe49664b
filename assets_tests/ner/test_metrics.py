"""Laws of the scores, with seqeval and nervaluate as oracles."""

import random
from itertools import permutations

import pytest
from nervaluate.evaluator import Evaluator
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as seqeval_lenient
from seqeval.metrics.v1 import precision_recall_fscore_support as seqeval_strict
from seqeval.scheme import IOB2

from estner_assets.ner.bio import to_bio
from estner_assets.ner.metrics import Score, character, partial, strict, type_only
from estner_assets.ner.notebook_protocol import fixed_pieces, notebook_subword, subword_tags
from estner_assets.ner.spans import Span
from estner_assets.ner.tokens import Token, tokenize

LABELS = ["DRUG", "PROCEDURE"]
TEXT = "Teostati rindkere röntgenülesvõte, jätkub metoprolool-suktsinaat 50mg ja keemia- ning kiiritusravi."


def random_spans(rng: random.Random, tokens: list[Token], count: int) -> list[Span]:
    edges = sorted(rng.sample(range(len(tokens) + 1), k=2 * count))
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [Span(tokens[a].start, tokens[b - 1].end, rng.choice(LABELS)) for a, b in pairs]


def random_corpus(seed: int, documents: int = 40) -> tuple[list[list[Span]], list[list[Span]], list[str]]:
    """Return gold, predictions that share about half of it, and the texts."""
    rng = random.Random(seed)
    tokens = tokenize(TEXT)
    gold = [random_spans(rng, tokens, rng.randint(0, 4)) for _ in range(documents)]
    predicted = [spans if rng.random() < 0.4 else random_spans(rng, tokens, rng.randint(0, 4)) for spans in gold]
    return gold, predicted, [TEXT] * documents


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("label", [None, *LABELS])
def test_strict_is_seqevals_strict_mode(seed: int, label: str | None) -> None:
    """On spans at token boundaries our strict score is seqeval's in strict mode with IOB2."""
    gold, predicted, texts = random_corpus(seed)
    keep = [[[s for s in spans if label in (None, s.label)] for spans in side] for side in (gold, predicted)]
    tagged = [[to_bio(tokenize(text), spans) for text, spans in zip(texts, side, strict=True)] for side in keep]
    expected = seqeval_strict(*tagged, scheme=IOB2, average="micro", zero_division=0)
    score = strict(gold, predicted, label)
    assert (score.precision, score.recall, score.f1, score.support) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_strict_partial_and_type_agree_with_nervaluate(seed: int) -> None:
    """nervaluate counts the same matches where a span meets one other at most."""
    rng = random.Random(seed)
    gold = [[Span(10 * i, 10 * i + rng.randint(3, 9), "DRUG") for i in range(6)] for _ in range(20)]
    predicted = [
        [Span(s.start + rng.choice([0, 0, 1]), s.end, "DRUG") for s in spans if rng.random() < 0.8] for spans in gold
    ]
    sides = [
        [[{"label": s.label, "start": s.start, "end": s.end - 1} for s in spans] for spans in side]
        for side in (gold, predicted)
    ]
    overall = Evaluator(*sides, tags=["DRUG"], loader="dict").evaluate()["overall"]
    for name, ours in (("strict", strict), ("partial", partial), ("ent_type", type_only)):
        score, theirs = ours(gold, predicted, "DRUG"), overall[name]
        assert (score.precision, score.recall, score.f1) == pytest.approx(
            (theirs.precision, theirs.recall, theirs.f1)
        ), name


def test_partial_credit_by_hand() -> None:
    """Exact counts 1, overlap of the same label a half, overlap of another label nothing."""
    gold = [[Span(0, 5, "DRUG"), Span(6, 20, "PROCEDURE"), Span(30, 34, "DRUG")]]
    predicted = [[Span(0, 5, "DRUG"), Span(10, 25, "PROCEDURE"), Span(30, 34, "PROCEDURE"), Span(40, 41, "DRUG")]]
    assert strict(gold, predicted, None) == Score(1 / 4, 1 / 3, 2 / 7, 3, 4, 1.0)
    assert partial(gold, predicted, None) == Score(1.5 / 4, 1.5 / 3, 3 / 7, 3, 4, 1.5)
    assert type_only(gold, predicted, None) == Score(2 / 4, 2 / 3, 4 / 7, 3, 4, 2.0)
    assert character(gold, predicted, None) == Score(15 / 25, 15 / 23, 30 / 48, 23, 25, 15.0)
    assert strict(gold, predicted, "DRUG") == Score(1 / 2, 1 / 2, 2 / 4, 2, 2, 1.0)


def test_one_long_prediction_matches_one_gold_span() -> None:
    """A prediction over everything earns the credit of one mention, not of all that it touches."""
    gold = [[Span(0, 3, "DRUG"), Span(4, 7, "DRUG"), Span(8, 11, "DRUG")]]
    assert partial(gold, [[Span(0, 11, "DRUG")]], None) == Score(0.5, 0.5 / 3, 0.25, 3, 1, 0.5)


def best_credit(gold: list[Span], predicted: list[Span], exact: float, overlap: float) -> float:
    """Try every one-to-one matching."""
    padded = [*predicted, *[None] * len(gold)]

    def credit(one: Span, other: Span | None) -> float:
        if other is None or one.label != other.label or one.end <= other.start or other.end <= one.start:
            return 0.0
        return exact if (one.start, one.end) == (other.start, other.end) else overlap

    orders = permutations(padded, len(gold))
    return max(sum(credit(*pair) for pair in zip(gold, order, strict=True)) for order in orders)


def test_matching_is_the_best_one_whatever_the_order() -> None:
    """Partial and type credit equal the best over all matchings, for overlapping spans too, in any order."""
    rng = random.Random(11)
    for _ in range(150):
        sides = [
            [Span(a, a + rng.randint(1, 8), rng.choice(LABELS)) for a in rng.choices(range(12), k=rng.randint(0, 3))]
            for _ in range(2)
        ]
        shuffled = [[rng.sample(side, len(side))] for side in sides]
        assert partial(*shuffled, None).correct == best_credit(*sides, 1.0, 0.5)
        assert type_only(*shuffled, None).correct == best_credit(*sides, 1.0, 1.0)


def test_scores_of_nothing_are_zero_and_sides_must_fit() -> None:
    """No spans give zeros; different numbers of documents are an error and not a shorter list."""
    for view in (strict, partial, type_only, character):
        assert view([[]], [[]], None) == Score(0.0, 0.0, 0.0, 0, 0, 0.0)
        with pytest.raises(ValueError, match="2 gold documents against 1"):
            view([[], []], [[]], None)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("label", [None, *LABELS])
def test_notebook_protocol_is_seqevals_lenient_mode_on_subwords(seed: int, label: str | None) -> None:
    """The notebook's column counts what seqeval counts when every sub-word has its word's tag."""
    gold, predicted, texts = random_corpus(seed)
    keep = [[[s for s in spans if label in (None, s.label)] for spans in side] for side in (gold, predicted)]
    tagged = [
        [subword_tags(fixed_pieces(text), tokenize(text), spans) for text, spans in zip(texts, side, strict=True)]
        for side in keep
    ]
    expected = seqeval_lenient(*tagged, average="micro", zero_division=0)
    score = notebook_subword(gold, predicted, texts, fixed_pieces, label)
    assert (score.precision, score.recall, score.f1, score.support) == pytest.approx(expected)


def test_trap_25_missing_every_tail_pays_under_the_notebook_protocol_only() -> None:
    """A system that cuts the tail of every long name fails strictly and looks fine on sub-words."""
    whole_and_found = {
        "tamoksifeeniga": "tamoksifeeni",
        "metotreksaat": "metotrek",
        "ASA": "ASA",
        "MTX": "MTX",
    }
    texts = [f"Sai {word} ja koju." for word in whole_and_found]
    gold = [[Span(4, 4 + len(word), "DRUG")] for word in whole_and_found]
    cut = [[Span(4, 4 + len(found), "DRUG")] for found in whole_and_found.values()]
    assert strict(gold, cut, "DRUG") == Score(0.5, 0.5, 0.5, 4, 4, 2.0)
    subword = notebook_subword(gold, cut, texts, fixed_pieces, "DRUG")
    assert subword == Score(1.0, 7 / 9, 14 / 16, 9, 7, 7.0)


def test_notebook_tags_repeat_begin_for_every_piece_of_the_first_word() -> None:
    """A word of three pieces is three units; later words of the mention continue it."""
    text = "rindkere UH"
    tags = subword_tags(fixed_pieces(text), tokenize(text), [Span(0, 11, "PROCEDURE")])
    assert tags == ["B-PROCEDURE", "B-PROCEDURE", "I-PROCEDURE"]
