"""The rule-based annotator and the term list of the demo."""

from collections import Counter
from pathlib import Path

import pytest

from estner_assets.ner.languages import Language, language
from estner_assets.ner.lexicon import Lexicon, LexiconError, Term
from estner_assets.ner.spans import check_spans

ET = language("et")
TERMS = Path(__file__).parents[2] / "data" / "demo" / "lexicon" / "terms.tsv"

ORDINARY_WORDS = """
patsient kaebused valu köha palavik vererõhk pulss süda kopsud maks neerud soolestik veri uriin analüüs
uuring operatsioon ravi protseduur visiit vastuvõtt arst õde haigla kodu töö ema isa laps tütar poeg aasta
kuu päev nädal hommik õhtu öö hea halb uus vana suur väike parem vasak käsi jalg selg kõht pea silm kõrv
nina suu nahk lõik test koormus koormuse hingamise kõne meri abi tee kagu pet asal kts-na võtab tablett
kapsel süst salv annus allergia kreatiniin kolesterool albumiin kortisool protrombiin glükoos kaalium
naatrium hemogramm CRV TSH PSA hapnik statiin
"""


@pytest.fixture(scope="module")
def demo() -> Lexicon:
    return Lexicon.read(TERMS, ET)


def _found(lexicon: Lexicon, text: str) -> list[tuple[str, str]]:
    spans = lexicon.annotate(text)
    assert check_spans(text, spans) == spans
    return [(span.text_in(text), span.label) for span in spans]


@pytest.mark.parametrize(
    ("text", "drugs", "procedures"),
    [
        (
            "Jätkab metoproloolravi ja Tbl Enap'i 10 mg, kolesterool 5,2.",
            ["metoproloolravi", "Enap'i"],
            [],
        ),
        (
            "Sai keemia- ja kiiritusravi, herceptin-ravi, seejärel tamoksifeeniga.Allergia puudub.",
            ["herceptin-ravi", "tamoksifeeniga"],
            ["keemia-", "kiiritusravi"],
        ),
        (
            "Kõhu UH-l norm. Rindkere röntgenülesvõttel infiltraat, KT-s kolle, ekg muutuseta.",
            [],
            ["Kõhu UH-l", "Rindkere röntgenülesvõttel", "KT-s", "ekg"],
        ),
        (
            "Insuliinsõltuv, insuliiniga; keemiaravijärgne; perindopriil/amlodipiini, Ceftriaxoni 2 g.",
            ["insuliiniga", "perindopriil", "amlodipiini", "Ceftriaxoni"],
            [],
        ),
        ("Kõhukoopa UH-uuringul ja UH-uuringul", [], ["Kõhukoopa UH-uuringul", "UH-uuringul"]),
        ("KONTROLLITUD EKG, KT07.05 ja koormus-EKG-d", [], ["EKG", "KT", "koormus-EKG-d"]),
    ],
)
def test_notes(demo: Lexicon, text: str, drugs: list[str], procedures: list[str]) -> None:
    """Terms are found as whole words with their endings, the longest first; other words stay unmarked."""
    expected = [*((drug, "DRUG") for drug in drugs), *((name, "PROCEDURE") for name in procedures)]
    assert sorted(_found(demo, text)) == sorted(expected)


@pytest.mark.parametrize("word", ORDINARY_WORDS.split())
def test_ordinary_words_are_not_marked(demo: Lexicon, word: str) -> None:
    """Neither ordinary words nor laboratory values nor general words of medicine are marked."""
    assert _found(demo, f"{word.capitalize()} on {word}.") == []


def test_every_term_of_the_list_is_found(demo: Lexicon) -> None:
    """A term alone is marked whole, with its label, and no term stands twice in the list."""
    rows = [tuple(line.split("\t")) for line in TERMS.read_text(encoding="utf-8").splitlines()[1:]]
    assert [row for row in rows if _found(demo, row[1]) != [(row[1], row[0])]] == []
    assert [text for text, count in Counter(text.casefold() for _, text in rows).items() if count > 1] == []
    assert {label for label, _ in rows} == {"DRUG", "PROCEDURE"}


