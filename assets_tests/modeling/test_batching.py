import numpy as np
import torch

from assets_tests.modeling.generator_notes import HEART, tiny_notes
from estner_assets.modeling.batching import collate, encode_rows, shuffled_batches
from estner_assets.modeling.gpt2 import train_tokenizer
from estner_assets.ner.conditions import ConditionedNote


def test_rows_are_prefix_text_end():
    """A row that fits ends with the end token; a longer one is cut and has none."""
    tokenizer = train_tokenizer(tiny_notes(20), 300)
    note = ConditionedNote("r", "p", HEART, " süda\r\nEKG ")
    (row,), (cut,) = encode_rows([note], tokenizer, 64), encode_rows([note], tokenizer, 20)
    assert tokenizer.decode(row) == "anamnees, vanusegrupp 7, naine, I10, süda\nEKG<|endoftext|>"
    assert cut == row[:20]


def test_batches_hold_every_row_once_and_pad_little():
    """Each row is in one batch; rows of a batch are about equally long; another draw mixes them anew."""
    rows = [[index] * (index % 30 + 2) for index in range(500)]
    random_draw = np.random.default_rng(0)
    first, second = shuffled_batches(rows, 16, random_draw), shuffled_batches(rows, 16, random_draw)
    padding = sum(max(map(len, batch)) - len(row) for batch in first for row in batch)
    assert sorted(row for batch in first for row in batch) == sorted(rows)
    assert first != second
    assert padding < 0.05 * sum(map(len, rows))


def test_padding_is_no_target():
    """Targets are the next tokens of each row, and -100 where the row has ended."""
    batch = collate([[5, 6, 7, 8], [9, 4]], torch.device("cpu"))
    assert batch.inputs.tolist() == [[5, 6, 7], [9, 4, 0]]
    assert batch.targets.tolist() == [[6, 7, 8], [4, -100, -100]]
