"""Choosing few-shot examples out of a pool, and what makes a pool fit to be shown.

``similar`` is retrieval of neighbours for in-context learning (J. Liu et al., What Makes Good In-Context Examples
for GPT-3?, 2022), with character trigrams instead of an encoder: they need no model and survive inflection.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from estner_assets.ner.grounding import Answered, GroundingStatus, ground
from estner_assets.ner.languages import Language
from estner_assets.ner.prompts import ExampleText

_N = 3


class ExamplePool:
    """Which texts of a pool are shown with each question.

    ``random`` draws ``count`` of them once, by ``seed``, and keeps the pool's order. ``similar`` takes for each
    note its ``count`` nearest ones, the nearest first. A pool of fewer gives all it has.
    """

    def __init__(self, texts: Sequence[str], choose: Literal["random", "similar"], count: int, seed: int) -> None:
        self._count = min(count, len(texts))
        self._index = TrigramIndex(texts) if choose == "similar" else None
        self._drawn = sorted(random.Random(seed).sample(range(len(texts)), self._count))

    def chosen(self, text: str) -> list[int]:
        """Return the places in the pool of the examples to show with a question about ``text``."""
        return self._index.nearest(text, self._count) if self._index else self._drawn


class TrigramIndex:
    """Texts by TF-IDF over their character trigrams, to find the nearest by cosine.

    Frequencies are 1 + ln(count), the inverse document frequency is ln((1 + n) / (1 + df)) + 1.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._size = len(texts)
        counts = [_trigrams(text) for text in texts]
        frequency = Counter(gram for one in counts for gram in one)
        self._idf = {gram: math.log((1 + self._size) / (1 + df)) + 1 for gram, df in frequency.items()}
        postings: dict[str, list[tuple[int, float]]] = {}
        for place, one in enumerate(counts):
            weights = self._weights(one)
            length = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
            for gram, weight in weights.items():
                postings.setdefault(gram, []).append((place, weight / length))
        self._places = {gram: np.array([place for place, _ in found]) for gram, found in postings.items()}
        self._values = {gram: np.array([value for _, value in found]) for gram, found in postings.items()}

    def nearest(self, text: str, count: int) -> list[int]:
        """Return the places of the ``count`` nearest texts, the nearest first, equally near ones by place."""
        # sorted: sums of equal terms must be equal to the last bit, or ties would not be ties
        weights = sorted(self._weights(_trigrams(text)).items())
        if not weights:
            return list(range(min(count, self._size)))
        places = np.concatenate([self._places[gram] for gram, _ in weights])
        values = np.concatenate([weight * self._values[gram] for gram, weight in weights])
        scores = np.bincount(places, values, minlength=self._size)
        return [int(place) for place in np.argsort(-scores, kind="stable")[:count]]

    def _weights(self, counts: Counter[str]) -> dict[str, float]:
        known = ((gram, count) for gram, count in counts.items() if gram in self._idf)
        return {gram: (1 + math.log(count)) * self._idf[gram] for gram, count in known}


def _trigrams(text: str) -> Counter[str]:
    folded = f" {_spaced(text).casefold()} "
    return Counter(folded[start : start + _N] for start in range(len(folded) - _N + 1))


def _spaced(text: str) -> str:
    return " ".join(text.split())


def ungrounded(example: ExampleText, language: Language) -> list[str]:
    """Return the mentions that do not stand in the example's text, each letter by letter and at its own place."""
    answered = [Answered(mention.label, mention.text) for mention in example.mentions]
    found = ground(example.text, answered, language)
    places = Counter(one.span for one in found)
    return [
        one.answered.text
        for one in found
        if one.status is not GroundingStatus.EXACT or one.answered.text not in example.text or places[one.span] > 1
    ]


def holding(texts: Sequence[str], gold: Sequence[str]) -> list[int]:
    """Return the places of the texts that are or contain a gold text, white space and case put aside.

    A gold note that a prompt shows with its answer would be no test any more.
    """
    shown = [_spaced(text).casefold() for text in texts]
    # no folded text has a line break, so that nothing is found across two of them
    everything = "\n".join(shown)
    present = [one for one in dict.fromkeys(_spaced(text).casefold() for text in gold) if one and one in everything]
    return [place for place, text in enumerate(shown) if any(one in text for one in present)]
