"""Training rows of the generator: one note a row, cut to the context, in batches of similar length."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from estner_assets.modeling.gpt2 import encode_prefixes, encode_texts
from estner_assets.ner.conditions import ConditionedNote

BUCKET_BATCHES = 50
"""Rows are sorted by length within this many batches: little padding, and still a new mix in every epoch."""
IGNORED = -100
"""The target that torch's cross entropy leaves out."""


@dataclass(frozen=True)
class Batch:
    """``inputs`` and ``targets`` are (rows, tokens); a target is the next token, ``IGNORED`` on padding."""

    inputs: torch.Tensor
    targets: torch.Tensor


def encode_rows(
    notes: Sequence[ConditionedNote], tokenizer: PreTrainedTokenizerBase, context_tokens: int
) -> list[list[int]]:
    """Return ``<prefix> <text><eos>`` as token ids, cut to ``context_tokens``; a cut row has no end.

    Raises ``ValueError`` when a prefix leaves no room for its note.
    """
    prefixes = encode_prefixes(tokenizer, [note.condition for note in notes])
    texts = encode_texts(tokenizer, [note.text for note in notes])
    end = tokenizer.eos_token_id
    longest = max(map(len, prefixes), default=0)
    if longest >= context_tokens:
        raise ValueError(
            f"a prefix has {longest} tokens and the context {context_tokens}: raise generator.context_tokens"
        )
    return [[*prefix, *text, end][:context_tokens] for prefix, text in zip(prefixes, texts, strict=True)]


def shuffled_batches(rows: Sequence[list[int]], batch_size: int, random: np.random.Generator) -> list[list[list[int]]]:
    """Return all rows once, in random batches of similar length."""
    order = random.permutation(len(rows)).tolist()
    bucket = batch_size * BUCKET_BATCHES
    by_length = [
        index
        for start in range(0, len(order), bucket)
        for index in sorted(order[start : start + bucket], key=lambda index: len(rows[index]))
    ]
    batches = sorted_batches([rows[index] for index in by_length], batch_size)
    return [batches[index] for index in random.permutation(len(batches))]


def sorted_batches(rows: Sequence[list[int]], batch_size: int) -> list[list[list[int]]]:
    """Return the rows in their own order, ``batch_size`` at a time."""
    return [list(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]


def collate(rows: Iterable[list[int]], device: torch.device) -> Batch:
    """Pad on the right to the longest row.

    The padding needs no attention mask: a causal model never looks to the right, and its targets do not
    count.
    """
    tensors = [torch.tensor(row) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=IGNORED)
    return Batch(padded[:, :-1].clamp_min(0).to(device), padded[:, 1:].to(device))
