"""Estonian nouns and adjectives by suffix rules, not a dictionary: new drug names inflect like old ones.

A form is reduced in two steps: case and number endings come off (``-dega``, ``-sse``), then what is left is
brought to one key for all stems of a lexeme (stem vowel, gradation, ``-ne : -se``, ``-er : -ri``). Classes
and endings are those of any Estonian grammar (M. Erelt et al., Eesti keele käsiraamat, part Morfoloogia).
"""

import re
from functools import lru_cache

from estner_assets.ner.languages.et_spelling import VOWELS, respelled
from estner_assets.ner.languages.et_words import FUNCTION_WORDS, UNITS

_CASES = ("sse", "st", "s", "le", "lt", "l", "ks", "ni", "na", "ta", "ga")
_AFTER_VOWEL = (
    *_CASES,
    *(number + case for number in ("de", "te") for case in ("", *_CASES)),
    *("i" + case for case in ("sse", "st", "s", "le", "lt", "l", "ks")),
    *("sid", "id", "d", "t"),
)
_AFTER_CONSONANT = ("t", *("te" + case for case in ("", *_CASES)))
_STEMVOWELS = ("", "i", "e", "u", "a")
_AFTER_MARK = frozenset(vowel + ending for vowel in _STEMVOWELS for ending in ("", *_AFTER_VOWEL)) - {""}
"""Endings behind a hyphen or an apostrophe: ``KT-s``, ``EKG-d``, ``Enap'iga``."""
_ENDINGS = tuple(sorted({*_AFTER_VOWEL, *_AFTER_CONSONANT}, key=len, reverse=True))

# abbreviations take endings without a mark, too: KTs, EKGga. No other word ends like these
_ABBREVIATION = re.compile(rf"[^{VOWELS}]{{2,5}}|[a-zõäöüšž]{{1,4}}[ghcxf]|[a-zõäöüšž]{{0,3}}[^{VOWELS}]{{3}}")
_SHORTEST = 3
_SHORTEST_CONSONANT_STEM = 4
_LONGEST_STEM_VOWEL = 2

_IRREGULAR = {
    "selja": "selg",
    "külje": "külg",
    "jala": "jalg",
    "käe": "käsi",
    "südame": "süda",
    "koe": "kude",
    "sideme": "side",
    "vee": "vesi",
    "õla": "õlg",
    "lõua": "lõug",
    "tõve": "tõbi",
    "toe": "tugi",
    "mähise": "mähe",
    "varre": "vars",
    "kätt": "käsi",
    "südant": "süda",
    "selgroo": "selgroog",
}
_IRREGULAR_END = re.compile("(?:" + "|".join(sorted(_IRREGULAR, key=len, reverse=True)) + ")$")

_HARD = str.maketrans("bdg", "ptk")
_SYNCOPE = re.compile(rf"(?<=[^{VOWELS}])e(?=[rl]$)")
_TAIL_CONSONANT = re.compile(rf"(?<=[^{VOWELS}])[jm]$")
_LOST_STOP = {"nn": "t", "ll": "t", "rr": "t", "mm": "p"}

_HEADS = (
    "ravi teraapia kuur süst süste süstimine infusioon tablett kapsel pump plaaster salv kreem geel "
    "tilk lahus siirup pulber küünal aerosool sprei doos annus preparaat ampull inhalaator skeem "
    "manustamine tilguti sulfaat suktsinaat tartraat naatrium kaalium kaltsium kloriid hüdrokloriid "
    "vesinikkloriid tsitraat besülaat fumaraat maleaat mesülaat fosfaat atsetaat dipropionaat furoaat "
    "propionaat mononitraat dinitraat karbonaat uuring ülesvõte pilt test proov seanss tsükkel "
    "monitooring operatsioon lõikus protseduur biopsia punktsioon tomograafia angiograafia kontroll "
    "analüüs blokaad plastika eemaldamine paigaldamine proteesimine siirdamine stentimine "
    "kateteriseerimine rekonstruktsioon resektsioon"
)
_NOT_A_HEAD = re.compile("järg|eel|aeg|sõltu|tundli|resisten|positiiv|negatiiv|sarna|taoli|laad|vaba|vastunäidus")
"""Adjectives that make no compound of this kind: ``keemiaravi-järgne`` is no chemotherapy."""
_MARK = re.compile("[-'+]")


