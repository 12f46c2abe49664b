"""NER taggers behind one interface: train on annotated documents into a folder, load it, predict spans.

Light to import: torch and transformers come in with the kind of tagger that is asked for.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from estner_assets.ner.spans import Document, Span, check_spans
from estner_assets.settings import TaggerSettings

CHARCNN = "charcnn-bilstm-crf"
ENCODER = "encoder"

CONFIG_FILE = "config.json"
"""Holds ``kind`` and ``labels``, and whatever else the kind needs to be loaded."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class TaggerReport:
    """What a training did.

    ``curve`` has a row per validation with ``epoch``, ``step``, ``train_loss`` and ``validation_f1`` (None
    without validation notes). ``best_validation_f1`` is strict and micro over the labels, 0 without
    validation notes.
    """

    model: str
    train_notes: int
    validation_notes: int
    epochs: int
    steps: int
    best_validation_f1: float
    stopped_early: bool
    parameters: int
    curve: list[dict[str, Any]] = field(default_factory=list)
    elapsed_s: float = 0.0


class Tagger(Protocol):
    """A loaded model."""

    @property
    def labels(self) -> Sequence[str]:
        """The entity types, in the declaration's order."""

    def predict(self, texts: Sequence[str]) -> list[tuple[Span, ...]]:
        """Return every text's spans with confidences; a text's spans hang on that text alone."""


def train_tagger(
    documents: Sequence[Document],
    labels: Sequence[str],
    settings: TaggerSettings,
    folder: Path,
    progress: Progress,
    max_steps: int | None = None,
) -> TaggerReport:
    """Train ``settings.model`` on the documents and write it to ``folder``, which ``load_tagger`` reads.

    ``labels`` are the declared entity types: the label map is theirs and not that of the documents, so that a
    type that a small subset lacks permutes nothing. With ``max_steps`` exactly so many optimiser steps are
    made, whatever ``settings.epochs`` says and without early stopping. The same documents, in any order, with
    the same settings give the same weights on the same CPU. Raises ``ValueError`` without documents or
    labels, for a document given twice, and ``SpanError`` for a span that does not fit its text or labels.
    """
    if not documents:
        raise ValueError("no documents to train on: annotate notes first, or ask whether all answers were refused")
    if not labels:
        raise ValueError("no labels to learn: enable an entity")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; give at least 1, or None to train for the declared epochs")
    if len({document.document_id for document in documents}) != len(documents):
        raise ValueError("a document is given twice, so that training and validation would share it")
    for document in documents:
        check_spans(document.text, document.spans, labels)
    folder.mkdir(parents=True, exist_ok=True)
    if settings.model == CHARCNN:
        from estner_assets.modeling.charcnn import train_charcnn

        return train_charcnn(documents, labels, settings, folder, progress, max_steps)
    from estner_assets.modeling.encoder_tagger import train_encoder

    return train_encoder(documents, labels, settings, folder, progress, max_steps)


def load_tagger(folder: Path) -> Tagger:
    """Load what ``train_tagger`` wrote. Raises ``ValueError`` for a folder that it did not write."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {CONFIG_FILE}: train the model again")
    config = json.loads(path.read_text(encoding="utf-8"))
    match config.get("kind"):
        case "charcnn-bilstm-crf":
            from estner_assets.modeling.charcnn import CharCnnTagger

            return CharCnnTagger.load(folder)
        case "encoder":
            from estner_assets.modeling.encoder_tagger import EncoderTagger

            return EncoderTagger.load(folder)
        case kind:
            raise ValueError(f"{path} is of kind {kind!r}, not {CHARCNN!r} or {ENCODER!r}: train the model again")


def split_documents(documents: Sequence[Document], fraction: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Return training and validation documents, both with their share of every combination of labels.

    The documents are put in the order of their labels, within one combination in that of their seeded hashes,
    and every 1/fraction-th is taken. Their own order does not matter. Both parts have a document wherever
    there are two; one document is for training.
    """
    ordered = sorted(documents, key=lambda document: (_labels_present(document), _digest(document, seed)))
    wanted = min(max(round(len(ordered) * fraction), 1), len(ordered) - 1)
    chosen = {int((index + 0.5) * len(ordered) / wanted) for index in range(wanted)}
    train = [document for index, document in enumerate(ordered) if index not in chosen]
    return train, [ordered[index] for index in sorted(chosen)]


def _labels_present(document: Document) -> tuple[str, ...]:
    return tuple(sorted({span.label for span in document.spans}))


def _digest(document: Document, seed: int) -> str:
    return hashlib.sha256(f"{seed}\0{document.document_id}".encode()).hexdigest()
