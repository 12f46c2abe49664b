"""Any Hugging Face token-classification checkpoint as a tagger, read in overlapping windows of sub-words.

Our own tokens carry the tags: a token's tag is that of its first sub-word, found by character offsets, so
that it does not matter how the checkpoint's tokeniser cuts words. No token is lost to truncation: it stands
in at least one window, and where in several, the window that shows most of its context counts.
"""

import json
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification, AutoTokenizer

from estner_assets.modeling.crf import bio_constraints, viterbi
from estner_assets.modeling.fitting import Job, fit, length_buckets
from estner_assets.modeling.taggers import CONFIG_FILE, ENCODER, Progress, TaggerReport, split_documents
from estner_assets.ner.bio import from_bio, label_names, to_bio
from estner_assets.ner.spans import Document, Span
from estner_assets.ner.tokens import Token, tokenize
from estner_assets.settings import TaggerSettings

IGNORED = -100
OVERLAP = 0.25
PREDICT_BATCH = 16


@dataclass(frozen=True)
class Window:
    """A cut of a text: its sub-words' ids, and (piece, token) for tokens whose first sub-word is in it."""

    text: int
    ids: list[int]
    firsts: list[tuple[int, int]]


class EncoderTagger:
    """A checkpoint with its tokeniser; ``max_tokens`` is the window in sub-words, special ones included."""

    def __init__(self, model: Any, tokenizer: Any, labels: Sequence[str], max_tokens: int) -> None:
        if not tokenizer.is_fast:
            raise ValueError("the checkpoint's tokeniser gives no offsets: choose one with a tokenizer.json")
        self.labels, self.tags = tuple(labels), label_names(labels)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.tokenizer = model.to(self.device), tokenizer
        room = min(_positions(model.config), tokenizer.model_max_length)
        self.max_tokens = min(max_tokens, room)
        if self.max_tokens < tokenizer.num_special_tokens_to_add() + 2:
            raise ValueError(f"a window of {self.max_tokens} sub-words holds no text: raise tagger.max_tokens")

    def windows(self, texts: Sequence[str], tokens: Sequence[Sequence[Token]]) -> list[Window]:
        """Cut every text into windows; a token whose characters the tokeniser keeps is in at least one."""
        inner = self.max_tokens - self.tokenizer.num_special_tokens_to_add()
        encoded = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_tokens,
            stride=int(inner * OVERLAP),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owners: list[int] = encoded["overflow_to_sample_mapping"]
        continues = [index > 0 and owners[index - 1] == text for index, text in enumerate(owners)]
        cuts = zip(owners, encoded["input_ids"], encoded["offset_mapping"], continues, strict=True)
        return [
            Window(text, ids, _first_pieces(offsets, tokens[text], continued)) for text, ids, offsets, continued in cuts
        ]

    def logits(self, windows: Sequence[Window]) -> Tensor:
        """Return (windows, pieces, tags) in float32; bf16 inside on a GPU."""
        width = max(len(window.ids) for window in windows)
        padding = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([window.ids + [padding] * (width - len(window.ids)) for window in windows])
        mask = torch.tensor([[1] * len(window.ids) + [0] * (width - len(window.ids)) for window in windows])
        with self._precision():
            output = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        scores: Tensor = output.logits.float()
        return scores

    def predict(self, texts: Sequence[str]) -> list[tuple[Span, ...]]:
        """Return every text's spans: the best valid BIO sequence of its tokens' tag probabilities.

        A confidence is the probability of the tag of the span's least sure token.
        """
        self.model.eval()
        tokens = [tokenize(text) for text in texts]
        # A token without any sub-word keeps this row: certainly outside.
        outside = torch.nn.functional.one_hot(torch.tensor(0), len(self.tags)).float().clamp_min(1e-9).log()
        scores = [outside.repeat(max(1, len(row)), 1) for row in tokens]
        context = [[-1] * len(row) for row in tokens]
        windows = self.windows(texts, tokens) if texts else []
        windows.sort(key=lambda window: len(window.ids))
        for first in range(0, len(windows), PREDICT_BATCH):
            chosen = windows[first : first + PREDICT_BATCH]
            with torch.no_grad():
                logs = self.logits(chosen).log_softmax(dim=2).cpu()
            for row, window in enumerate(chosen):
                for piece, token in window.firsts:
                    room = min(piece, len(window.ids) - 1 - piece)
                    if room > context[window.text][token]:
                        context[window.text][token] = room
                        scores[window.text][token] = logs[row, piece]
        rows = zip(texts, tokens, scores, strict=True)
        return [self._spans(text, row_tokens, row_scores) for text, row_tokens, row_scores in rows]

    def _spans(self, text: str, tokens: Sequence[Token], scores: Tensor) -> tuple[Span, ...]:
        if not tokens:
            return ()
        start, transitions = bio_constraints(self.tags)
        mask = torch.ones(1, len(tokens), dtype=torch.bool)
        [path] = viterbi(scores.unsqueeze(0), mask, start, transitions)
        confidences = scores[range(len(path)), path].exp().tolist()
        return from_bio(text, tokens, [self.tags[tag] for tag in path], confidences)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast("cuda", dtype=torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def save(self, folder: Path) -> None:
        """Write a folder that Hugging Face's classes read too; ``config.json`` holds our kind and labels."""
        self.model.config.update({"kind": ENCODER, "labels": list(self.labels), "max_tokens": self.max_tokens})
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path) -> "EncoderTagger":
        """Read what ``save`` wrote."""
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        model = AutoModelForTokenClassification.from_pretrained(folder)
        return cls(model, AutoTokenizer.from_pretrained(folder), config["labels"], config["max_tokens"])

    @classmethod
    def from_checkpoint(cls, checkpoint: str, labels: Sequence[str], max_tokens: int) -> "EncoderTagger":
        """Load a checkpoint by id or path, with a new classifier over our tags where its own does not fit."""
        tags = label_names(labels)
        model = AutoModelForTokenClassification.from_pretrained(
            checkpoint,
            id2label=dict(enumerate(tags)),
            label2id={tag: index for index, tag in enumerate(tags)},
            ignore_mismatched_sizes=True,
        )
        return cls(model.float(), AutoTokenizer.from_pretrained(checkpoint), labels, max_tokens)


