from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from assets_tests.modeling.generator_notes import HEART, LUNG, TINY, WORDS, tiny_notes
from estner_assets.modeling.generator import train_generator
from estner_assets.modeling.gpt2 import encode_prefixes, load_generator
from estner_assets.modeling.sampling import SampledNote, draw_tokens, sample_notes
from estner_assets.ner.conditions import Condition
from estner_assets.settings import SamplingSettings

SETTINGS = SamplingSettings(notes=40, max_new_tokens=40, top_p=0.95)
MIXED = [HEART, LUNG, replace(HEART, age_group="123456"), LUNG] * 10


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("generator")
    settings = TINY.model_copy(update={"epochs": 8, "width": 48})
    train_generator(tiny_notes(400), settings, folder, print)
    yield folder
    torch.set_num_threads(threads)


def sample(generator: Path, conditions: list[Condition], **changes: object) -> list[SampledNote]:
    return sample_notes(generator, conditions, SETTINGS.model_copy(update=changes), print)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_notes_do_not_depend_on_the_batch_size(generator: Path, batch_size: int):
    """The same seed gives the same notes, in the conditions' order, however they are batched."""
    expected = sample(generator, MIXED, batch_size=64)
    assert sample(generator, MIXED, batch_size=batch_size) == expected
    assert [note.condition for note in expected] == MIXED


def test_a_note_depends_on_its_index_and_seed(generator: Path):
    """Fewer notes give the same first notes; another seed gives others; each note has a seed of its own."""
    notes = sample(generator, MIXED)
    other = sample(generator, MIXED, seed=1)
    assert sample(generator, MIXED[:7]) == notes[:7]
    assert len({note.seed for note in notes + other}) == 80
    assert sum(left.text == right.text for left, right in zip(notes, other, strict=True)) < 4


def test_notes_follow_their_prefix(generator: Path):
    """After a few epochs most words of a note are of its own diagnosis: the prefix is read."""
    for condition, other in ((HEART, LUNG), (LUNG, HEART)):
        words = Counter(word for note in sample(generator, [condition] * 40) for word in note.text.split())
        own, foreign = (sum(words[word] for word in WORDS[key]) for key in (condition, other))
        assert own > 9 * foreign


def test_finished_and_unfinished_notes(generator: Path):
    """A note that ends by itself says "stop", one that is cut says "length"; neither has its prefix."""
    notes = sample(generator, MIXED)
    cut = sample(generator, MIXED, max_new_tokens=3)
    assert sum(note.finish_reason == "stop" and note.text.endswith(".\nOlek hea.") for note in notes) > 20
    assert {(note.finish_reason, note.tokens) for note in cut} == {("length", 3)}
    assert not any(note.text.startswith(note.condition.prefix) or "<|endoftext|>" in note.text for note in notes)


def test_prefix_and_note_fit_into_the_context(generator: Path):
    """A note is cut where the context ends, even when more tokens are allowed."""
    tokenizer, _ = load_generator(generator)
    conditions = [replace(HEART, genre="x" * 40)] * 5
    (prefix,) = encode_prefixes(tokenizer, conditions[:1])
    notes = sample(generator, conditions, max_new_tokens=400, temperature=5.0, top_p=1.0)
    assert [note.tokens for note in notes if note.finish_reason == "length"][:1] == [64 - len(prefix)]
    with pytest.raises(ValueError, match="leaves no room"):
        sample(generator, [replace(HEART, genre="x" * 80)])


def test_the_likeliest_tokens_are_those_of_greedy_search(generator: Path):
    """With top-k 1 a note is transformers' greedy continuation: cache and positions are right."""
    tokenizer, model = load_generator(generator)
    for condition, note in zip(MIXED[:3], sample(generator, MIXED[:3], top_k=1), strict=True):
        ids = torch.tensor(encode_prefixes(tokenizer, [condition]))
        greedy = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)[0]
        text = tokenizer.decode(greedy[ids.shape[1] :], skip_special_tokens=True)
        assert note.text == text.strip()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, 1.0), (0.7, None, 0.9), (1.0, 7, 1.0), (1.3, 20, 0.8), (1.0, 500, 0.5), (1.0, 1, 0.01)],
)
def test_tokens_are_drawn_from_the_declared_distribution(temperature: float, top_k: int | None, top_p: float):
    """Evenly spaced draws hit each token by its share under transformers' own filters."""
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)) * 2
    settings = SamplingSettings(notes=1, temperature=temperature, top_k=top_k, top_p=top_p)
    uniforms = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    drawn = draw_tokens(logits.expand(20000, 50), uniforms, settings)
    filters = [TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)]
    if top_k is not None:
        filters.insert(1, TopKLogitsWarper(top_k))
    expected = logits
    for warp in filters:
        expected = warp(None, expected)
    shares = torch.bincount(drawn, minlength=50) / 20000
    assert torch.allclose(shares, expected.softmax(-1)[0], atol=1e-4)


def test_extreme_draws_stay_inside():
    """The smallest and the largest uniform number draw the first and the last token that is left."""
    logits = torch.tensor([[-50.0, 3.0, 3.0, 3.0, -50.0]])
    uniforms = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    drawn = draw_tokens(logits.expand(2, 5), uniforms, SamplingSettings(notes=1, top_p=0.95))
    assert drawn.tolist() == [1, 3]


def test_folder_without_conventions(tmp_path: Path):
    """A folder that no training wrote is refused with the remedy."""
    with pytest.raises(ValueError, match="train the generator again"):
        sample(tmp_path, [HEART])
