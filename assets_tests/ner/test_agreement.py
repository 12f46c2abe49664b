"""Laws of agreement."""

import random
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from estner_assets.ner.agreement import PairAgreement, cohen_kappa, pair_agreement, pair_agreements
from estner_assets.ner.metrics import strict
from estner_assets.ner.spans import Document, Span

LABELS = ["DRUG", "PROCEDURE"]
TEXT = "Sai aspiriini ja KT."


def document(document_id: str, *spans: Span, text: str = TEXT) -> Document:
    return Document(document_id, text, spans)


def test_only_notes_of_both_count_and_order_does_not() -> None:
    """Documents are matched by id; a note of one side alone is no disagreement."""
    drug, procedure = Span(4, 13, "DRUG"), Span(17, 19, "PROCEDURE")
    a = [document("1", drug), document("2", drug, procedure), document("9", drug)]
    b = [document("8"), document("2", drug), document("1", drug)]
    result = pair_agreement(a, b, LABELS)
    assert (result.notes, result.span_f1) == (2, 0.8)
    assert pair_agreement(b, a, LABELS) == result


def test_kappa_is_scikit_learns() -> None:
    """On random labels of characters our kappa is that of another implementation."""
    rng = random.Random(2)
    for _ in range(20):
        sides = []
        for _ in range(2):
            cuts = sorted(rng.sample(range(len(TEXT) + 1), k=4))
            spans = [Span(*cuts[:2], rng.choice(LABELS)), Span(*cuts[2:], rng.choice(LABELS))]
            codes = ["O"] * len(TEXT)
            for span in spans:
                codes[span.start : span.end] = [span.label] * (span.end - span.start)
            sides.append((document("1", *spans), codes))
        (a, codes_a), (b, codes_b) = sides
        expected = cohen_kappa_score(codes_a, codes_b)
        assert pair_agreement([a], [b], LABELS).character_kappa == pytest.approx(expected)


def test_what_is_undefined_is_none() -> None:
    """No shared note has neither figure; notes without a span have no chance-corrected agreement."""
    nothing = PairAgreement(0, None, None, None, 0, None, None)
    assert pair_agreement([document("1")], [document("2")], LABELS) == nothing
    assert pair_agreement([document("1")], [document("1")], LABELS) == replace(nothing, notes=1)
    marked = document("1", Span(4, 13, "DRUG"))
    assert pair_agreement([marked], [marked], LABELS) == PairAgreement(1, 1.0, 1.0, 1.0, 1, 1.0, None)
    assert pair_agreement([marked], [document("1")], LABELS) == PairAgreement(1, 0.0, 0.0, 0.0, 0, None, None)
    assert cohen_kappa(np.array([[0, 0], [0, 5]])) is None


def test_spans_of_other_labels_do_not_count() -> None:
    """A disabled entity type changes nothing."""
    a = document("1", Span(4, 13, "DRUG"), Span(17, 19, "PROCEDURE"))
    assert pair_agreement([a], [document("1", Span(4, 13, "DRUG"))], ["DRUG"]) == PairAgreement(
        1, 1.0, 1.0, 1.0, 1, 1.0, None
    )


def test_ids_that_do_not_identify_raise() -> None:
    """One id stands for one text, once on each side."""
    with pytest.raises(ValueError, match="two texts"):
        pair_agreement([document("1")], [document("1", text="muu")], LABELS)
    with pytest.raises(ValueError, match="given twice: 1;"):
        pair_agreement([document("1"), document("1")], [document("1")], LABELS)


def random_document(rng: random.Random, document_id: str) -> Document:
    cuts = sorted(rng.sample(range(len(TEXT) + 1), k=rng.choice([0, 2, 4, 6])))
    spans = [Span(a, b, rng.choice(LABELS)) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    rng.shuffle(spans)
    return document(document_id, *spans)


def test_boundaries_and_labels_are_judged_apart() -> None:
    """Boundary F1 ignores labels; label agreement and its kappa ignore spans whose boundaries differ."""
    left = [Span(0, 3, "DRUG"), Span(4, 13, "DRUG"), Span(14, 16, "PROCEDURE"), Span(17, 19, "PROCEDURE")]
    right = [Span(0, 3, "DRUG"), Span(4, 13, "PROCEDURE"), Span(14, 16, "PROCEDURE"), Span(17, 20, "PROCEDURE")]
    result = pair_agreement([document("1", *left)], [document("1", *right)], LABELS)
    assert (result.span_f1, result.boundary_f1, result.same_boundaries) == (0.5, 0.75, 3)
    assert result.label_agreement == 2 / 3
    assert result.label_kappa == pytest.approx(cohen_kappa_score(list("DDP"), list("DPP")))


def test_agreement_is_symmetric_and_blind_to_order() -> None:
    """On random annotations every figure stays when sides, documents or spans change places."""
    rng = random.Random(7)
    for _ in range(50):
        a, b = ([random_document(rng, i) for i in rng.sample("12345", k=4)] for _ in range(2))
        turned = [replace(one, spans=one.spans[::-1]) for one in reversed(a)]
        result = pair_agreement(a, b, LABELS)
        assert pair_agreement(b, a, LABELS) == pair_agreement(turned, b, LABELS) == result
        shared = {one.document_id for one in a} & {one.document_id for one in b}
        sides = [
            [one.spans for one in sorted(x, key=lambda d: d.document_id) if one.document_id in shared] for x in (a, b)
        ]
        assert (result.span_f1 or 0.0) == pytest.approx(strict(*sides, None).f1)


def test_all_pairs_at_once_are_the_pairs() -> None:
    """Reading the spans once for all changes no figure, also where notes are missing on some sides."""
    rng = random.Random(8)
    cells = {name: [random_document(rng, i) for i in rng.sample("12345", k=3)] for name in ("c", "a", "b")}
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    assert pair_agreements(cells, LABELS) == {
        (one, other): pair_agreement(cells[one], cells[other], LABELS) for one, other in pairs
    }


def test_spans_that_cannot_be_raise() -> None:
    """Overlaps and spans outside the text would be counted twice or not at all; both name the document."""
    for spans in ([Span(4, 13, "DRUG"), Span(12, 16, "PROCEDURE")], [Span(17, 99, "DRUG")], [Span(3, 3, "DRUG")]):
        with pytest.raises(ValueError, match="of 'b' in document '1'"):
            pair_agreement([document("1")], [document("1", *spans)], LABELS)