def train_encoder(
    documents: Sequence[Document],
    labels: Sequence[str],
    settings: TaggerSettings,
    folder: Path,
    progress: Progress,
    max_steps: int | None,
) -> TaggerReport:
    """Fine-tune ``settings.model`` and write it; see ``taggers.train_tagger``. Its items are windows."""
    train, validation = split_documents(documents, settings.validation_fraction, settings.seed)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        tagger = EncoderTagger.from_checkpoint(settings.model, labels, settings.max_tokens)
        tokens = [tokenize(document.text) for document in train]
        tags = [to_bio(row, document.spans) for row, document in zip(tokens, train, strict=True)]
        ids = [[tagger.tags.index(tag) for tag in row] for row in tags]
        texts = recased([document.text for document in train], settings.casing_augmentation, settings.seed)
        windows = [window for window in tagger.windows(texts, tokens) if window.firsts]
        if not windows:
            raise ValueError("no training note has a word that the checkpoint's tokeniser reads: look at the texts")
        lengths = [len(window.ids) for window in windows]
        cells = settings.batch_size * tagger.max_tokens

        def loss(batch: list[int], rng: random.Random) -> Tensor:
            return _loss(tagger, [windows[index] for index in batch], ids)

        job = Job(
            model=tagger.model,
            batches=lambda rng: length_buckets(lengths, settings.batch_size, cells, rng),
            loss=loss,
            predict=tagger.predict,
            train_notes=len(train),
            validation=validation,
        )
        report = fit(job, settings, progress, max_steps)
    tagger.save(folder)
    return report


def recased(texts: Sequence[str], share: float, seed: int) -> list[str]:
    """Return the texts, a share of them in lower or upper case; never where that would move a character."""
    rng = random.Random(seed)
    changed: list[str] = []
    for text in texts:
        other = rng.choice([text.lower(), text.upper()]) if rng.random() < share else text
        changed.append(other if len(other) == len(text) else text)
    return changed


def _loss(tagger: EncoderTagger, windows: Sequence[Window], tags: Sequence[Sequence[int]]) -> Tensor:
    logits = tagger.logits(windows)
    targets = torch.full(logits.shape[:2], IGNORED)
    for row, window in enumerate(windows):
        # Two tokens can share a sub-word (``5mg`` as one piece): a mention then goes before outside.
        for piece, token in reversed(window.firsts):
            targets[row, piece] = tags[window.text][token] or max(0, int(targets[row, piece]))
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten().to(logits.device), ignore_index=IGNORED
    )


def _first_pieces(
    offsets: Sequence[tuple[int, int]], tokens: Sequence[Token], continues: bool
) -> list[tuple[int, int]]:
    """Return (piece, token) for every token that begins in the window, with the first piece that overlaps it.

    A window that continues a text may open in the middle of a token; that token began in the window before.
    Special pieces are empty.
    """
    found: list[tuple[int, int]] = []
    token = 0
    for piece, (start, end) in enumerate(offsets):
        while start < end and token < len(tokens) and tokens[token].start < end:
            if tokens[token].end > start and not (continues and not found and tokens[token].start < start):
                found.append((piece, token))
            token += 1
    return found


def _positions(config: Any) -> int:
    """Return the model's number of positions; RoBERTa's kind keeps ``padding_idx + 1`` for itself."""
    positions = int(getattr(config, "max_position_embeddings", None) or 1_000_000)
    return (
        positions - 2 if config.model_type in {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl"} else positions
    )
