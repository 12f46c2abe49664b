"""What a request costs: exactly once it is answered, at most before it is sent, probably for a plan."""

import json
import unicodedata
from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal

from estner_assets.llm.requests import Request
from estner_assets.settings import FREE, AnnotatorBase, LlamaCppAnnotator, LlmAnnotator, Price

MICROS_PER_UNIT = 1_000_000
MESSAGE_OVERHEAD_TOKENS = 16
"""What a chat template may add to a message. OpenAI documents 3 or 4, llama 3's template takes 5, ChatML 5."""
REQUEST_OVERHEAD_TOKENS = 128
"""What a chat template may add to a conversation: its opening, a default system message, the reply's beginning."""
USUAL_MESSAGE_OVERHEAD_TOKENS = 4
CHARACTERS_PER_TOKEN = 2.4
"""Of a prompt with an Estonian note, the lowest measured, so that a plan is rather too dear than too cheap.

Measured on the demo's gold notes with OpenAI's cl100k_base (gpt-3.5-turbo, gpt-4): notes alone 2.3, with the prompt
``few_shot_et`` 2.4, ``few_shot_en`` 2.9, ``zero_shot_en`` 3.6. With o200k_base (gpt-4o): 2.8, 2.8, 3.1, 3.8.
"""
USUAL_ANSWER_TOKENS = 45
"""The mean of right JSON answers to the demo's gold notes in cl100k_base, measured; 44 in o200k_base."""


def price_of(annotator: AnnotatorBase, prices: Mapping[str, Price]) -> Price | None:
    """Return what an annotator charges, or ``None`` where nobody has declared it: unknown is not free.

    Rules and LLMs on this machine's own processor are free; a price in the annotator's declaration wins.
    """
    if not isinstance(annotator, LlmAnnotator):
        return FREE
    if annotator.price is not None:
        return annotator.price
    return FREE if isinstance(annotator, LlamaCppAnnotator) else prices.get(annotator.model)


def cost(
    price: Price, prompt_tokens: int, completion_tokens: int, *, cached_tokens: int = 0, is_batch: bool = False
) -> Decimal:
    """Return the exact cost in ``price.currency``; sums of such costs are exact too.

    ``cached_tokens`` are those of ``prompt_tokens`` that the provider had cached. A batch gets the batch discount
    alone, for providers do not take both off.
    """
    if not 0 <= cached_tokens <= prompt_tokens or completion_tokens < 0:
        raise ValueError(f"no such counts: {prompt_tokens=}, {cached_tokens=}, {completion_tokens=}")
    cached_price = price.cached_input_per_million
    if is_batch or cached_price is None:
        cached_price = price.input_per_million
    millionths = (
        (prompt_tokens - cached_tokens) * price.input_per_million
        + cached_tokens * cached_price
        + completion_tokens * price.output_per_million
    )
    return (millionths * (1 - price.batch_discount) if is_batch else millionths).scaleb(-6)


def micros(amount: Decimal) -> int:
    """Return an amount in millionths of its currency's unit, rounded up: a ledger never counts too little."""
    return int((amount * MICROS_PER_UNIT).to_integral_value(ROUND_CEILING))


def most_prompt_tokens(request: Request) -> int:
    """Return a number of tokens that no byte-level BPE exceeds: a token is at least one byte.

    What the template adds is bounded by generous constants; a schema counts, for servers put it into the prompt.
    """
    sent = [part for message in request.messages for part in (message.role, message.content)]
    form = request.parameters.get("response_format")
    if form is not None:
        sent.append(json.dumps(form, indent=2))
    overhead = REQUEST_OVERHEAD_TOKENS + MESSAGE_OVERHEAD_TOKENS * len(request.messages)
    return overhead + sum(map(_most_bytes, sent))


def _most_bytes(text: str) -> int:
    length = len(text.encode("utf-8", "surrogatepass"))
    if unicodedata.is_normalized("NFC", text):
        return length
    # some tokenizers (Qwen's) normalise first, and a few characters have a longer normal form
    return max(length, len(unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")))


def most_answer_tokens(request: Request) -> int:
    """Return the limit that the request sets; raise ``ValueError`` where it sets none."""
    limit = request.parameters.get("max_completion_tokens", request.parameters.get("max_tokens"))
    if not isinstance(limit, int) or limit < 0:
        raise ValueError("a request without max_tokens may cost any amount; declare the prompt's max_answer_tokens")
    return limit


def worst_case(price: Price, request: Request, is_batch: bool = False) -> Decimal:
    """Return the most that one try of this request can cost, in ``price.currency``."""
    return cost(price, most_prompt_tokens(request), most_answer_tokens(request), is_batch=is_batch)


def estimate(
    price: Price, request: Request, is_batch: bool = False, answer_tokens: int = USUAL_ANSWER_TOKENS
) -> Decimal:
    """Return what this request will probably cost, in ``price.currency``; never more than its worst case.

    Pass the mean of stored answers as ``answer_tokens`` where there are some.
    """
    characters = sum(len(message.content) for message in request.messages)
    overhead = USUAL_MESSAGE_OVERHEAD_TOKENS * len(request.messages)
    prompt_tokens = overhead + round(characters / CHARACTERS_PER_TOKEN)
    return cost(price, prompt_tokens, min(answer_tokens, most_answer_tokens(request)), is_batch=is_batch)
