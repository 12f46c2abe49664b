"""Costs are exact, their bound is never too low, and an unknown price is not zero."""

import random
from datetime import date
from decimal import Decimal

import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from assets_tests.llm.conftest import annotator, request
from estner_assets.llm.prices import (
    CHARACTERS_PER_TOKEN,
    cost,
    estimate,
    micros,
    most_prompt_tokens,
    price_of,
    worst_case,
)
from estner_assets.llm.requests import Request
from estner_assets.ner.prompts import ChatMessage
from estner_assets.settings import FREE, LexiconAnnotator, LlamaCppAnnotator, Price

PRICE = Price.model_validate(
    {
        "input_per_million": 0.15,
        "cached_input_per_million": 0.075,
        "output_per_million": 0.6,
        "currency": "USD",
        "as_of": "2025-06-01",
    }
)
LLAMA = {
    "kind": "llama_cpp",
    "key": "llama",
    "title": "Local",
    "prompts": ["p"],
    "model": "priced",
    "weights": {"package": "p", "version": "1", "file": "f", "sha256": "0" * 64, "licence": "l"},
}
RULES = {"kind": "lexicon", "key": "r", "title": "R", "terms": "t.tsv", "language": "et", "prompts": ["none"]}
ODD_TEXTS = [
    "",
    "Patsient võtab ravimit Enap 10 mg, tehti EKG.",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 👩‍⚕️🏴󠁧󠁢󠁥󠁮󠁧󠁿 \x00\x07\r\n\t",
    "a\u0301\u0323" * 20 + "\u202e\u200b\ufeff\ufffd",
    "\u0958\u095c\ufb2c\U0001d160\U0001d15e\u2126\u0390" * 9,
    "<|im_start|>system<|endoftext|>" * 3,
    "ﷺ한국어漢字かな ќ" * 5,
    "x" * 500 + " " * 500 + "1234567890" * 20,
]


