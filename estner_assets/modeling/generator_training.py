"""The generator's training loop: AdamW with warm-up and cosine decay, early stopping, best weights kept."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from estner_assets.modeling.batching import IGNORED, Batch, collate, shuffled_batches, sorted_batches
from estner_assets.settings import GeneratorSettings

PROGRESS_EVERY_S = 10.0
CURVE_POINTS = 100
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class TrainingPoint:
    """Losses are nats per token: ``loss`` the mean since the last point, ``holdout_loss`` at epoch ends."""

    step: int
    epoch: float
    loss: float
    holdout_loss: float | None
    elapsed_s: float


class GeneratorTraining:
    """One training run of ``model``, in place; afterwards the model has the weights of the best holdout loss.

    Dropout draws from torch's global generators, which the caller seeds; the batches from ``settings.seed``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: list[list[int]],
        holdout_rows: list[list[int]],
        settings: GeneratorSettings,
        progress: Callable[[str], None],
    ) -> None:
        self.model = model
        self.rows = rows
        self.holdout_rows = sorted(holdout_rows, key=len)
        self.settings = settings
        self.progress = progress
        self.epoch_steps = math.ceil(len(rows) / settings.batch_size)
        self.total_steps = max(1, round(settings.epochs * self.epoch_steps))
        self.optimizer = _optimizer(model, settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.curve: list[TrainingPoint] = []
        self.best_loss = math.inf
        self.stopped_early = False
        self._best_weights: dict[str, torch.Tensor] = {}
        self._epochs_without_gain = 0
        self._loss_sum = torch.zeros((), device=model.device)
        self._loss_steps = 0
        self._started = self._last_progress = time.monotonic()

    def train(self) -> None:
        """Run to the last step, or until ``early_stopping_patience`` epochs brought no lower holdout loss."""
        self.model.train()
        for step, batch in enumerate(self._batches(), start=1):
            self._loss_sum += self._update(batch)
            self._loss_steps += 1
            if step % self.epoch_steps == 0 or step == self.total_steps:
                self._end_epoch(step)
            elif step % max(1, self.total_steps // CURVE_POINTS) == 0:
                self._add_point(step, None)
            if step == self.total_steps:
                break
            if self._epochs_without_gain >= self.settings.early_stopping_patience:
                self.stopped_early = True
                break
        self.model.load_state_dict(self._best_weights)

    def _batches(self) -> Iterator[Batch]:
        random = np.random.default_rng(self.settings.seed)
        while True:
            for rows in shuffled_batches(self.rows, self.settings.batch_size, random):
                yield collate(rows, self.model.device)

    def _update(self, batch: Batch) -> torch.Tensor:
        loss = self._loss(batch, "mean")
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _loss(self, batch: Batch, reduction: str) -> torch.Tensor:
        with self._precision():
            logits = self.model(batch.inputs, use_cache=False).logits
        return cross_entropy(
            logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORED, reduction=reduction
        )

    def _precision(self) -> AbstractContextManager[object]:
        # On a CPU without bf16 units autocast only costs time.
        if self.model.device.type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()

    @torch.inference_mode()
    def _holdout_loss(self) -> float:
        self.model.train(False)
        total, tokens = 0.0, 0
        for rows in sorted_batches(self.holdout_rows, self.settings.batch_size):
            batch = collate(rows, self.model.device)
            total += self._loss(batch, "sum").item()
            tokens += int((batch.targets != IGNORED).sum())
        self.model.train()
        return total / tokens

    def _end_epoch(self, step: int) -> None:
        holdout_loss = self._holdout_loss()
        if not math.isfinite(holdout_loss):
            raise RuntimeError(f"the holdout loss is {holdout_loss} at step {step}: lower generator.learning_rate")
        gained = holdout_loss < self.best_loss
        self._epochs_without_gain = 0 if gained else self._epochs_without_gain + 1
        if gained:
            self.best_loss = holdout_loss
            self._best_weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        self._add_point(step, holdout_loss)

    def _add_point(self, step: int, holdout_loss: float | None) -> None:
        now = time.monotonic()
        loss = self._loss_sum.item() / self._loss_steps
        point = TrainingPoint(step, step / self.epoch_steps, loss, holdout_loss, now - self._started)
        self.curve.append(point)
        self._loss_sum.zero_()
        self._loss_steps = 0
        if holdout_loss is not None or now - self._last_progress >= PROGRESS_EVERY_S:
            self._last_progress = now
            self.progress(self._line(point))

    def _line(self, point: TrainingPoint) -> str:
        line = (
            f"epoch {point.epoch:.2f} of {self.settings.epochs:g}, step {point.step} of {self.total_steps}, "
            f"{point.elapsed_s:.0f} s: loss {point.loss:.3f}"
        )
        if point.holdout_loss is None:
            return line
        return f"{line}, holdout loss {point.holdout_loss:.3f} (best {self.best_loss:.3f})"

    def _rate(self, step: int) -> float:
        """Share of the learning rate at a step: linear warm-up, then half a cosine down to 0."""
        warmup = round(self.settings.warmup_fraction * self.total_steps)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.total_steps - warmup)))


def _optimizer(model: PreTrainedModel, settings: GeneratorSettings) -> torch.optim.AdamW:
    """AdamW that decays matrices only: decay of biases and layer norms does nothing useful."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
