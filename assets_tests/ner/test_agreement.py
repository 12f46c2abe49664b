"""Laws of agreement."""

import random

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from estner_assets.ner.agreement import PairAgreement, cohen_kappa, pair_agreement
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
    assert pair_agreement([document("1")], [document("2")], LABELS) == PairAgreement(0, None, None)
    assert pair_agreement([document("1")], [document("1")], LABELS) == PairAgreement(1, None, None)
    marked = document("1", Span(4, 13, "DRUG"))
    assert pair_agreement([marked], [marked], LABELS) == PairAgreement(1, 1.0, 1.0)
    assert pair_agreement([marked], [document("1")], LABELS) == PairAgreement(1, 0.0, 0.0)
    assert cohen_kappa(np.array([[0, 0], [0, 5]])) is None


def test_spans_of_other_labels_do_not_count() -> None:
    """A disabled entity type changes nothing."""
    a = document("1", Span(4, 13, "DRUG"), Span(17, 19, "PROCEDURE"))
    assert pair_agreement([a], [document("1", Span(4, 13, "DRUG"))], ["DRUG"]) == PairAgreement(1, 1.0, 1.0)


def test_ids_that_do_not_identify_raise() -> None:
    """One id stands for one text, once on each side."""
    with pytest.raises(ValueError, match="two texts"):
        pair_agreement([document("1")], [document("1", text="muu")], LABELS)
    with pytest.raises(ValueError, match="given twice: 1;"):
        pair_agreement([document("1"), document("1")], [document("1")], LABELS)
