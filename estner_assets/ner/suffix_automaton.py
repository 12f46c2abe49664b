"""A suffix automaton over numbers that remembers the longest match that streamed texts reached in each state.

Construction: Blumer et al., The smallest automaton recognizing the subwords of a text (1985). A state stands
for all substrings that end at the same places; its link leads to the state of their longest suffix that ends
elsewhere too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

ROOT = 0
NO_WORD = -1
"""Separates the automaton's texts, and stands for streamed words that it has not: it never matches."""

Match = tuple[int, str, int]
"""Length of a matched run in words, the streamed text's id, and the position of the run's last word in it."""

UNMATCHED: Match = (0, "", 0)


@dataclass
class SuffixAutomaton:
    """Lists by state; state 0 is the empty string, whose link is -1."""

    following: list[dict[int, int]] = field(default_factory=lambda: [{}])
    link: list[int] = field(default_factory=lambda: [-1])
    length: list[int] = field(default_factory=lambda: [0])
    matches: list[Match] = field(default_factory=lambda: [UNMATCHED])
    last: int = ROOT

    def extend(self, word: int) -> int:
        """Append a word and return the state of the whole text so far."""
        following, link, length = self.following, self.link, self.length
        new = self._add_state(length[self.last] + 1, ROOT, {})
        state, self.last = self.last, new
        while state != -1 and word not in following[state]:
            following[state][word] = new
            state = link[state]
        if state != -1:
            target = following[state][word]
            link[new] = target if length[target] == length[state] + 1 else self._split(state, word, target)
        return new

    def _add_state(self, length: int, link: int, following: dict[int, int]) -> int:
        self.length.append(length)
        self.link.append(link)
        self.following.append(following)
        self.matches.append(UNMATCHED)
        return len(self.length) - 1

    def _split(self, state: int, word: int, target: int) -> int:
        """Give ``target``'s shorter strings a state of their own, and return it."""
        following, link = self.following, self.link
        copy = self._add_state(self.length[state] + 1, link[target], following[target].copy())
        link[target] = copy
        while state != -1 and following[state].get(word) == target:
            following[state][word] = copy
            state = link[state]
        return copy

    def match(self, text_id: str, words: Sequence[int]) -> None:
        """Stream one text through and keep, in each state, the longest run that ended there.

        Words must be ``NO_WORD`` or words of the automaton.
        """
        following, link, length, matches = self.following, self.link, self.length, self.matches
        state, run = ROOT, 0
        for position, word in enumerate(words):
            if word == NO_WORD:
                state, run = ROOT, 0
                continue
            while word not in following[state]:
                state = link[state]
                run = length[state]
            state = following[state][word]
            run += 1
            if run > matches[state][0]:
                matches[state] = (run, text_id, position)

    def spread(self) -> None:
        """Make every state's match the longest matched suffix of its strings.

        Call it after the last ``match``. Upwards: what matched in a state also matched, whole, in the states
        of its shorter suffixes. Downwards: a state that nothing reached still ends in its nearest matched
        suffix.
        """
        by_length = sorted(range(1, len(self.length)), key=self.length.__getitem__)
        for state in reversed(by_length):
            parent = self.link[state]
            found, text_id, text_end = self.matches[state]
            if found and self.matches[parent][0] < self.length[parent]:
                self.matches[parent] = (self.length[parent], text_id, text_end)
        for state in by_length:
            if not self.matches[state][0]:
                self.matches[state] = self.matches[self.link[state]]
