"""The shape of every declaration, as pydantic models: what may be said, in which unit, within which bounds.

This module reads nothing. ``declarations`` reads the files, and checks what goes across them.
"""

import codecs
from typing import Annotated, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

NO_PROMPT = "none"
"""The prompt key of cells whose annotator takes no prompt."""

Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Declaration(BaseModel):
    """A declared thing: unknown keys are mistakes, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Entity(Declaration):
    """An entity type: what counts, with examples that prompts may show."""

    name: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
    enabled: bool = True
    definition: Annotated[str, Field(min_length=10)]
    positive: Annotated[list[str], Field(min_length=1)]
    negative: Annotated[list[str], Field(min_length=1)]


# --- prompts ----------------------------------------------------------------------------------------


class ExampleMention(Declaration):
    label: str
    text: Annotated[str, Field(min_length=1)]


class Example(Declaration):
    """A few-shot example: its mentions must stand in its text, in this order."""

    text: Annotated[str, Field(min_length=1)]
    mentions: list[ExampleMention] = []


class Prompt(Declaration):
    """A prompt file: YAML front matter and a Jinja2 body.

    ``mode`` is how the LLM is asked: ``json`` once a note, ``tag_words`` once a word.
    """

    key: Key
    title: str
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]
    mode: Literal["json", "tag_words"] = "json"
    examples: list[Example] = []
    max_answer_tokens: PositiveInt = 512
    body: Annotated[str, Field(min_length=1)]


# --- annotators -------------------------------------------------------------------------------------


class AnnotatorBase(Declaration):
    """What every annotator has; ``prompts`` names the cells it spans."""

    key: Key
    title: str
    prompts: Annotated[list[Key], Field(min_length=1)]
    notes: PositiveInt | None = None
    """At most this many vetted notes; the profile's ``annotation.notes`` where absent."""
    score_on_gold: bool = False
    """Also score the annotator itself on the gold notes; only for annotators on this machine."""


class LexiconAnnotator(AnnotatorBase):
    """Rules: a term list, matched with the language's inflection."""

    kind: Literal["lexicon"]
    terms: str
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]


class ReferenceAnnotator(AnnotatorBase):
    """Spans that come with the records, from a file: what a tagger can reach, not a method. Nothing is sent."""

    kind: Literal["reference"]
    spans: str


class LlmAnnotator(AnnotatorBase):
    """What every LLM has. Keys come from environment variables, never from a declaration."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    seed: Seed = 0
    concurrency: PositiveInt = 8
    timeout_s: PositiveFloat = 60.0
    retries: Annotated[int, Field(ge=0, le=20)] = 5
    structured_output: Literal["json_schema", "json_object", "none"] = "json_schema"


class OpenAIAnnotator(LlmAnnotator):
    kind: Literal["openai"]
    api_key_env: str = "OPENAI_API_KEY"


class AzureAnnotator(LlmAnnotator):
    kind: Literal["azure_openai"]
    api_key_env: str = "AZURE_OPENAI_API_KEY"
    endpoint_env: str = "AZURE_OPENAI_ENDPOINT"
    api_version: str


class CompatibleAnnotator(LlmAnnotator):
    """Any server that speaks the OpenAI protocol: vLLM, Ollama, llama.cpp."""

    kind: Literal["openai_compatible"]
    base_url_env: str
    api_key_env: str | None = None


class Weights(Declaration):
    """A weights file inside an installed Python package, known by its hash."""

    package: str
    version: str
    file: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    licence: str


class LlamaCppAnnotator(LlmAnnotator):
    """A local LLM: the annotator starts llama.cpp's server on a free loopback port and stops it again."""

    kind: Literal["llama_cpp"]
    weights: Weights
    context_tokens: PositiveInt = 2048
    threads: PositiveInt = 2
    concurrency: PositiveInt = 1


Annotator = Annotated[
    LexiconAnnotator | ReferenceAnnotator | OpenAIAnnotator | AzureAnnotator | CompatibleAnnotator | LlamaCppAnnotator,
    Field(discriminator="kind"),
]


# --- profile ----------------------------------------------------------------------------------------


RecordColumn = Literal["record_id", "patient_id", "date", "genre", "age_group", "sex", "diagnosis", "text"]

RECORD_COLUMNS: tuple[str, ...] = get_args(RecordColumn)


