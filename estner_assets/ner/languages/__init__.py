"""What has to be known of a language to find a word in another form: inflection, stems, compounds."""

from functools import lru_cache
from typing import Protocol

from rapidfuzz.distance import Levenshtein

from estner_assets.ner.languages.et import Estonian


class Language(Protocol):
    """All words are folded single words, see ``words.fold``."""

    code: str
    function_words: frozenset[str] = frozenset()
    """Words, in lower case, that no entity consists of: an entity of these alone would not be found."""
    units: frozenset[str] = frozenset()
    """Units of measurement and dose, in lower case."""

    def same_word(self, answered: str, word: str) -> bool:
        """Tell whether one is an inflected form of the other, or both are of a third."""
        ...

    def stems(self, word: str) -> frozenset[str]:
        """Return the keys to index by; whatever is ``same_word`` has a key in common."""
        ...

    def compound_head(self, answered: str, word: str) -> bool:
        """Tell whether ``word`` is a compound that starts with ``answered``: ``insuliinravi``."""
        ...


class UnknownLanguage:
    """A language without rules: a common beginning, then at most a few other letters at the end."""

    function_words: frozenset[str] = frozenset()
    units: frozenset[str] = frozenset()
    _ENDING = 3
    _SHORTEST_STEM = 4

    def __init__(self, code: str) -> None:
        self.code = code

    def same_word(self, answered: str, word: str) -> bool:
        if answered == word:
            return True
        bound = min(self._ENDING, min(len(answered), len(word)) // 3)
        near = Levenshtein.distance(answered, word, score_cutoff=bound) <= bound
        return near and not self.stems(answered).isdisjoint(self.stems(word))

    def stems(self, word: str) -> frozenset[str]:
        shortest = min(len(word), max(self._SHORTEST_STEM, len(word) - self._ENDING))
        return frozenset(word[:end] for end in range(shortest, len(word) + 1))

    def compound_head(self, answered: str, word: str) -> bool:
        return word.startswith(f"{answered}-") and len(word) > len(answered) + 1


@lru_cache(maxsize=16)
def language(code: str) -> Language:
    """Return the rules for an ISO 639-1 code; bounded edit distance where there are none."""
    return Estonian() if code == "et" else UnknownLanguage(code)
