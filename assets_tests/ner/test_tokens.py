"""Laws of the tokeniser."""

import json
import random
import time
from pathlib import Path

import pytest

from estner_assets.ner.tokens import Token, tokenize

GOLD = Path(__file__).parents[2] / "data/demo/gold/gold.jsonl"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raviga.Allergia", ["raviga", ".", "Allergia"]),
        ("5mg", ["5", "mg"]),
        ("RR140/90", ["RR", "140", "/", "90"]),
        ("K 4,2 12.05.2019 kl 8:30.", ["K", "4,2", "12.05.2019", "kl", "8:30", "."]),
        ("keemia- ja kiiritusravi", ["keemia", "-", "ja", "kiiritusravi"]),
        ("herceptin-ravi, koormus-EKG", ["herceptin-ravi", ",", "koormus-EKG"]),
        ("COVID'i O\u2019Neill 'tsitaat'", ["COVID'i", "O\u2019Neill", "'", "tsitaat", "'"]),
        ("CA15-3 B12", ["CA", "15", "-", "3", "B", "12"]),
        ("PET/KT(neg)", ["PET", "/", "KT", "(", "neg", ")"]),
        ("Selegiline-induced a_b", ["Selegiline-induced", "a", "_", "b"]),
        ("ro\u0308ntgen", ["ro\u0308ntgen"]),
        ("", []),
        (" \n\t", []),
    ],
)
def test_clinical_words(text: str, words: list[str]) -> None:
    """Glued sentences and units come apart, compounds with a hyphen stay whole."""
    assert [text[token.start : token.end] for token in tokenize(text)] == words


def test_every_character_but_white_space_is_in_exactly_one_token() -> None:
    """Nothing can be a part of a mention and of no token."""
    rng = random.Random(7)
    alphabet = "aÕž9½²-'’_./( \n\u00a0\u200b\u0301\u00ad𝒳日"
    for _ in range(300):
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 30)))
        covered = [position for token in tokenize(text) for position in range(token.start, token.end)]
        assert covered == [position for position, character in enumerate(text) if not character.isspace()]


def test_tokens_of_a_long_text_take_time_linear_in_its_length() -> None:
    """Twenty times the text takes about twenty times as long, even where a word never seems to end."""
    for piece in ("a-", "a'", "1,", "o\u0308"):
        began = time.process_time()
        tokens = tokenize(piece * 100_000)
        assert tokens[0].start == 0
        assert time.process_time() - began < 3


def test_demo_gold_begins_and_ends_at_token_boundaries() -> None:
    """No mention that a person marked is cut by a token."""
    for line in GOLD.read_text(encoding="utf-8").splitlines():
        note = json.loads(line)
        tokens: list[Token] = tokenize(note["text"])
        starts, ends = {token.start for token in tokens}, {token.end for token in tokens}
        assert [span for span in note["label"] if span[0] not in starts or span[1] not in ends] == []
