"""Foreign and Estonian spellings of the same name brought to one: ``ceftriaxone``, ``tseftriaksoon``."""

import re

VOWELS = "aeiouõäöü"

_SHORTEST_RESPELLED = 6
"""In a short word a long vowel makes another word: ``viin``, ``vin``."""

# the order matters: c before i and e is ts, every other c is k
_SPELLING = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        ("ch|ck|c(?![eiyü])", "k"),
        ("c", "ts"),
        ("x", "ks"),
        ("ph", "f"),
        ("th", "t"),
        ("qu", "kv"),
        ("y", "ü"),
        ("z", "s"),
        ("w", "v"),
        (rf"([{VOWELS}])\1", r"\1"),
    )
)
_FOREIGN = re.compile(rf"c|x|ph|th|qu|y|z|w|([{VOWELS}])\1")


def respelled(stem: str) -> str:
    """Return a long stem in Estonian letters with every vowel short; a short stem as it is.

    The rules are those by which international nonproprietary names are written in Estonian.
    """
    if not _FOREIGN.search(stem):
        return stem
    spelled = stem
    for pattern, new in _SPELLING:
        spelled = pattern.sub(new, spelled)
    return spelled if len(spelled) >= _SHORTEST_RESPELLED else stem