def byte_level(corpus: list[str], vocabulary_size: int, is_normalised: bool) -> Tokenizer:
    """Return a real byte-level BPE like GPT-2's; with 256 words it merges nothing: the worst there is."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if is_normalised:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def test_the_price_is_the_annotators_own_then_the_tables() -> None:
    """What is declared at the annotator wins; local LLMs and rules are free; an unknown model has no price."""
    table = {"priced": PRICE}
    own = PRICE.model_copy(update={"input_per_million": Decimal(9)})
    local = LlamaCppAnnotator.model_validate(LLAMA)
    asked = [
        annotator(model="priced"),
        annotator(model="priced", price=own),
        annotator(model="priced", price="free"),
        annotator(model="unpriced"),
        local,
        local.model_copy(update={"price": own}),
        LexiconAnnotator.model_validate(RULES),
    ]
    assert [price_of(one, table) for one in asked] == [PRICE, own, FREE, None, FREE, own, FREE]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"currency": ""}, "needs `currency`"),
        ({"as_of": None}, "`as_of`, the day on which it was looked up"),
        ({"currency": "dollars"}, "should match pattern"),
        ({"cached_input_per_million": 0.16}, "must not be larger than input_per_million"),
        ({"input_per_million": -1}, "greater than or equal to 0"),
        ({"batch_discount": 1}, "less than 1"),
    ],
)
def test_a_price_says_in_which_money_and_since_when(changes: dict[str, object], message: str) -> None:
    """A price that cannot be used for sums is a mistake of the declaration."""
    with pytest.raises(ValidationError, match=message):
        Price.model_validate(PRICE.model_dump() | changes)


def test_a_declared_price_is_the_number_that_was_written() -> None:
    """0.15 in a file is 0.15, not the nearest binary fraction."""
    assert (PRICE.input_per_million, PRICE.batch_discount, PRICE.as_of) == (
        Decimal("0.15"),
        Decimal("0.5"),
        date(2025, 6, 1),
    )


def test_costs_are_exact() -> None:
    """A cost is tokens times price to the last digit, and a sum of costs is the cost of the sum."""
    assert [
        cost(PRICE, 1000, 100),
        cost(PRICE, 1000, 100, is_batch=True),
        cost(PRICE, 1000, 100, cached_tokens=400),
        cost(PRICE, 1000, 100, cached_tokens=400, is_batch=True),
        cost(FREE, 1000, 100),
    ] == [Decimal("0.00021"), Decimal("0.000105"), Decimal("0.00018"), Decimal("0.000105"), Decimal(0)]
    rng = random.Random(0)
    pairs = [(rng.randint(1, 8000), rng.randint(0, 500)) for _ in range(20_000)]
    whole = cost(PRICE, sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs))
    assert sum(cost(PRICE, *pair) for pair in pairs) == whole


@pytest.mark.parametrize(("prompt", "completion", "cached"), [(-1, 0, 0), (1, -1, 0), (1, 0, 2), (1, 0, -1)])
def test_counts_that_cannot_be_are_refused(prompt: int, completion: int, cached: int) -> None:
    """Negative counts, and more cached tokens than tokens, have no cost."""
    with pytest.raises(ValueError, match="no such counts"):
        cost(PRICE, prompt, completion, cached_tokens=cached)


def test_millionths_are_rounded_up() -> None:
    """What does not fit into millionths counts as one more, never as none."""
    amounts = ["0", "0.000001", "0.00000101", "0.0000000001", "1.5", "2.9999991"]
    assert [micros(Decimal(amount)) for amount in amounts] == [0, 1, 2, 1, 1_500_000, 3_000_000]


@pytest.mark.parametrize("is_normalised", [False, True])
@pytest.mark.parametrize("vocabulary_size", [256, 400])
def test_no_byte_level_tokenizer_counts_more_than_the_bound(vocabulary_size: int, is_normalised: bool) -> None:
    """Whatever stands in a note, its tokens are at most what the bound adds for it, overheads left aside."""
    tokenizer = byte_level(ODD_TEXTS, vocabulary_size, is_normalised)
    rng = random.Random(1)
    blocks = [(0x20, 0x24F), (0x300, 0x36F), (0x900, 0x97F), (0xFB00, 0xFB4F), (0x1D100, 0x1D1FF), (0x1F300, 0x1FAFF)]
    mixed = ["".join(chr(rng.randint(*rng.choice(blocks))) for _ in range(80)) for _ in range(200)]
    overhead = most_prompt_tokens(request(""))
    too_low = [
        text
        for text in [*ODD_TEXTS, *mixed]
        if most_prompt_tokens(request(text)) - overhead < len(tokenizer.encode(text, add_special_tokens=False))
    ]
    assert too_low == []


def test_a_token_of_every_byte_reaches_the_bound() -> None:
    """The bound is no larger than it must be: a tokenizer that merges nothing reaches it."""
    text = ODD_TEXTS[1]
    tokenizer = byte_level([], 256, is_normalised=False)
    assert most_prompt_tokens(request(text)) - most_prompt_tokens(request("")) == len(tokenizer.encode(text))


def test_a_lone_surrogate_has_a_bound() -> None:
    """A text that has no UTF-8 counts the three bytes of what a server puts in its place."""
    assert most_prompt_tokens(request("\ud800")) - most_prompt_tokens(request("")) == len("\ufffd".encode())


def test_the_worst_case_counts_roles_templates_schemas_and_the_whole_answer() -> None:
    """Every message has its overhead, a schema goes into the prompt, and an answer may be as long as it is allowed."""
    one, two = ChatMessage("system", "abc"), ChatMessage("user", "õ")
    plain = Request("m", (one, two), {"max_tokens": 50}, "n", "s")
    schema = Request("m", (one, two), {"max_tokens": 50, "response_format": {"type": "json_object"}}, "n", "s")
    prompt_tokens = 128 + 2 * 16 + len("system") + len("abc") + len("user") + len("õ".encode())
    schema_bytes = len('{\n  "type": "json_object"\n}')
    assert [most_prompt_tokens(plain), most_prompt_tokens(schema)] == [prompt_tokens, prompt_tokens + schema_bytes]
    assert worst_case(PRICE, plain) == cost(PRICE, prompt_tokens, 50)
    assert worst_case(PRICE, plain, is_batch=True) == cost(PRICE, prompt_tokens, 50) / 2


@pytest.mark.parametrize("parameters", [{}, {"max_tokens": None}, {"max_tokens": "many"}])
def test_a_request_without_a_limit_has_no_worst_case(parameters: dict[str, object]) -> None:
    """An answer of any length may cost any amount: that is said before anything is sent."""
    with pytest.raises(ValueError, match="declare the prompt's max_answer_tokens"):
        worst_case(PRICE, request("a", **parameters))


def test_an_estimate_is_by_characters_and_below_the_worst_case() -> None:
    """A plan counts characters by the measured ratio and usual answers, cut at what the request allows."""
    text = "õ" * 240
    long, short = request(text, max_tokens=512), request(text, max_tokens=3)
    prompt_tokens = 4 + round(240 / CHARACTERS_PER_TOKEN)
    assert [estimate(PRICE, long), estimate(PRICE, short), estimate(PRICE, long, answer_tokens=7, is_batch=True)] == [
        cost(PRICE, prompt_tokens, 45),
        cost(PRICE, prompt_tokens, 3),
        cost(PRICE, prompt_tokens, 7) / 2,
    ]
    odd = [request(text, max_tokens=5) for text in ODD_TEXTS]
    assert [one for one in odd if estimate(PRICE, one) > worst_case(PRICE, one)] == []
