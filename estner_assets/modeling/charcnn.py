"""The tagger without a pretrained checkpoint: character CNN, words, BiLSTM and CRF (Ma & Hovy 2016).

Trained on a few hundred synthetic notes it meets real notes whose drugs it has never seen. So most of its
input is letters: rare words have no vector of their own, others are hidden at random, and casing is varied.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from estner_assets.modeling.crf import LinearChainCrf
from estner_assets.modeling.fitting import Job, fit, length_buckets
from estner_assets.modeling.taggers import CHARCNN, CONFIG_FILE, Progress, TaggerReport, split_documents
from estner_assets.modeling.word_features import SPECIAL_CHARACTERS as SPECIALS
from estner_assets.modeling.word_features import UNKNOWN_WORD, Batch, Casing, Encoder, Vocabulary, words_of
from estner_assets.ner.bio import from_bio, label_names, to_bio
from estner_assets.ner.spans import Document, Span
from estner_assets.ner.tokens import tokenize
from estner_assets.settings import TaggerSettings

WEIGHTS_FILE = "model.safetensors"
MIN_WORD_COUNT = 3
WORD_DROPOUT = 0.5
PREDICT_BATCH = 64


@dataclass(frozen=True)
class Sizes:
    """Widths of the layers."""

    character: int = 24
    filters: int = 48
    kernels: tuple[int, ...] = (3, 5)
    word: int = 32
    casing: int = 8
    hidden: int = 96


class CharCnnBiLstmCrf(nn.Module):
    """Emissions of every tag for every word, and the CRF above them."""

    def __init__(self, words: int, characters: int, tags: Sequence[str], sizes: Sizes, dropout: float) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters + SPECIALS, sizes.character, padding_idx=0)
        self.filters = nn.ModuleList(
            nn.Conv1d(sizes.character, sizes.filters, kernel, padding=kernel - 1) for kernel in sizes.kernels
        )
        self.words = nn.Embedding(words + UNKNOWN_WORD + 1, sizes.word, padding_idx=0)
        self.casings = nn.Embedding(len(Casing), sizes.casing, padding_idx=0)
        width = sizes.filters * len(sizes.kernels) + sizes.word + sizes.casing
        self.forwards = nn.LSTM(width, sizes.hidden, batch_first=True)
        self.backwards = nn.LSTM(width, sizes.hidden, batch_first=True)
        self.emit = nn.Linear(2 * sizes.hidden, len(tags))
        self.dropout = nn.Dropout(dropout)
        self.crf = LinearChainCrf(tags)

    def forward(self, batch: Batch) -> Tensor:
        """Return emissions (texts, steps, tags)."""
        letters = self.characters(batch.letters).transpose(1, 2)
        shapes = torch.cat([torch.relu(layer(letters)).amax(dim=2) for layer in self.filters], dim=1)
        words = self.words(batch.words)
        seen = self.dropout(torch.cat([shapes[batch.rows], words, self.casings(batch.casings)], dim=2))
        # Each row is turned round within its length. A packed bidirectional LSTM does the same, but on a CPU
        # it is half as fast: its backward pass fills the whole batch with zeros at every step.
        turned = _reversal(batch.mask).unsqueeze(2)
        back = self.backwards(seen.gather(1, turned.expand_as(seen)))[0]
        states = torch.cat([self.forwards(seen)[0], back.gather(1, turned.expand_as(back))], dim=2)
        emissions: Tensor = self.emit(self.dropout(states))
        return emissions


def _reversal(mask: Tensor) -> Tensor:
    """Return (texts, steps) indices that turn every row round and leave its padding where it is."""
    steps = torch.arange(mask.shape[1]).expand(mask.shape)
    return torch.where(mask, mask.sum(dim=1, keepdim=True) - 1 - steps, steps)


class CharCnnTagger:
    """The network with the vocabulary and the labels that it was trained with."""

    def __init__(self, vocabulary: Vocabulary, labels: Sequence[str], sizes: Sizes, dropout: float = 0.0) -> None:
        self.vocabulary, self.labels, self.sizes = vocabulary, tuple(labels), sizes
        self.tags = label_names(labels)
        self.encoder = Encoder(vocabulary)
        self.network = CharCnnBiLstmCrf(len(vocabulary.words), len(vocabulary.characters), self.tags, sizes, dropout)

    def predict(self, texts: Sequence[str]) -> list[tuple[Span, ...]]:
        """Return every text's spans; a confidence is the CRF's marginal of the span's least sure token."""
        self.network.eval()
        found: list[tuple[Span, ...]] = [()] * len(texts)
        words = [words_of(text) for text in texts]
        order = sorted((index for index in range(len(texts)) if words[index]), key=lambda i: len(words[i]))
        for first in range(0, len(order), PREDICT_BATCH):
            chosen = order[first : first + PREDICT_BATCH]
            tagged = self._tag([words[index] for index in chosen])
            for index, (tags, confidences) in zip(chosen, tagged, strict=True):
                found[index] = from_bio(texts[index], tokenize(texts[index]), tags, confidences)
        return found

    @torch.no_grad()
    def _tag(self, texts: Sequence[Sequence[str]]) -> list[tuple[list[str], list[float]]]:
        batch = self.encoder.encode(texts)
        emissions = self.network(batch)
        marginals = self.network.crf.marginals(emissions, batch.mask)
        paths = self.network.crf.decode(emissions, batch.mask)
        return [
            ([self.tags[tag] for tag in path], marginals[row, range(len(path)), path].tolist())
            for row, path in enumerate(paths)
        ]

    def save(self, folder: Path) -> None:
        """Write the weights and all that is needed to read them again."""
        save_file(self.network.state_dict(), folder / WEIGHTS_FILE)
        config = {
            "kind": CHARCNN,
            "labels": self.labels,
            "sizes": asdict(self.sizes),
            "characters": self.vocabulary.characters,
            "words": self.vocabulary.words,
        }
        (folder / CONFIG_FILE).write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "CharCnnTagger":
        """Read what ``save`` wrote."""
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        sizes = Sizes(**{**config["sizes"], "kernels": tuple(config["sizes"]["kernels"])})
        vocabulary = Vocabulary(tuple(config["words"]), tuple(config["characters"]))
        tagger = cls(vocabulary, config["labels"], sizes)
        tagger.network.load_state_dict(load_file(folder / WEIGHTS_FILE))
        return tagger


