"""Trains the generator: a GPT-2 on the local notes (Šuvalov et al., J Med Internet Res 2025;27:e66279)."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from estner_assets.modeling.batching import encode_rows
from estner_assets.modeling.generator_training import GeneratorTraining, TrainingPoint
from estner_assets.modeling.gpt2 import (
    load_checkpoint,
    make_model,
    normalise_text,
    on_device,
    save_generator,
    train_tokenizer,
)
from estner_assets.ner.conditions import ConditionedNote, split_patients
from estner_assets.settings import GeneratorSettings

__all__ = ["GeneratorReport", "TrainingPoint", "train_generator"]


@dataclass(frozen=True)
class GeneratorReport:
    """How training went; ``best_holdout_loss`` is that of the weights that were kept."""

    curve: list[TrainingPoint]
    train_notes: int
    holdout_notes: int
    parameters: int
    best_holdout_loss: float
    elapsed_s: float
    stopped_early: bool


def train_generator(
    notes: Sequence[ConditionedNote],
    settings: GeneratorSettings,
    folder: Path,
    progress: Callable[[str], None],
) -> GeneratorReport:
    """Train on all patients but the holdout's and write the generator of lowest holdout loss into ``folder``.

    ``folder`` must exist and be empty; transformers' Auto classes load it. Notes without text are left out.
    The same notes, in any order, and the same settings give the same files on a CPU. Raises ``ValueError``
    when there is nothing to train or to hold out. ``progress`` is given one line about every ten seconds and
    at every epoch's end.
    """
    started = time.monotonic()
    if not folder.is_dir() or any(folder.iterdir()):
        raise ValueError(f"{folder} must be an existing, empty folder")
    train, holdout = _split(notes, settings)
    # Weights and dropout come from torch's global generators: use them, and leave them as they were.
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        tokenizer, model = _tokenizer_and_model(train, settings)
        context = _context(model, settings)
        rows, holdout_rows = (encode_rows(part, tokenizer, context) for part in (train, holdout))
        run = GeneratorTraining(on_device(model), rows, holdout_rows, settings, progress)
        progress(f"{len(train)} notes to learn, {len(holdout)} held out, {model.num_parameters()} parameters")
        run.train()
    save_generator(folder, tokenizer, model.cpu())
    return GeneratorReport(
        curve=run.curve,
        train_notes=len(train),
        holdout_notes=len(holdout),
        parameters=model.num_parameters(),
        best_holdout_loss=run.best_loss,
        elapsed_s=time.monotonic() - started,
        stopped_early=run.stopped_early,
    )


def _split(
    notes: Sequence[ConditionedNote], settings: GeneratorSettings
) -> tuple[list[ConditionedNote], list[ConditionedNote]]:
    written = sorted((note for note in notes if normalise_text(note.text)), key=lambda note: note.note_id)
    patients = split_patients([note.patient_id for note in written], settings.holdout_fraction, settings.seed)
    if not patients:
        raise ValueError("the generator needs notes of at least two patients: one to learn from, one to hold out")
    train = [note for note in written if note.patient_id not in patients]
    return train, [note for note in written if note.patient_id in patients]


def _tokenizer_and_model(
    train: Sequence[ConditionedNote], settings: GeneratorSettings
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    if settings.checkpoint is not None:
        return load_checkpoint(settings.checkpoint)
    tokenizer = train_tokenizer(train, settings.vocabulary_size)
    return tokenizer, make_model(tokenizer, settings)


def _context(model: PreTrainedModel, settings: GeneratorSettings) -> int:
    positions = model.config.max_position_embeddings
    if settings.context_tokens > positions:
        raise ValueError(
            f"{settings.checkpoint} has {positions} positions: lower generator.context_tokens, which is "
            f"{settings.context_tokens}"
        )
    return settings.context_tokens
