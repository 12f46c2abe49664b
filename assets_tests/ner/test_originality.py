import random
import time
import unicodedata

import pytest

from estner_assets.ner.originality import (
    Decision,
    OriginalityVerdict,
    Witness,
    decide,
    longest_common_runs,
    near_duplicates,
    unknown_shares,
    words_of,
)


def longest_run_by_table(left: list[str], right: list[str]) -> int:
    """The textbook dynamic programme: run lengths that end at each pair of words."""
    best, previous = 0, [0] * (len(right) + 1)
    for word in left:
        current = [0] * (len(right) + 1)
        for position, other in enumerate(right, start=1):
            if word == other:
                current[position] = previous[position - 1] + 1
        best, previous = max(best, *current), current
    return best


def some_words(rng: random.Random, letters: str, longest: int) -> str:
    return " ".join(rng.choice(letters) for _ in range(rng.randint(0, longest)))


@pytest.mark.parametrize("trial", range(300))
def test_longest_run_is_exact_and_its_witness_shows_it(trial: int):
    """On small alphabets the run is the pairwise table's; record and note read the same at the witness."""
    rng = random.Random(trial)
    letters = "abcd"[: rng.randint(1, 4)]
    notes = [(f"n{index}", some_words(rng, letters, 15)) for index in range(rng.randint(0, 6))]
    records = {f"r{index}": some_words(rng, letters, 25) for index in range(rng.randint(0, 6))}
    verdicts = longest_common_runs(notes, iter(records.items()))
    for (note_id, text), verdict in zip(notes, verdicts, strict=True):
        words = words_of(text)
        run = max((longest_run_by_table(words, words_of(record)) for record in records.values()), default=0)
        assert (verdict.note_id, verdict.longest_run_words, verdict.words) == (note_id, run, len(words))
        assert (verdict.witness is None) == (run == 0)
        if verdict.witness is not None:
            copied = words_of(records[verdict.witness.record_id])[verdict.witness.record_start :][:run]
            assert words[verdict.witness.note_start :][:run] == copied


def test_verdict_of_a_copied_passage():
    """Case, punctuation and line ends do not hide a copy; offsets count words from 0."""
    notes = [("s1", "Uus algus: patsient TARVITAB\nmetoprolooli, hommikul.")]
    records = [("r1", "muu"), ("r2", "Eile. Patsient tarvitab metoprolooli hommikul ja õhtul")]
    assert longest_common_runs(notes, records) == [OriginalityVerdict("s1", 4, 6, Witness("r2", 1, 2))]


def test_decomposed_letters_do_not_hide_a_copy():
    """A record in NFD and a note in NFC are compared as the same letters."""
    text = "südame löögisagedus õhtul"
    verdicts = longest_common_runs([("s1", text)], [("r1", unicodedata.normalize("NFD", text))])
    assert verdicts == [OriginalityVerdict("s1", 3, 3, Witness("r1", 0, 0))]


def test_runs_do_not_cross_notes_or_records():
    """A run ends where its note or its record ends."""
    verdicts = longest_common_runs([("s1", "a b"), ("s2", "c d")], [("r1", "a b c d"), ("r2", "x a"), ("r3", "b")])
    assert [(verdict.note_id, verdict.longest_run_words) for verdict in verdicts] == [("s1", 2), ("s2", 2)]


@pytest.mark.parametrize("records", [[], [("r1", "")], [("r1", "täiesti muu")]])
def test_nothing_in_common(records: list[tuple[str, str]]):
    """Without a common word the run is 0 and has no witness; a note without words has a verdict too."""
    assert longest_common_runs([("s1", "üks kaks"), ("s2", ""), ("s3", "...")], records) == [
        OriginalityVerdict("s1", 0, 2, None),
        OriginalityVerdict("s2", 0, 0, None),
        OriginalityVerdict("s3", 0, 0, None),
    ]


def test_no_notes():
    """No note, no verdict."""
    assert longest_common_runs([], [("r1", "a b")]) == []


def test_two_thousand_notes_against_two_hundred_thousand_words():
    """Time is linear in notes and records: this size takes under two seconds of a core."""
    rng = random.Random(0)
    phrases = [[f"s{rng.randrange(3000)}" for _ in range(8)] for _ in range(2000)]
    texts = [" ".join(word for _ in range(5) for word in rng.choice(phrases)) for _ in range(7000)]
    started = time.process_time()
    verdicts = longest_common_runs(
        [(f"n{index}", text) for index, text in enumerate(texts[:2000])],
        ((f"r{index}", text) for index, text in enumerate(texts[2000:])),
    )
    assert time.process_time() - started < 2
    assert min(verdict.longest_run_words for verdict in verdicts) >= 8


