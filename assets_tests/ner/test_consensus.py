"""Laws of the consensus of many annotators, on simulated notes whose truth is known."""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from estner_assets.ner.consensus import Consensus, ConsensusDocument, ConsensusSpan, consensus, fit_consensus
from estner_assets.ner.dependence import shared_votes
from estner_assets.ner.metrics import strict
from estner_assets.ner.spans import Document, Span

LABELS = ["DRUG", "PROCEDURE"]
TEXT = "x" * 500
METHODS = ["majority", "dawid_skene"]
PANEL = {"good": 0.92, "one": 0.78, "two": 0.75, "three": 0.72, "four": 0.68, "bad": 0.35}
"""How well each simulated annotator does; one good, several mediocre, one bad."""

SLOTS = range(0, 500, 25)
"""Where mentions can be: every 25 characters, so that different mentions never overlap."""


def simulated_truth(rng: random.Random, notes: int) -> list[Document]:
    def spans() -> tuple[Span, ...]:
        return tuple(Span(slot + 5, slot + 15, rng.choice(LABELS)) for slot in SLOTS if rng.random() < 0.5)

    return [Document(f"n{index:04}", TEXT, spans()) for index in range(notes)]


def simulated(rng: random.Random, truth: Sequence[Document], skill: float) -> list[Document]:
    """Annotate with misses, wrong labels, wrong boundaries and inventions, all rarer with more skill."""
    error = 1 - skill
    documents = []
    for note in truth:
        here = {span.start - 5: span for span in note.spans}
        found = []
        for slot in SLOTS:
            if slot not in here:
                if rng.random() < 0.3 * error:
                    found.append(Span(slot + 5, slot + rng.randint(12, 18), rng.choice(LABELS)))
            elif rng.random() < skill:
                label = rng.choice(LABELS) if rng.random() < 0.3 * error else here[slot].label
                longer = rng.randint(1, 5) if rng.random() < 0.6 * error else 0
                earlier = rng.randint(1, 3) if rng.random() < 0.3 * error else 0
                found.append(Span(slot + 5 - earlier, slot + 15 + longer, label))
        documents.append(Document(note.document_id, note.text, tuple(found)))
    return documents


def panel(seed: int, notes: int = 80) -> tuple[list[Document], dict[str, list[Document]]]:
    rng = random.Random(seed)
    truth = simulated_truth(rng, notes)
    return truth, {name: simulated(rng, truth, skill) for name, skill in PANEL.items()}


def near_copy(rng: random.Random, documents: Sequence[Document], share: float) -> list[Document]:
    """Drop or lengthen this share of the spans."""
    copied = []
    for document in documents:
        fate = [(span, rng.random()) for span in document.spans]
        spans = [span if draw >= share else replace(span, end=span.end + 1) for span, draw in fate if draw >= share / 2]
        copied.append(replace(document, spans=tuple(spans)))
    return copied


def f1(truth: Sequence[Document], found: Sequence[ConsensusDocument]) -> float:
    return strict([note.spans for note in truth], [note.document.spans for note in found], None).f1


def believed(result: Consensus) -> dict[tuple[str, int, int, str], float]:
    return {(d.document_id, s.start, s.end, s.label): s.confidence for d in result.documents for s in d.spans}


def marked(**spans: Sequence[Span]) -> Mapping[str, list[Document]]:
    return {name: [Document("1", TEXT, tuple(found))] for name, found in spans.items()}


def test_the_boundaries_are_those_that_most_marked() -> None:
    """Overlapping spans of a label are one candidate: all its voters count, the commonest boundaries win."""
    drug, longer = Span(5, 15, "DRUG"), Span(5, 18, "DRUG")
    cells = marked(a=[drug], b=[longer, Span(30, 35, "DRUG")], c=[drug], d=[Span(30, 35, "PROCEDURE")])
    (document,) = consensus(cells, LABELS, "majority", copies_share_votes=False)
    assert document == ConsensusDocument("1", TEXT, 4, (ConsensusSpan(5, 15, "DRUG", 0.75, 3, 2),))
    assert document.document == Document("1", TEXT, (Span(5, 15, "DRUG", 0.75),))