def _forms(word: str) -> tuple[str, ...]:
    """Return the word and what is left of it when each possible ending is taken off."""
    found = {word: None}
    base, mark, tail = word.rpartition("-") if "-" in word else word.rpartition("'")
    if mark and tail in _AFTER_MARK and len(base) > 1:
        found[base] = None
    plain = word.removesuffix("gi").removesuffix("ki")
    if len(plain) > _SHORTEST_CONSONANT_STEM:
        found[plain] = None
    for ending in _ENDINGS:
        if plain.endswith(ending) and _is_stem(plain[: -len(ending)], ending):
            found[plain[: -len(ending)]] = None
    return tuple(found)


def _is_stem(stem: str, ending: str) -> bool:
    if stem[-1:] in VOWELS:
        return ending in _AFTER_VOWEL and len(stem) >= _SHORTEST
    if _ABBREVIATION.fullmatch(stem):
        return ending in _AFTER_VOWEL
    # keemilis-t, lõikus-te, keel-t
    return ending in _AFTER_CONSONANT and len(stem) >= _SHORTEST_CONSONANT_STEM and stem[-1] in "slnr"


def _key(stem: str) -> str:
    """Bring nominative, genitive and partitive stems of a lexeme to one string."""
    irregular = _IRREGULAR_END.search(stem)
    if irregular:
        stem = stem[: irregular.start()] + _IRREGULAR[irregular.group()]
    if len(stem) > _SHORTEST and stem[-1] in VOWELS and stem[-2] not in VOWELS:
        stem = stem[:-1]
        stem = _TAIL_CONSONANT.sub("", stem) if len(stem) > _SHORTEST else stem
    stem = _SYNCOPE.sub("", stem) if len(stem) > _SHORTEST_CONSONANT_STEM else stem
    if len(stem) > 1 and stem[-1] == stem[-2] and stem[-1] not in VOWELS:
        stem = stem[:-1]
    return stem[:-1] + stem[-1:].translate(_HARD)


@lru_cache(maxsize=65_536)
def _keys(stem: str) -> frozenset[str]:
    """Return the keys of one stem: the regular one and those of the classes that it may belong to."""
    plain = stem.replace("-", "").replace("'", "") or stem
    found = [_key(plain)]
    if len(plain) > 4 and plain.endswith("ne") and plain[-3] in VOWELS:
        found.append(_key(plain[:-2] + "se"))
    if len(plain) > 3 and plain[-1] in VOWELS:
        lost = _LOST_STOP.get(plain[-3:-1])
        if lost:
            found.append(plain[:-2] + lost)
        if plain[-2] == "h":
            found.extend((plain[:-1] + "t", plain[:-1] + "k"))
    return frozenset(respelled(key) for key in found)


@lru_cache(maxsize=65_536)
def _stems(word: str) -> frozenset[str]:
    return frozenset().union(*map(_keys, _forms(word)))


@lru_cache(maxsize=1)
def _head_keys() -> frozenset[str]:
    return frozenset().union(*map(_keys, _HEADS.split()))


@lru_cache(maxsize=65_536)
def _is_head(rest: str) -> bool:
    return not _NOT_A_HEAD.match(rest) and not _head_keys().isdisjoint(_stems(rest))


class Estonian:
    """The rules; without state, the caches are the module's."""

    code = "et"
    function_words = FUNCTION_WORDS
    units = UNITS

    def same_word(self, answered: str, word: str) -> bool:
        return answered == word or not _stems(answered).isdisjoint(_stems(word))

    def stems(self, word: str) -> frozenset[str]:
        return _stems(word)

    def compound_head(self, answered: str, word: str) -> bool:
        """A solid compound needs a known last part (``-ravi``); behind a hyphen any noun may stand."""
        for mark in _MARK.finditer(word):
            if mark.start() > len(answered) + _LONGEST_STEM_VOWEL:
                break
            first, rest = word[: mark.start()], word[mark.end() :]
            if rest not in _AFTER_MARK and self._is_first_part(answered, first):
                return not _NOT_A_HEAD.match(rest)
        return self._is_solid_compound(answered, word)

    def _is_first_part(self, answered: str, part: str) -> bool:
        """A first part stands in the nominative or the genitive, so its ending stays on."""
        return not _keys(part).isdisjoint(_stems(answered))

    def _is_solid_compound(self, answered: str, word: str) -> bool:
        start = max(2, len(answered) - 2)
        if word[:start] != answered[:start]:
            return False
        splits = range(start, min(len(answered) + 3, len(word) - 2))
        return any(_is_head(word[at:]) and self._is_first_part(answered, word[:at]) for at in splits)
