import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from assets_tests.modeling.generator_notes import TINY, tiny_notes
from estner_assets.modeling.batching import encode_rows
from estner_assets.modeling.generator import GeneratorReport, train_generator
from estner_assets.modeling.gpt2 import decode_text, encode_texts, load_generator, train_tokenizer
from estner_assets.ner.conditions import ConditionedNote, split_patients
from estner_assets.settings import GeneratorSettings


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(folder: Path, notes: list[ConditionedNote], **changes: object) -> tuple[Path, GeneratorReport, list[str]]:
    lines: list[str] = []
    folder.mkdir()
    settings = GeneratorSettings.model_validate({**TINY.model_dump(), **changes})
    return folder, train_generator(notes, settings, folder, lines.append), lines


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def holdout_of(notes: list[ConditionedNote]) -> frozenset[str]:
    return split_patients([note.patient_id for note in notes], TINY.holdout_fraction, TINY.seed)


def mean_loss(folder: Path, notes: list[ConditionedNote]) -> float:
    """Loss per token, note by note and without padding, by transformers' own loss."""
    tokenizer, model = load_generator(folder)
    total, tokens = 0.0, 0
    for row in encode_rows(notes, tokenizer, TINY.context_tokens):
        ids = torch.tensor([row])
        with torch.inference_mode():
            total += model.eval()(ids, labels=ids).loss.item() * (len(row) - 1)
        tokens += len(row) - 1
    return total / tokens


def test_files_load_with_the_auto_classes(tmp_path: Path):
    """The folder is a Hugging Face GPT-2 of the declared shape, its tokenizer and a row's conventions."""
    folder, report, _ = train(tmp_path / "g", tiny_notes(80), epochs=1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(model, GPT2LMHeadModel)
    assert (model.config.n_layer, model.config.n_head, model.config.n_embd, model.config.n_positions) == (
        1,
        2,
        32,
        64,
    )
    assert model.num_parameters() == report.parameters
    assert model.config.vocab_size == len(tokenizer) == 330
    assert json.loads((folder / "generator.json").read_text(encoding="utf-8")) == {
        "row": "{prefix} {text}{end}",
        "prefix": "{genre}, vanusegrupp {age_group}, {sex}, {diagnosis},",
        "end": "<|endoftext|>",
        "end_id": tokenizer.eos_token_id,
        "text_normalisation": "NFC, line feeds, stripped",
    }


def test_same_notes_and_settings_give_the_same_files(tmp_path: Path):
    """Neither the notes' order nor earlier random numbers matter; another seed gives other weights."""
    notes = tiny_notes(80)
    first, _, _ = train(tmp_path / "a", notes)
    torch.rand(5)
    second, _, _ = train(tmp_path / "b", random.Random(1).sample(notes, len(notes)))
    third, _, _ = train(tmp_path / "c", notes, seed=1)
    assert content(second) == content(first)
    assert content(third)["model.safetensors"] != content(first)["model.safetensors"]


def test_training_leaves_the_global_random_state_alone(tmp_path: Path):
    """What is drawn after training does not depend on training."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tmp_path / "g", tiny_notes(40), epochs=0.2)
    assert torch.equal(torch.rand(3), expected)


def test_holdout_notes_enter_neither_tokenizer_nor_weights(tmp_path: Path):
    """Over one epoch, where nothing can be chosen by holdout loss, other holdout texts give equal files."""
    notes = tiny_notes(80)
    holdout = holdout_of(notes)
    other = [replace(note, text="Zxq " * 9) if note.patient_id in holdout else note for note in notes]
    first, report, _ = train(tmp_path / "a", notes, epochs=1)
    second, changed, _ = train(tmp_path / "b", other, epochs=1)
    assert content(second) == content(first)
    assert (report.train_notes, report.holdout_notes) == (72, 8)
    assert changed.best_holdout_loss > report.best_holdout_loss


def test_training_stops_early_and_keeps_the_best_weights(tmp_path: Path):
    """The saved weights have the lowest holdout loss of all epochs, to be had again from the folder."""
    notes = tiny_notes(48)
    folder, report, lines = train(tmp_path / "g", notes, epochs=60, early_stopping_patience=2)
    losses = [point.holdout_loss for point in report.curve if point.holdout_loss is not None]
    held_out = [note for note in notes if note.patient_id in holdout_of(notes)]
    assert report.stopped_early
    assert report.best_holdout_loss == min(losses) == losses[-3]
    assert mean_loss(folder, held_out) == pytest.approx(report.best_holdout_loss, rel=1e-4)
    assert sum("holdout loss" in line for line in lines) == len(losses)


def test_curve_ends_at_the_last_step(tmp_path: Path):
    """72 notes in batches of 8, two and a half epochs: 22 steps, three holdout losses, and it learns."""
    _, report, _ = train(tmp_path / "g", tiny_notes(80), epochs=2.5)
    assert [point.step for point in report.curve] == list(range(1, 23))
    assert [point.epoch for point in report.curve if point.holdout_loss is not None] == [1.0, 2.0, 22 / 9]
    assert report.curve[-1].loss < report.curve[0].loss
    assert not report.stopped_early


def test_training_from_a_checkpoint(tmp_path: Path):
    """A checkpoint's shape and tokenizer stay as they are; its weights are trained further."""
    notes = tiny_notes(80)
    base, before, _ = train(tmp_path / "base", notes, epochs=1)
    tuned, after, _ = train(tmp_path / "tuned", notes, checkpoint=str(base), layers=7, vocabulary_size=999)
    assert content(tuned)["tokenizer.json"] == content(base)["tokenizer.json"]
    assert content(tuned)["config.json"] == content(base)["config.json"]
    assert after.parameters == before.parameters
    assert after.best_holdout_loss < before.best_holdout_loss


@pytest.mark.parametrize(
    ("notes", "changes", "message"),
    [
        (tiny_notes(1), {}, "at least two patients"),
        ([replace(note, text=" \n") for note in tiny_notes(9)], {}, "at least two patients"),
        (tiny_notes(9), {"context_tokens": 5}, r"raise generator\.context_tokens"),
        (tiny_notes(9), {"heads": 3}, r"multiple of generator\.heads"),
        (tiny_notes(40), {"learning_rate": 1e30}, r"lower generator\.learning_rate"),
    ],
)
def test_what_cannot_be_trained(tmp_path: Path, notes: list[ConditionedNote], changes: dict[str, object], message: str):
    """The message names what to change."""
    with pytest.raises((ValueError, RuntimeError), match=message):
        train(tmp_path / "g", notes, **changes)


def test_folder_must_be_empty(tmp_path: Path):
    """A generator is never written over another one."""
    (tmp_path / "old").touch()
    with pytest.raises(ValueError, match="empty folder"):
        train_generator(tiny_notes(8), TINY, tmp_path, print)


@pytest.mark.parametrize(
    "text",
    ["Kaebused: köha.\n\nObj: RR 140 / 90 , õ 😀", "a  b\tc .d", "lõpp <|endoftext|> ei ole lõpp", "Ж"],
)
def test_texts_survive_the_tokenizer(text: str):
    """Line ends, spaces, unseen letters and a spelled-out end token come back; none ends the row."""
    tokenizer = train_tokenizer(tiny_notes(20), 300)
    (ids,) = encode_texts(tokenizer, [text])
    assert decode_text(tokenizer, ids) == text
    assert tokenizer.eos_token_id not in ids
