"""Laws of choosing few-shot examples from a pool."""

import random
import time

import numpy as np
import pytest

from estner_assets.ner.examples import ExamplePool, TrigramIndex, holding, ungrounded
from estner_assets.ner.languages import language
from estner_assets.ner.parsing import Mention
from estner_assets.ner.prompts import ExampleText

ET = language("et")
TEXTS = [
    "Kaebab köha ja palavikku, kopsudes räginad.",
    "Võtab Concorit, vererõhk korras.",
    "Põlve liigesevahetus plaanis.",
    "Võtab Enapit, vererõhk kõrge.",
]


def test_the_nearest_texts_come_first() -> None:
    """A text is nearest to itself, then to those that share rare trigrams with it; case and spaces are no matter."""
    index = TrigramIndex(TEXTS)
    assert [index.nearest(text, 1) for text in TEXTS] == [[0], [1], [2], [3]]
    assert index.nearest("VÕTAB   concorit,\nvererõhk kõrge", 2) == [1, 3]


def test_the_nearness_is_the_cosine_of_tf_idf() -> None:
    """The order is that of a plain computation over dense vectors."""
    rng = random.Random(1)
    texts = ["".join(rng.choices("ab ", k=rng.randint(3, 12))) for _ in range(40)]
    index = TrigramIndex(texts)

    def grams(text: str) -> list[str]:
        folded = f" {' '.join(text.split())} "
        return [folded[start : start + 3] for start in range(len(folded) - 2)]

    known = sorted({gram for text in texts for gram in grams(text)})
    frequency = {gram: sum(gram in grams(text) for text in texts) for gram in known}

    def vector(text: str) -> np.ndarray:
        counts = [grams(text).count(gram) for gram in known]
        idf = [np.log(41 / (1 + frequency[gram])) + 1 for gram in known]
        found = np.array([(1 + np.log(count)) * one if count else 0 for count, one in zip(counts, idf, strict=True)])
        return found / (np.linalg.norm(found) or 1)

    for text in texts:
        scores = np.array([vector(text) @ vector(other) for other in texts])
        nearest = index.nearest(text, 5)
        assert scores[nearest] == pytest.approx(np.sort(scores)[::-1][:5])


def test_equally_near_texts_come_by_position() -> None:
    """Ties do not depend on anything but the pool's order, also where nothing is shared."""
    pool = ["sama tekst", "muu", "sama tekst", "sama tekst"]
    assert TrigramIndex(pool).nearest("sama tekst siin", 4) == [0, 2, 3, 1]
    assert TrigramIndex(pool).nearest("???", 3) == [0, 1, 2]


def test_random_draws_once_by_seed() -> None:
    """The same seed draws the same examples for every note; another seed draws others; a small pool gives all."""
    texts = [str(number) for number in range(100)]
    pool = ExamplePool(texts, "random", 5, seed=3)
    assert pool.chosen("a") == pool.chosen("b") == ExamplePool(texts, "random", 5, seed=3).chosen("c")
    assert (len(set(pool.chosen("a"))), pool.chosen("a")) == (5, sorted(pool.chosen("a")))
    assert pool.chosen("a") != ExamplePool(texts, "random", 5, seed=4).chosen("a")
    assert ExamplePool(texts[:2], "random", 5, seed=0).chosen("a") == [0, 1]
    assert ExamplePool(texts[:2], "similar", 5, seed=0).chosen("1") == [1, 0]


def test_a_thousand_notes_choose_from_a_thousand_texts_in_seconds() -> None:
    """Choosing is far cheaper than asking (measured: about a second on one core)."""
    rng = random.Random(2)
    texts = [" ".join("".join(rng.choices("aeiklmnorstuõä", k=7)) for _ in range(35)) for _ in range(2_000)]
    began = time.process_time()
    pool = ExamplePool(texts[:1_000], "similar", 4, seed=0)
    chosen = [pool.chosen(text) for text in texts[1_000:]]
    assert {len(one) for one in chosen} == {4}
    assert time.process_time() - began < 15


@pytest.mark.parametrize(
    ("mentions", "wrong"),
    [
        ([("DRUG", "Concorit"), ("PROCEDURE", "EKG"), ("PROCEDURE", "EKG")], []),
        ([("DRUG", "Concor")], ["Concor"]),
        ([("DRUG", "concorit")], ["concorit"]),
        ([("PROCEDURE", "op")], ["op"]),
        ([("DRUG", "Concorit"), ("DRUG", "Concorit")], ["Concorit", "Concorit"]),
        ([("DRUG", "Enapit"), ("PROCEDURE", "kopsudest")], ["Enapit"]),
    ],
)
def test_a_mention_must_stand_in_its_example(mentions: list[tuple[str, str]], wrong: list[str]) -> None:
    """Mentions are whole words of their own text, letter by letter, at most as often as they stand there."""
    example = ExampleText(
        "Võtab Concorit, EKG ja uus EKG kopsudest.", tuple(Mention(label, text) for label, text in mentions)
    )
    assert ungrounded(example, ET) == wrong


def test_an_example_that_holds_a_gold_text_is_found() -> None:
    """White space and case hide no gold text, nor does what stands around it; a part of one is none."""
    gold = ["Võtab  Concorit,\nEKG.", "Teine kiri.", "  "]
    texts = ["Enne. võtab concorit, EKG. Pärast.", "Võtab Concorit,", "teine", "Teine\tkiri.", "Teine kiri"]
    assert holding(texts, gold) == [0, 3]
    assert holding(["Võtab Concorit,", "EKG."], gold) == []
