"""Samples synthetic notes: batched decoding with a key-value cache, each note from a seed of its own."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from estner_assets.modeling.gpt2 import decode_text, encode_prefixes, load_generator, on_device
from estner_assets.ner.conditions import Condition
from estner_assets.settings import SamplingSettings

PROGRESS_EVERY_S = 10.0


@dataclass(frozen=True)
class SampledNote:
    """A synthetic note without its prefix; ``tokens`` counts what was sampled, with the end token."""

    condition: Condition
    seed: int
    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int


@dataclass
class _Row:
    """A note in the making. One uniform number per token, drawn ahead, makes it independent of its batch."""

    index: int
    prefix: list[int]
    uniforms: np.ndarray
    sampled: list[int]


def sample_notes(
    folder: Path,
    conditions: Sequence[Condition],
    settings: SamplingSettings,
    progress: Callable[[str], None],
) -> list[SampledNote]:
    """Return one note per condition, in order, from the generator in ``folder``.

    A note depends on the generator, its condition, ``settings.seed`` and its index, and not on
    ``batch_size``. It ends with the end token ("stop"), or at ``max_new_tokens`` or the end of the context
    ("length"). Weights are fp32 on every device, for rounding must not decide which token is drawn.
    """
    tokenizer, model = load_generator(folder)
    model = on_device(model)
    model.train(False)
    prefixes = encode_prefixes(tokenizer, conditions)
    seeds = [note_seed(settings.seed, index) for index in range(len(conditions))]
    limits = [_room(model, prefix, settings) for prefix in prefixes]
    rows = [
        _Row(index, prefix, np.random.default_rng(seed).random(limit), [])
        for index, (prefix, seed, limit) in enumerate(zip(prefixes, seeds, limits, strict=True))
    ]
    end = tokenizer.eos_token_id
    _decode_all(model, rows, end, settings, progress)
    return [
        SampledNote(
            condition=condition,
            seed=seed,
            text=decode_text(tokenizer, row.sampled),
            finish_reason="stop" if row.sampled[-1] == end else "length",
            tokens=len(row.sampled),
        )
        for condition, seed, row in zip(conditions, seeds, rows, strict=True)
    ]


def note_seed(seed: int, index: int) -> int:
    """Return the 63-bit seed of the note at an index."""
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _room(model: PreTrainedModel, prefix: list[int], settings: SamplingSettings) -> int:
    """Return how many tokens fit after the prefix."""
    positions: int = model.config.max_position_embeddings
    room = min(settings.max_new_tokens, positions - len(prefix))
    if room < 1:
        raise ValueError(
            f"a prefix of {len(prefix)} tokens leaves no room in a context of {positions}: train the "
            "generator with a larger generator.context_tokens"
        )
    return room


def _decode_all(
    model: PreTrainedModel,
    rows: Sequence[_Row],
    end: int,
    settings: SamplingSettings,
    progress: Callable[[str], None],
) -> None:
    started = last = time.monotonic()
    notes = tokens = 0
    for batch in _batches(rows, settings.batch_size):
        _decode(model, batch, end, settings)
        notes += len(batch)
        tokens += sum(len(row.sampled) for row in batch)
        now = time.monotonic()
        if now - last >= PROGRESS_EVERY_S or notes == len(rows):
            last = now
            rate = tokens / max(now - started, 1e-9)
            progress(f"{notes} of {len(rows)} notes sampled, {now - started:.0f} s, {rate:.0f} tokens a second")


def _batches(rows: Sequence[_Row], batch_size: int) -> Iterator[list[_Row]]:
    """Batch rows whose prefixes have equally many tokens: no padding, so no mask and no shifted positions."""
    by_length = sorted(rows, key=lambda row: len(row.prefix))
    for _, group in groupby(by_length, key=lambda row: len(row.prefix)):
        same = list(group)
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]


@torch.inference_mode()
def _decode(model: PreTrainedModel, rows: list[_Row], end: int, settings: SamplingSettings) -> None:
    """Fill ``sampled`` of every row; rows that are finished leave the batch and the cache."""
    cache = DynamicCache(config=model.config)
    tokens = torch.tensor([row.prefix for row in rows], device=model.device)
    position = 0
    while rows:
        logits = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        uniforms = torch.tensor([row.uniforms[position] for row in rows], device=model.device)
        drawn = draw_tokens(logits, uniforms, settings)
        position += 1
        going = []
        for place, (row, token) in enumerate(zip(rows, drawn.tolist(), strict=True)):
            row.sampled.append(token)
            if token != end and position < len(row.uniforms):
                going.append(place)
        tokens = drawn[:, None]
        if len(going) < len(rows):
            rows = [rows[place] for place in going]
            kept = torch.tensor(going, dtype=torch.long, device=model.device)
            tokens = tokens[kept]
            cache.batch_select_indices(kept)


def draw_tokens(logits: torch.Tensor, uniforms: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Return a token per row of ``logits`` (rows, vocabulary): its distribution's inverse at ``uniforms``.

    Temperature, then top-k, then top-p of what top-k left (Hugging Face's order). The distribution is summed
    in the vocabulary's order and not by falling probability: two nearly equal tokens that rounding swaps
    would otherwise change the note.
    """
    probabilities = torch.softmax(logits.float() / settings.temperature, dim=-1)
    if settings.top_k is not None or settings.top_p < 1:
        least = _least_kept(probabilities, settings.top_k, settings.top_p)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    cumulated = probabilities.cumsum(dim=-1)
    total = cumulated[:, -1:]
    # Rounded to single precision a uniform number may be 1: stay below the total, where a token that was left
    # is.
    targets = torch.minimum(uniforms.to(total)[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulated, targets, right=True).squeeze(1)


def _least_kept(probabilities: torch.Tensor, top_k: int | None, top_p: float) -> torch.Tensor:
    """Return the smallest probability (rows, 1) that top-k and top-p keep."""
    if top_k is not None and top_k < probabilities.shape[1]:
        falling = probabilities.topk(top_k).values
    elif probabilities.device.type == "cpu":
        # Half of all sampling time would be torch's sort; numpy's takes a quarter of it.
        falling = torch.from_numpy(np.sort(probabilities.numpy(), axis=1)).flip(1)
    else:
        falling = probabilities.sort(dim=1, descending=True).values
    # A token stays when those before it do not yet reach top-p, so that the first always stays.
    before = falling.cumsum(dim=1) - falling
    kept = (before < top_p * falling.sum(dim=1, keepdim=True)).sum(dim=1, keepdim=True)
    return falling.gather(1, kept - 1)