def test_a_chain_of_overlaps_is_cut() -> None:
    """A long span over two mentions hides neither: each span votes once, for the mention around its peak."""
    left, right = Span(5, 10, "DRUG"), Span(11, 15, "DRUG")
    cells = marked(a=[left, right], b=[Span(5, 15, "DRUG")], c=[left, right])
    spans = consensus(cells, LABELS, "majority", copies_share_votes=False)[0].spans
    assert [(s.start, s.end, s.votes, s.exact_votes) for s in spans] == [(5, 10, 3, 2), (11, 15, 2, 2)]
    # As copies, a and c have one vote together: against b's it is a tie, and the longer span is taken.
    assert consensus(cells, LABELS, "majority")[0].spans == (ConsensusSpan(5, 15, "DRUG", 1.0, 3, 1),)


def test_a_note_that_was_not_annotated_is_no_vote_against() -> None:
    """Two of two are unanimous, whoever did not see the note; two of three with a no are not."""
    span = Span(5, 15, "DRUG")
    cells = dict(marked(a=[span], b=[span, Span(30, 35, "DRUG")], c=[]))
    cells["d"] = [Document("2", TEXT, (span,))]
    for method in METHODS:
        first, second = consensus(cells, LABELS, method)
        assert [(s.start, s.votes) for s in first.spans] == [(5, 2)] and first.annotators == 3
        assert [(s.start, s.votes) for s in second.spans] == [(5, 1)] and second.annotators == 1
    assert consensus(cells, LABELS, "majority")[0].spans[0].confidence == pytest.approx(2 / 3)


@pytest.mark.parametrize("method", METHODS)
def test_order_is_irrelevant(method: str) -> None:
    """Annotators, notes and spans in another order, and annotators under other names, give the same result."""
    _, cells = panel(1)
    result = fit_consensus(cells, LABELS, method)
    turned = {name: [replace(d, spans=d.spans[::-1]) for d in cells[name][::-1]] for name in sorted(cells)[::-1]}
    assert fit_consensus(turned, LABELS, method) == result
    renamed = {name[::-1]: documents for name, documents in cells.items()}
    assert fit_consensus(renamed, LABELS, method).documents == result.documents


@pytest.mark.parametrize("method", METHODS)
def test_unanimous_spans_stay_and_nothing_overlaps(method: str) -> None:
    """What all who saw a note marked is in the result as they marked it; result spans are apart and someone's."""
    rng = random.Random(6)
    for seed in range(5):
        _, cells = panel(seed, notes=30)
        seen = {name: rng.sample(documents, k=18) for name, documents in cells.items()}
        notes: dict[str, list[set[Span]]] = {}
        for documents in seen.values():
            for document in documents:
                notes.setdefault(document.document_id, []).append(set(document.spans))
        result = consensus(seen, LABELS, method)
        for note in result:
            bare = {Span(span.start, span.end, span.label) for span in note.spans}
            assert set.intersection(*notes[note.document_id]) <= bare <= set.union(*notes[note.document_id])
            assert all(one.end <= two.start for one, two in zip(note.spans, note.spans[1:], strict=False))
            assert all(0 <= span.confidence <= 1 and 1 <= span.exact_votes <= span.votes for span in note.spans)
        assert [note.document_id for note in result] == sorted(notes)
        for note in consensus(seen, LABELS, method, threshold=1.0):
            bare = {Span(span.start, span.end, span.label) for span in note.spans}
            assert set.intersection(*notes[note.document_id]) <= bare
            assert all(span.votes == note.annotators for span in note.spans)


def test_a_majority_for_the_exact_span_decides() -> None:
    """With equal votes, every span that more than half marked exactly is in the result, and nothing against it."""
    _, cells = panel(2)
    odd = {name: cells[name] for name in ("one", "two", "three", "four", "bad")}
    result = {note.document_id: note for note in consensus(odd, LABELS, "majority", copies_share_votes=False)}
    for index, note in enumerate(odd["one"]):
        everything = [span for documents in odd.values() for span in documents[index].spans]
        wanted = {span for span in everything if everything.count(span) > 2}
        assert wanted <= {Span(s.start, s.end, s.label) for s in result[note.document_id].spans}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("copied", ["good", "two", "bad"])