@pytest.mark.parametrize(
    ("run", "words", "unfinished", "duplicate", "drop_unfinished", "expected"),
    [
        (31, 40, True, True, True, (Decision.COPIED, "shares 31 words with record r0012, more than 20")),
        (9, 12, False, False, True, (Decision.COPIED, "shares 9 of its 12 words with record r0012, 75% or more")),
        (8, 8, False, False, True, (Decision.COPIED, "shares 8 of its 8 words with record r0012, 75% or more")),
        (20, 40, True, True, True, (Decision.UNFINISHED, "was cut off at the token limit before its end")),
        (
            20,
            40,
            True,
            False,
            False,
            (Decision.KEPT, "shares at most 20 words with any record, not more than 20"),
        ),
        (2, 4, False, True, True, (Decision.TOO_SHORT, "has 4 words, fewer than 5")),
        (2, 5, False, True, True, (Decision.DUPLICATE, "repeats an earlier synthetic note")),
        (
            2,
            5,
            False,
            False,
            True,
            (Decision.KEPT, "shares at most 2 words with any record, not more than 20"),
        ),
    ],
)
def test_decision_and_rule(
    run: int,
    words: int,
    unfinished: bool,
    duplicate: bool,
    drop_unfinished: bool,
    expected: tuple[Decision, str],
):
    """A copy is named first, whatever else is wrong; limits are inclusive; the rule says the numbers."""
    verdict = OriginalityVerdict("s1", run, words, Witness("r0012", 0, 0))
    assert decide(verdict, unfinished, duplicate, 20, 0.75, 5, drop_unfinished) == expected


def test_words_that_no_record_has_are_counted():
    """The share of unknown words: casing does not matter, words with digits do not count, nothing is 0."""
    notes = [("a", "EKG tehtud 12x"), ("b", "Pregabalmtsinoomi EKG tehtud, pabalm"), ("c", "140/90"), ("d", "")]
    assert unknown_shares(notes, [("r", "Tehtud ekg.")]) == {"a": 0.0, "b": 0.5, "c": 0.0, "d": 0.0}


def test_garbled_notes_are_dropped_beyond_the_limit():
    """The limit is inclusive, and a garbled note says how garbled it is."""
    verdict = OriginalityVerdict("s1", 2, 20, None)
    decided = [decide(verdict, False, False, 20, 0.75, 5, True, share, 0.1) for share in (0.1, 0.15)]
    assert decided == [
        (Decision.KEPT, "shares at most 2 words with any record, not more than 20"),
        (Decision.GARBLED, "15% of its words stand in no record, more than 10%"),
    ]


def test_equal_notes_are_duplicates_of_the_first():
    """Equality is by words; later copies name the first note, not the copy before them."""
    notes = [
        ("s1", "Lühike märge."),
        ("s2", "lühike märge"),
        ("s3", "lühike"),
        ("s4", "LÜHIKE; märge!"),
        ("s5", ""),
    ]
    assert near_duplicates(notes) == {"s2": "s1", "s4": "s1"}


def test_near_duplicates_share_nine_tenths_of_their_shingles():
    """Of 40 shingles 36 must be shared: a changed last word leaves 39, one in the middle 35."""
    words = [f"w{index}" for index in range(44)]
    tail, middle = [*words[:-1], "x"], [*words[:20], "x", *words[21:]]
    notes = [("s1", " ".join(words)), ("s2", " ".join(tail)), ("s3", " ".join(middle))]
    assert near_duplicates(notes) == {"s2": "s1"}


def test_near_duplicates_are_exact():
    """Comparing only notes that share a rare shingle finds what comparing all pairs finds."""
    rng = random.Random(0)
    texts = [[rng.choice("abc") for _ in range(rng.randint(0, 30))] for _ in range(150)]
    for source in range(150):
        copy = list(texts[source])
        copy[-rng.randint(1, 4) :] = ["z"]
        texts.append(copy)
    notes = [(f"s{index}", " ".join(words)) for index, words in enumerate(texts)]
    repeated = near_duplicates(notes)
    assert repeated == duplicates_by_pairs(notes)
    assert len(repeated) > 50


def duplicates_by_pairs(notes: list[tuple[str, str]]) -> dict[str, str]:
    kept: list[tuple[str, set[tuple[str, ...]]]] = []
    repeated: dict[str, str] = {}
    for note_id, text in notes:
        words = text.split()
        own = {tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4))}
        original = next((other for other, theirs in kept if len(own & theirs) >= 0.9 * len(own)), None)
        if original is None:
            kept.append((note_id, own))
        else:
            repeated[note_id] = original
    return repeated