def train_charcnn(
    documents: Sequence[Document],
    labels: Sequence[str],
    settings: TaggerSettings,
    folder: Path,
    progress: Progress,
    max_steps: int | None,
) -> TaggerReport:
    """Train and write the tagger; see ``taggers.train_tagger``. A note of any length is read whole."""
    train, validation = split_documents(documents, settings.validation_fraction, settings.seed)
    items = [(words_of(d.text), to_bio(tokenize(d.text), d.spans)) for d in train]
    items = [(words, tags) for words, tags in items if words]
    if not items:
        raise ValueError("no training note has a word in it: look at the texts")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        vocabulary = Vocabulary.learn((words for words, _ in items), MIN_WORD_COUNT)
        tagger = CharCnnTagger(vocabulary, labels, Sizes(), settings.dropout)
        lengths = [len(words) for words, _ in items]
        cells = settings.batch_size * settings.max_tokens

        def loss(batch: list[int], rng: random.Random) -> Tensor:
            return _loss(tagger, [items[index] for index in batch], settings.casing_augmentation, rng)

        job = Job(
            model=tagger.network,
            batches=lambda rng: length_buckets(lengths, settings.batch_size, cells, rng),
            loss=loss,
            predict=tagger.predict,
            train_notes=len(train),
            validation=validation,
        )
        report = fit(job, settings, progress, max_steps)
    tagger.save(folder)
    return report


def _loss(
    tagger: CharCnnTagger, items: Sequence[tuple[list[str], list[str]]], share: float, rng: random.Random
) -> Tensor:
    batch = tagger.encoder.encode([recase(words, share, rng) for words, _ in items])
    hidden = (torch.rand(batch.words.shape) < WORD_DROPOUT) & batch.mask
    batch.words[hidden] = UNKNOWN_WORD
    tags = torch.zeros_like(batch.words)
    for row, (_, names) in enumerate(items):
        tags[row, : len(names)] = torch.tensor([tagger.tags.index(name) for name in names])
    losses: Tensor = tagger.network.crf.negative_log_likelihood(tagger.network(batch), tags, batch.mask)
    return losses.mean()


def recase(words: Sequence[str], share: float, rng: random.Random) -> list[str]:
    """Return a text's words in lower, upper or title case with probability ``share``, else as they are."""
    if rng.random() >= share:
        return list(words)
    change = rng.choice([str.lower, str.upper, str.title])
    return [change(word) for word in words]