def test_exact_copies_have_one_vote(method: str, copied: str) -> None:
    """Any number of copies of any annotator changes no span and no confidence, and shares the weight."""
    _, cells = panel(3)
    alone = fit_consensus(cells, LABELS, method)
    for copies in (1, 7):
        crowd = cells | {f"copy{index}": cells[copied] for index in range(copies)}
        result = fit_consensus(crowd, LABELS, method)
        assert believed(result) == pytest.approx(believed(alone), abs=1e-9)
        weight = {quality.annotator: quality.weight for quality in alone.annotators}
        assert {q.annotator: q.weight for q in result.annotators if q.annotator in PANEL} == pytest.approx(
            weight | {copied: weight[copied] / (1 + copies)}
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("copied", ["good", "bad"])
def test_near_copies_have_little_more_than_one_vote(method: str, copied: str) -> None:
    """Six copies that differ in 1 % of their spans change at most 2 % of the spans; with six votes they rule."""
    _, cells = panel(4)
    rng = random.Random(0)
    crowd = cells | {f"copy{index}": near_copy(rng, cells[copied], 0.01) for index in range(6)}
    alone = believed(fit_consensus(cells, LABELS, method))

    def moved(result: Consensus) -> float:
        other = believed(result)
        return 1 - 2 * len(alone.keys() & other.keys()) / (len(alone) + len(other))

    result = fit_consensus(crowd, LABELS, method)
    same = alone.keys() & believed(result).keys()
    assert moved(result) < 0.02
    assert np.mean([abs(alone[span] - believed(result)[span]) for span in same]) < 0.02
    if copied == "bad":
        assert moved(fit_consensus(crowd, LABELS, method, copies_share_votes=False)) > 0.2


def test_errors_in_common_share_a_vote_and_skill_does_not() -> None:
    """Independent annotators keep whole votes however good; two that share most errors lose some of theirs."""
    _, cells = panel(5)
    cells = cells | {"prompt": near_copy(random.Random(0), cells["two"], 0.2)}
    weight = {quality.annotator: quality.weight for quality in fit_consensus(cells, LABELS, "majority").annotators}
    assert all(weight[name] > 0.95 for name in PANEL if name != "two")
    assert weight["two"] == pytest.approx(weight["prompt"]) and 0.5 < weight["two"] < 0.65


@pytest.mark.parametrize("seed", range(6))
def test_dawid_skene_knows_who_is_good(seed: int) -> None:
    """It is at least as near to the truth as the majority and as anyone alone, and ranks the annotators rightly."""
    truth, cells = panel(seed)
    fitted = fit_consensus(cells, LABELS, "dawid_skene")
    score = f1(truth, fitted.documents)
    assert score >= f1(truth, consensus(cells, LABELS, "majority"))
    gold = [note.spans for note in truth]
    real = {name: strict(gold, [d.spans for d in documents], None).f1 for name, documents in cells.items()}
    assert score >= max(real.values())
    quality = {one.annotator: one.f1 for one in fitted.annotators}
    far = [(a, b) for a in PANEL for b in PANEL if PANEL[a] - PANEL[b] >= 0.05]
    assert all(real[a] > real[b] and quality[a] > quality[b] for a, b in far)


def test_votes_are_the_solution_of_their_equation() -> None:
    """The weights solve similarity × weights = 1 (of a tree), and what one did not annotate counts for the others."""
    similarity = np.array([[1, 0.8, 0.3, 0], [0.8, 1, 0.3, 0], [0.3, 0.3, 1, 0], [0, 0, 0, 1]])
    everyone, without = shared_votes(similarity, np.array([[1.0, 1, 1, 1], [0, 1, 1, 1]]))
    assert everyone == pytest.approx(np.linalg.solve(similarity, np.ones(4)))
    assert without == pytest.approx([0, *np.linalg.solve(similarity[1:, 1:], np.ones(3))])


@pytest.mark.parametrize("method", METHODS)
def test_nothing_marked_is_nothing_agreed(method: str) -> None:
    """Notes without spans come back without spans, and no annotators give no notes."""
    assert consensus(marked(a=[], b=[]), LABELS, method) == [ConsensusDocument("1", TEXT, 2, ())]
    assert consensus({}, LABELS, method) == []


def test_a_wrong_question_raises() -> None:
    """A method that is not there and a threshold that is no share are refused."""
    with pytest.raises(ValueError, match="median"):
        consensus({}, LABELS, "median")
    with pytest.raises(ValueError, match="threshold is 50"):
        consensus({}, LABELS, "majority", threshold=50)


@pytest.mark.parametrize("method", METHODS)
def test_many_cells_are_fast(method: str) -> None:
    """Ten cells of 2,000 notes with about 10 spans each take less than 3 s."""
    rng = random.Random(9)
    truth = simulated_truth(rng, 400)
    some = {f"a{index}": simulated(rng, truth, 0.5 + index / 25) for index in range(10)}
    cells = {
        name: [replace(d, document_id=f"{d.document_id}-{part}") for part in range(5) for d in documents]
        for name, documents in some.items()
    }
    began = time.process_time()
    result = consensus(cells, LABELS, method)
    assert time.process_time() - began < 3
    assert len(result) == 2000
