"""The training loop that all taggers share: warm-up, early stopping on strict F1, the best weights kept."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from estner_assets.modeling.taggers import Progress, TaggerReport
from estner_assets.ner.metrics import strict
from estner_assets.ner.spans import Document, Span
from estner_assets.settings import TaggerSettings

STEP_VALIDATIONS = 8
"""Where steps and not epochs are counted, an epoch can be a single step; so often is validated instead."""

GRADIENT_NORM = 5.0


@dataclass(frozen=True)
class Job:
    """What one kind of tagger gives to the loop.

    ``batches`` draws an epoch's batches of indices into the training items, ``loss`` is their mean loss, and
    ``predict`` reads the validation texts with the weights of the moment.
    """

    model: nn.Module
    batches: Callable[[random.Random], list[list[int]]]
    loss: Callable[[list[int], random.Random], Tensor]
    predict: Callable[[Sequence[str]], list[tuple[Span, ...]]]
    train_notes: int
    validation: Sequence[Document]


@dataclass
class _Best:
    """The best weights so far, and for how many validations nothing was better."""

    f1: float = 0.0
    weights: dict[str, Tensor] = field(default_factory=dict)
    waited: int = 0

    def see(self, f1: float, model: nn.Module) -> None:
        # Patience is for models that have found something; of equally good weights the later are kept.
        self.waited = 0 if f1 > self.f1 or f1 == 0.0 == self.f1 else self.waited + 1
        if f1 >= self.f1:
            self.f1 = f1
            self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}


def fit(job: Job, settings: TaggerSettings, progress: Progress, max_steps: int | None) -> TaggerReport:
    """Train ``job.model`` in place and leave the best weights in it; the last ones without validation spans.

    Epochs end it, or early stopping, or exactly ``max_steps`` steps. The caller seeds torch.
    """
    began = time.monotonic()
    rng = random.Random(settings.seed)
    per_epoch = len(job.batches(random.Random(0)))
    total = max_steps or max(settings.epochs * per_epoch, settings.min_steps)
    by_epoch = max_steps is None and total == settings.epochs * per_epoch
    every = per_epoch if by_epoch else max(per_epoch, total // STEP_VALIDATIONS)
    optimizer, schedule = _optimizer(job.model, settings, total)
    can_stop = any(document.spans for document in job.validation)
    best, curve, losses, step = _Best(), list[dict[str, Any]](), list[float](), 0
    for batch in _endless(job.batches, rng):
        step += 1
        losses.append(_step(job, batch, rng, optimizer, schedule))
        if step % every and step < total:
            continue
        row = {"epoch": -(-step // per_epoch), "step": step, "train_loss": sum(losses) / len(losses)}
        curve.append({**row, "validation_f1": _validate(job) if job.validation else None})
        progress(_line(curve[-1], total))
        losses.clear()
        if can_stop:
            best.see(curve[-1]["validation_f1"], job.model)
        if step == total or (max_steps is None and best.waited >= settings.early_stopping_patience):
            break
    if can_stop:
        job.model.load_state_dict(best.weights)
    return TaggerReport(
        model=settings.model,
        train_notes=job.train_notes,
        validation_notes=len(job.validation),
        epochs=curve[-1]["epoch"],
        steps=step,
        best_validation_f1=best.f1,
        stopped_early=step < total,
        parameters=sum(weight.numel() for weight in job.model.parameters()),
        curve=curve,
        elapsed_s=time.monotonic() - began,
    )


def length_buckets(lengths: Sequence[int], batch_size: int, max_cells: int, rng: random.Random) -> list[list[int]]:
    """Return shuffled batches of indices of about equal lengths, so that little is padding.

    A batch has at most ``batch_size`` items and, unless it is one item, at most ``max_cells`` cells with its
    padding.
    """
    # Neighbours change from epoch to epoch, because lengths are jittered before they are sorted.
    order = sorted(range(len(lengths)), key=lambda index: lengths[index] * rng.uniform(0.85, 1.15))
    batches: list[list[int]] = [[]]
    for index in order:
        longest = max([lengths[index], *(lengths[other] for other in batches[-1])])
        full = len(batches[-1]) == batch_size or (len(batches[-1]) + 1) * longest > max_cells
        if batches[-1] and full:
            batches.append([])
        batches[-1].append(index)
    rng.shuffle(batches)
    return batches


def _endless(batches: Callable[[random.Random], list[list[int]]], rng: random.Random) -> Iterator[list[int]]:
    while True:
        yield from batches(rng)


def _step(
    job: Job,
    batch: list[int],
    rng: random.Random,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    job.model.train()
    loss = job.loss(batch, rng)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(job.model.parameters(), GRADIENT_NORM)
    optimizer.step()
    schedule.step()
    return float(loss.detach())


def _optimizer(
    model: nn.Module, settings: TaggerSettings, total: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    warmup = max(1, round(settings.warmup_fraction * total))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def share(step: int) -> float:
        return min((step + 1) / warmup, max(0.05, (total - step) / max(1, total - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def _validate(job: Job) -> float:
    predicted = job.predict([document.text for document in job.validation])
    return strict([document.spans for document in job.validation], predicted, None).f1


def _line(row: dict[str, Any], total: int) -> str:
    f1 = "no validation" if row["validation_f1"] is None else f"validation F1 {row['validation_f1']:.3f}"
    return f"epoch {row['epoch']}, step {row['step']}/{total}: loss {row['train_loss']:.3f}, {f1}"