def test_longest_match_wins() -> None:
    """Where terms overlap the longest stays, whatever the order of the list."""
    terms = [Term("DRUG", "UH"), Term("PROCEDURE", "kõhu UH"), Term("DRUG", "kõhu")]
    expected = [("kõhu UH", "PROCEDURE"), ("UH", "DRUG")]
    for order in (terms, terms[::-1]):
        assert _found(Lexicon(order, ET), "kõhu UH, UH") == expected


def test_abbreviations_keep_their_case() -> None:
    """An abbreviation in lower case stands alone or with a marked ending; else it is another word."""
    lexicon = Lexicon([Term("DRUG", "ASA")], ET)
    found = [word for word in ("ASA", "ASAt", "ASA-d", "asa", "asa-d", "asal", "Asal") if lexicon.annotate(word)]
    assert found == ["ASA", "ASAt", "ASA-d", "asa", "asa-d"]


class _Counting:
    """Estonian that counts how often it is asked."""

    code = "et"

    def __init__(self, rules: Language) -> None:
        self.rules = rules
        self.questions = 0

    def same_word(self, answered: str, word: str) -> bool:
        self.questions += 1
        return self.rules.same_word(answered, word)

    def stems(self, word: str) -> frozenset[str]:
        self.questions += 1
        return self.rules.stems(word)

    def compound_head(self, answered: str, word: str) -> bool:
        self.questions += 1
        return self.rules.compound_head(answered, word)


def test_cost_is_linear_in_the_text_and_free_of_the_list() -> None:
    """Twice the text asks twice the questions; terms that are not in the text cost nothing."""
    text = "Sai keemia- ja kiiritusravi, metoprolooliga jätkata, EKG norm. "
    terms = [Term("DRUG", "metoprolool"), Term("PROCEDURE", "kiiritusravi"), Term("PROCEDURE", "EKG")]

    def questions(listed: list[Term], note: str) -> int:
        counting = _Counting(ET)
        lexicon = Lexicon(listed, counting)
        counting.questions = 0
        lexicon.annotate(note)
        return counting.questions

    more = [*terms, *(Term("DRUG", f"zq{number}foobarol") for number in range(500))]
    once = questions(terms, text)
    assert (questions(terms, text * 20), questions(more, text)) == (20 * once, once)


def test_a_word_without_end_is_cheap() -> None:
    """Text that is no text, one word of 50,000 letters, is read without marking anything."""
    lexicon = Lexicon([Term("DRUG", "aaaa"), Term("DRUG", "aaaaaaa")], ET)
    assert lexicon.annotate("b" * 50_000 + "-aaab" * 10_000) == ()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "line 1: expected the header label<tab>term"),
        ("DRUG\tEnap\n", "line 1: expected the header label<tab>term"),
        (
            "label\tterm\nDRUG\tEnap\nDRUG Concor\n",
            "line 3: expected a label, a tab and a term, found 'DRUG Concor'",
        ),
        ("label\tterm\nDRUG\t \n", "line 2: expected a label, a tab and a term, found 'DRUG\\t '"),
        (
            "label\tterm\n\nDRUG\t...\n",
            "line 3: a term without any letter or digit cannot be found; remove it",
        ),
    ],
)
def test_a_wrong_list_is_named_with_its_line(tmp_path: Path, content: str, problem: str) -> None:
    """An error names the file, the line and what was expected there."""
    path = tmp_path / "terms.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(LexiconError) as error:
        Lexicon.read(path, ET)
    assert str(error.value) == f"{path}, {problem}"


def test_quotes_and_order_of_a_list_are_plain_text(tmp_path: Path) -> None:
    """A lone quotation mark swallows no line."""
    path = tmp_path / "terms.tsv"
    path.write_text('label\tterm\nDRUG\t"Enap\nDRUG\tConcor\n', encoding="utf-8")
    assert _found(Lexicon.read(path, ET), "Concorit, Enapi") == [("Concorit", "DRUG"), ("Enapi", "DRUG")]
