"""Estonian inflection by rule, and the bounded guess for languages without rules."""

import pytest

from estner_assets.ner.languages import language
from estner_assets.ner.languages.words import coordinates, fold, words

ET = language("et")

FORMS = {
    "tamoksifeen": "tamoksifeeni tamoksifeeniga tamoksifeenita tamoksifeenist tamoksifeenide tamoksifeene",
    "tamoxifen": "tamoxifeni tamoxifeniga tamoksifeeniga",
    "metotreksaat": "metotreksaadi metotreksaati metotreksaadiga metotreksaate methotrexate",
    "tseftriaksoon": "tseftriaksooni ceftriaxone ceftriaxoni tseftriaksoonile",
    "atsetüülsalitsüülhape": "atsetüülsalitsüülhappe atsetüülsalitsüülhapet atsetüülsalitsüülhappega",
    "enap": "enapi enap'i enapiga enap-i",
    "xarelto": "xareltot xareltoga xarelto't",
    "eliquis": "eliquise eliquist eliquisega",
    "biopsia": "biopsiat biopsiaid biopsiate biopsiatest biopsias biopsiaga biopsiatki",
    "sektorresektsioon": "sektorresektsiooni sektorresektsioonide sektorresektsioonist",
    "ülesvõte": "ülesvõtte ülesvõttel ülesvõtet ülesvõtteid ülesvõtetel",
    "eemaldamine": "eemaldamise eemaldamist eemaldamisega eemaldamiste eemaldamisi",
    "keemiline": "keemilise keemilist keemilistel keemilisi",
    "lõikus": "lõikuse lõikust lõikustel lõikusi",
    "kateeter": "kateetri kateetrit kateetritega kateetreid",
    "stent": "stendi stenti stendid stente stentidega",
    "kilpnääre": "kilpnäärme kilpnäärmes kilpnääret",
    "lülisammas": "lülisamba lülisammast lülisambas",
    "emakas": "emaka emakat emakast",
    "rind": "rinna rinda rinnas",
    "kõht": "kõhu kõhtu kõhus",
    "südame": "südamega südamest",
    "kt": "kt-s kt-d kts kt-ga kt-le",
    "ekg": "ekg-d ekgd ekg-ga ekgs ekg-sid",
    "fgds": "fgds-il fgdsil fgds-i",
}

OTHER_WORDS = """
ravi ravim|ravi ravimit|insuliin insult|insuliin insulti|koloskoopia koloskoop|füsioteraapia füsioterapeut
prednisoloon prednisoon|enalapriil ramipriil|kops op|dialüüs dialüsaator|uuring uurija|spirograafia spirograaf
biopsia biomass|stent steen|metoprolool bisoprolool|kt kat|ekg eks|keemiaravi keemia|uroloog urograafia
"""


@pytest.mark.parametrize("lemma", FORMS)
def test_forms_belong_to_their_word(lemma: str) -> None:
    """A form is the same word as its lemma, in whichever direction one asks."""
    forms = FORMS[lemma].split()
    found = [form for form in forms if ET.same_word(lemma, form) and ET.same_word(form, lemma)]
    assert found == forms


@pytest.mark.parametrize("pair", OTHER_WORDS.replace("\n", "|").strip("|").split("|"))
def test_other_words_stay_other_words(pair: str) -> None:
    """Words that only look alike are not forms of each other."""
    one, other = pair.split()
    assert (ET.same_word(one, other), ET.same_word(other, one)) == (False, False)


@pytest.mark.parametrize("code", ["et", "xx"])
def test_same_words_share_a_stem(code: str) -> None:
    """Whatever is the same word is found through the index of stems."""
    rules = language(code)
    everything = [word for lemma, forms in FORMS.items() for word in (lemma, *forms.split())]
    pairs = [(one, other) for one in everything for other in everything if rules.same_word(one, other)]
    assert [pair for pair in pairs if rules.stems(pair[0]).isdisjoint(rules.stems(pair[1]))] == []
    assert len(pairs) > len(everything)


@pytest.mark.parametrize(
    ("answered", "word", "expected"),
    [
        ("insuliin", "insuliinravi", True),
        ("insuliin", "insuliiniravile", True),
        ("herceptin", "herceptin-raviga", True),
        ("metoprolool", "metoproloolsuktsinaati", True),
        ("röntgen", "röntgenülesvõttel", True),
        ("kt", "kt-uuringul", True),
        ("perindopriil", "perindopriil+amlodipiin", True),
        ("kt", "kt-s", False),
        ("ravi", "ravim", False),
        ("insuliin", "insuliinsõltuv", False),
        ("keemiaravi", "keemiaravijärgne", False),
        ("keemiaravi", "keemiaravi-järgne", False),
        ("op", "opereeritud", False),
        ("insuliin", "insuliin", False),
    ],
)
def test_compounds(answered: str, word: str, expected: bool) -> None:
    """A compound starts with the mention and ends in a noun that leaves it what it is."""
    assert ET.compound_head(answered, word) is expected


@pytest.mark.parametrize(
    ("answered", "word", "expected"),
    [
        ("metoprolol", "metoprolols", True),
        ("metoprolol", "metoprololia", True),
        ("biopsija", "biopsijas", True),
        ("metoprolol", "bisoprolol", False),
        ("ct", "cts", False),
        ("ct", "cat", False),
    ],
)
def test_language_without_rules(answered: str, word: str, expected: bool) -> None:
    """Without rules a form has the same beginning and few other letters at its end."""
    assert language("lv").same_word(answered, word) is expected


def test_language_without_rules_knows_hyphen_compounds() -> None:
    """Without rules only a hyphen shows a compound."""
    rules = language("lv")
    assert [rules.compound_head("ct", word) for word in ("ct-scan", "ctscan", "ct-")] == [True, False, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("raviga.Allergia puudub", ["raviga", "Allergia", "puudub"]),
        ("hea.uuring", ["hea", "uuring"]),
        ("KT07.05.2019 Enap10mg", ["KT", "07.05.2019", "Enap", "10mg"]),
        ("B12, ca15-3 (norm)", ["B12", "ca15-3", "norm"]),
        ("Enap'i herceptin-ravi 2,5 Noliprel+", ["Enap'i", "herceptin-ravi", "2,5", "Noliprel"]),
        ("KT/MRT perindopriil+amlodipiin", ["KT", "MRT", "perindopriil+amlodipiin"]),
        ("-- . ` [", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    """Words keep inner hyphens, apostrophes, decimals and plus signs; a full stop between letters splits."""
    assert [text[word.start : word.end] for word in words(text)] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("keemia- ja kiiritusravi", [("keemia-", "kiiritusravi")]),
        ("keemia-, bio-, hormoonravi", [("keemia-", "hormoonravi"), ("bio-", "hormoonravi")]),
        ("gastro-/koloskoopia", [("gastro-", "koloskoopia")]),
        ("Enap- 5 mg, Concor", []),
        ("keemia- Ravi", []),
        ("keemia-", []),
    ],
)
def test_coordinates(text: str, expected: list[tuple[str, str]]) -> None:
    """A hyphen before a conjunction, comma or slash stands for the last member's tail, no other hyphen."""
    found = words(text)
    pairs = [(text[found[c.index].start : c.end], c.carrier) for c in coordinates(text, found)]
    assert pairs == expected


def test_fold() -> None:
    """Hyphens, apostrophes, case and composition make no difference."""
    assert fold("KT\u2011S\u2019 O\u0308\u00ad") == "kt-s' ö"
