"""The generator's model and byte-level BPE: made, written and read, with the conventions of its rows.

A row is ``<prefix> <text><eos>``. Prefix and text are encoded apart, so that a prefix has the same tokens in
training and in sampling.
"""

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from estner_assets.ner.conditions import Condition, ConditionedNote
from estner_assets.settings import GeneratorSettings

END = "<|endoftext|>"
CONVENTIONS_FILE = "generator.json"


def normalise_text(text: str) -> str:
    """Return the text as the generator sees it: NFC, line ends as ``\\n``, no white space at the edges."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def on_device(model: PreTrainedModel) -> PreTrainedModel:
    """Move the model to the first CUDA device, or else to the CPU, and return it."""
    torch.nn.Module.to(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return model


def train_tokenizer(notes: Iterable[ConditionedNote], vocabulary_size: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE on prefixes and texts.

    All 256 bytes are in it, so any text can be encoded; a small corpus gives fewer than ``vocabulary_size``
    tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(notes), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return GPT2Tokenizer(vocab=model["vocab"], merges=merges, clean_up_tokenization_spaces=False)


def _training_texts(notes: Iterable[ConditionedNote]) -> Iterator[str]:
    for note in notes:
        yield f"{note.condition.prefix} {normalise_text(note.text)}"


def encode_prefixes(tokenizer: PreTrainedTokenizerBase, conditions: Sequence[Condition]) -> list[list[int]]:
    """Return each condition's prefix as token ids."""
    return _encode(tokenizer, [condition.prefix for condition in conditions])


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return each text, with the space that follows the prefix, as token ids."""
    return _encode(tokenizer, [f" {normalise_text(text)}" for text in texts])


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    # A note that spells out the end token must not end its row: special tokens in texts are ordinary
    # characters.
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True) if texts else {"input_ids": []}
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def decode_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the note that the tokens after a prefix spell, without the end token."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return normalise_text(str(text))


def make_model(tokenizer: PreTrainedTokenizerBase, settings: GeneratorSettings) -> PreTrainedModel:
    """Return a GPT-2 with random weights, drawn from torch's global generator."""
    if settings.width % settings.heads:
        raise ValueError(f"generator.width {settings.width} must be a multiple of generator.heads {settings.heads}")
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=settings.context_tokens,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        # The same function as GPT-2's gelu_new, in one kernel instead of eight.
        activation_function="gelu_pytorch_tanh",
        # Dropout costs a third of the time on a CPU; early stopping on held-out patients guards instead.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(config)


def load_checkpoint(source: str | Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Return tokenizer and fp32 causal model of a Hugging Face id or folder.

    Raises ``ValueError`` when the tokenizer has no end token, for then no note could end.
    """
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {source} has no end token: choose a checkpoint of a causal language model")
    return tokenizer, model


def save_generator(folder: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Write weights, configuration, tokenizer, and in ``generator.json`` how a row is put together."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    conventions = {
        "row": "{prefix} {text}{end}",
        "prefix": Condition("{genre}", "{age_group}", "{sex}", "{diagnosis}").prefix,
        "end": tokenizer.eos_token,
        "end_id": tokenizer.eos_token_id,
        "text_normalisation": "NFC, line feeds, stripped",
    }
    text = json.dumps(conventions, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
    (folder / CONVENTIONS_FILE).write_text(text, encoding="utf-8")


def load_generator(folder: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Return what ``save_generator`` wrote; raises ``ValueError`` when its rows follow another convention."""
    path = folder / CONVENTIONS_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {CONVENTIONS_FILE}: train the generator again")
    prefix = json.loads(path.read_text(encoding="utf-8"))["prefix"]
    expected = Condition("{genre}", "{age_group}", "{sex}", "{diagnosis}").prefix
    if prefix != expected:
        raise ValueError(f"the generator was trained with the prefix {prefix!r}, not {expected!r}: train it again")
    return load_checkpoint(folder)