class RecordsSource(Declaration):
    """Where the local notes lie. ``columns`` maps our column names to the file's."""

    paths: Annotated[list[str], Field(min_length=1)]
    format: Literal["csv", "tsv", "jsonl", "parquet"]
    encoding: str = "utf-8"
    columns: dict[RecordColumn, str] = {}

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise ValueError("not an encoding that Python knows; try utf-8, latin-1 or cp1257") from None
        return encoding


class GoldSource(Declaration):
    """Where the human-annotated notes lie, as doccano's JSONL."""

    paths: Annotated[list[str], Field(min_length=1)]
    format: Literal["doccano"] = "doccano"


class GeneratorSettings(Declaration):
    """GPT-2 and its byte-level BPE; from scratch unless ``checkpoint`` names an id or a path."""

    checkpoint: str | None = None
    vocabulary_size: PositiveInt = 50257
    layers: PositiveInt = 12
    heads: PositiveInt = 12
    width: PositiveInt = 768
    context_tokens: PositiveInt = 512
    epochs: PositiveFloat = 5.0
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 5e-4
    warmup_fraction: Fraction = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    holdout_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Share of patients, not of notes, that the generator never sees."""
    early_stopping_patience: PositiveInt = 3
    seed: Seed = 0


class SamplingSettings(Declaration):
    """How synthetic notes are sampled."""

    notes: PositiveInt
    temperature: PositiveFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    max_new_tokens: PositiveInt = 400
    batch_size: PositiveInt = 64
    min_patients: PositiveInt = 3
    """Condition tuples of fewer patients than this are never sampled (k-anonymity)."""
    seed: Seed = 0


class OriginalitySettings(Declaration):
    """Which synthetic notes count as original."""

    max_run_words: PositiveInt
    """A note is dropped when it shares a run of more words than this with any record."""
    max_run_share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """A note is also dropped when such a run makes up this share of it: short notes can be copied whole."""
    min_words: PositiveInt = 5
    max_unknown_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """A note is dropped when a larger share of its words stands in no record: a small model invents words."""
    drop_unfinished: bool = True


class AnnotationSettings(Declaration):
    notes: PositiveInt
    """Vetted notes per cell, unless the annotator declares its own number."""
    seed: Seed = 0
    max_unanswered: Fraction = 0.02
    """A cell fails when a larger share of its notes got no answer: no server, time-outs, not asked any more."""
    annotators: Annotated[list[Key], Field(min_length=1)]
    """The annotators of this profile; the others stay declared and idle."""


class TaggerSettings(Declaration):
    """The NER model: ``charcnn-bilstm-crf`` or any Hugging Face token-classification checkpoint."""

    model: str = "charcnn-bilstm-crf"
    epochs: PositiveInt = 8
    min_steps: Annotated[int, Field(ge=0)] = 0
    """A small training set is gone through more often than ``epochs``, until so many optimiser steps are made."""
    learning_rate: PositiveFloat = 2e-5
    batch_size: PositiveInt = 16
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup_fraction: Fraction = 0.1
    dropout: Fraction = 0.3
    """Of ``charcnn-bilstm-crf``; a checkpoint keeps its own."""
    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.15
    early_stopping_patience: PositiveInt = 3
    max_tokens: PositiveInt = 256
    """Sub-words (or tokens) of one window; longer notes are cut into overlapping windows."""
    casing_augmentation: Fraction = 0.2
    """Share of the training notes that are shown in another casing (synthetic and real notes differ in it)."""
    seed: Seed = 0


class EvaluationSettings(Declaration):
    bootstrap_samples: PositiveInt = 1000
    confidence_level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    seed: Seed = 0


class LearningCurveSettings(Declaration):
    """Every size is trained on random subsets, each with its own seed, at a fixed number of steps."""

    sizes: Annotated[list[PositiveInt], Field(min_length=1)]
    subsets: PositiveInt = 3
    steps: PositiveInt
    seed: Seed = 0


class Profile(Declaration):
    """One study: its data, its sizes and its settings."""

    key: Key
    description: str
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]
    """Language of the notes, by which mentions are grounded."""
    records: RecordsSource
    gold: GoldSource
    generator: GeneratorSettings
    sampling: SamplingSettings
    originality: OriginalitySettings
    annotation: AnnotationSettings
    tagger: TaggerSettings
    evaluation: EvaluationSettings
    learning_curves: LearningCurveSettings

    @model_validator(mode="after")
    def _room_for_notes(self) -> "Profile":
        if self.sampling.max_new_tokens >= self.generator.context_tokens:
            raise ValueError(
                "sampling.max_new_tokens must be smaller than generator.context_tokens, which also holds the prefix"
            )
        return self
