"""Misspelled words: few wrong letters in many, in any form of the word, and never in a short word."""

from rapidfuzz.distance import OSA

from estner_assets.ner.languages import Language

_SHORTEST_MISSPELLED = 6
_LONGEST_ENDING = 6
_LONGEST_STEM_VOWEL = 3


def similarity(answered: str, word: str, language: Language) -> float:
    """Return 1 for the same word, else 1 minus the share of wrong letters, or 0 where they are too many."""
    if language.same_word(answered, word):
        return 1.0
    if len(answered) < _SHORTEST_MISSPELLED or abs(len(answered) - len(word)) > _LONGEST_ENDING:
        return 0.0
    ones = [stem for stem in language.stems(answered) if len(stem) > len(answered) - _LONGEST_STEM_VOWEL]
    pairs = [(answered, word), *((one, other) for one in ones for other in language.stems(word))]
    return max(_near(one, other) for one, other in pairs)


def _near(one: str, other: str) -> float:
    length = min(len(one), len(other))
    bound = 0 if length < _SHORTEST_MISSPELLED else 1 if length < 11 else 2 if length < 16 else 3
    distance = OSA.distance(one, other, score_cutoff=bound)
    # another beginning is more often another word than a slip
    if distance > bound or (one[0] != other[0] and (distance > 1 or length < 8)):
        return 0.0
    return 1.0 - distance / max(len(one), len(other))
