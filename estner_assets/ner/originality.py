"""Is a synthetic note original, or did the generator learn a real note by heart?

For every synthetic note: the longest run of words that it shares with any record, exactly, with a witness.
The synthetic notes become one suffix automaton and the records stream through it once, so time is linear in
both and no record is kept.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from estner_assets.ner.suffix_automaton import NO_WORD, Match, SuffixAutomaton

WORD = re.compile(r"\w+")
SHINGLE_WORDS = 5


@dataclass(frozen=True)
class Witness:
    """Where the longest common run lies: offsets count words, from 0, in the record and in the note."""

    record_id: str
    record_start: int
    note_start: int


@dataclass(frozen=True)
class OriginalityVerdict:
    """The longest run of words that the note shares with any record; no witness where it is 0."""

    note_id: str
    longest_run_words: int
    words: int
    witness: Witness | None


class Decision(StrEnum):
    """What became of a synthetic note; everything but ``KEPT`` drops it."""

    KEPT = "kept"
    COPIED = "copied"
    UNFINISHED = "unfinished"
    TOO_SHORT = "too_short"
    GARBLED = "garbled"
    DUPLICATE = "duplicate"


def words_of(text: str) -> list[str]:
    r"""Return the casefolded runs of ``\w+`` of the text in NFC: decomposed letters hide no copy."""
    return [word.casefold() for word in WORD.findall(unicodedata.normalize("NFC", text))]


def longest_common_runs(
    notes: Sequence[tuple[str, str]], records: Iterable[tuple[str, str]]
) -> list[OriginalityVerdict]:
    """Return one verdict per note, in order; notes and records are pairs of id and text.

    ``records`` is read once and may be a stream. Of equally long runs the note's first one is the witness.
    """
    automaton = SuffixAutomaton()
    numbers: dict[str, int] = {}
    prefix_states: list[list[int]] = []
    for _, text in notes:
        words = [numbers.setdefault(word, len(numbers)) for word in words_of(text)]
        prefix_states.append([automaton.extend(word) for word in words])
        automaton.extend(NO_WORD)
    for record_id, text in records:
        automaton.match(record_id, [numbers.get(word, NO_WORD) for word in words_of(text)])
    automaton.spread()
    return [
        _verdict(note_id, [automaton.matches[state] for state in states])
        for (note_id, _), states in zip(notes, prefix_states, strict=True)
    ]


def _verdict(note_id: str, matches: list[Match]) -> OriginalityVerdict:
    longest, witness = 0, None
    for position, (length, record_id, record_end) in enumerate(matches):
        if length > longest:
            longest = length
            witness = Witness(record_id, record_end - length + 1, position - length + 1)
    return OriginalityVerdict(note_id, longest, len(matches), witness)


def decide(
    verdict: OriginalityVerdict,
    unfinished: bool,
    duplicate: bool,
    max_run_words: int,
    max_run_share: float,
    min_words: int,
    drop_unfinished: bool,
    unknown_share: float = 0.0,
    max_unknown_share: float = 1.0,
) -> tuple[Decision, str]:
    """Return the decision and its rule as a sentence; of several rules that drop a note, privacy's first."""
    run, words = verdict.longest_run_words, verdict.words
    if run > max_run_words and verdict.witness is not None:
        record_id = verdict.witness.record_id
        return Decision.COPIED, f"shares {run} words with record {record_id}, more than {max_run_words}"
    if verdict.witness is not None and run >= max_run_share * words:
        record_id = verdict.witness.record_id
        return (
            Decision.COPIED,
            f"shares {run} of its {words} words with record {record_id}, {max_run_share:.0%} or more",
        )
    if unfinished and drop_unfinished:
        return Decision.UNFINISHED, "was cut off at the token limit before its end"
    if words < min_words:
        return Decision.TOO_SHORT, f"has {words} words, fewer than {min_words}"
    if unknown_share > max_unknown_share:
        return (
            Decision.GARBLED,
            f"{unknown_share:.0%} of its words stand in no record, more than {max_unknown_share:.0%}",
        )
    if duplicate:
        return Decision.DUPLICATE, "repeats an earlier synthetic note"
    return Decision.KEPT, f"shares at most {run} words with any record, not more than {max_run_words}"


def unknown_shares(notes: Sequence[tuple[str, str]], records: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Return, for each note, the share (0..1) of its words that stand in no record; words with digits do not count.

    A small language model puts sub-words together that make no word. Such notes teach a tagger wrong things.
    """
    known: set[str] = set()
    for _, text in records:
        known.update(words_of(text))
    shares: dict[str, float] = {}
    for note_id, text in notes:
        words = [word for word in words_of(text) if not any(letter.isdigit() for letter in word)]
        shares[note_id] = sum(word not in known for word in words) / len(words) if words else 0.0
    return shares


def near_duplicates(notes: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return, for each synthetic note that repeats an earlier one, that earlier note's id.

    A note repeats another when at least 90 % of its shingles (runs of five words) stand in the other; a note
    of fewer words is one shingle. The earlier note is the first such one that repeats none itself. Exact: the
    rarest shingles, of which a repetition must share one, choose whom to compare with.
    """
    shingles = [_shingles(words_of(text)) for _, text in notes]
    frequency = Counter(shingle for own in shingles for shingle in own)
    holders: defaultdict[_Shingle, list[int]] = defaultdict(list)
    repeated: dict[str, str] = {}
    for index, own in enumerate(shingles):
        needed = -(-len(own) * 9 // 10)
        rarest = sorted(own, key=lambda shingle: (frequency[shingle], shingle))[: len(own) - needed + 1]
        rivals = sorted({rival for shingle in rarest for rival in holders.get(shingle, ())})
        original = next((rival for rival in rivals if len(own & shingles[rival]) >= needed), None)
        if original is not None:
            repeated[notes[index][0]] = notes[original][0]
            continue
        for shingle in own:
            holders[shingle].append(index)
    return repeated


_Shingle = tuple[str, ...]


def _shingles(words: Sequence[str]) -> frozenset[_Shingle]:
    starts = range(max(len(words) - SHINGLE_WORDS + 1, 1))
    return frozenset(tuple(words[start : start + SHINGLE_WORDS]) for start in starts)
