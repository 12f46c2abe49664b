"""The shape of every declaration, as pydantic models: what may be said, in which unit, within which bounds.

This module reads nothing. ``declarations`` reads the files, and checks what goes across them.
"""

import codecs
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Annotated, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    field_validator,
    model_validator,
)

NO_PROMPT = "none"
"""The prompt key of cells whose annotator takes no prompt."""

Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Money = Annotated[Decimal, Field(ge=0, max_digits=12, decimal_places=6)]
"""An amount of some currency, exact to a millionth of its unit."""
Currency = Annotated[str, Field(pattern=r"^([A-Z]{3})?$")]
"""An ISO 4217 code; empty where nothing is paid."""


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
    per_entity: bool = False
    """One question for each enabled entity, which the body shows as ``{{ entity }}``."""
    reasoning: bool = False
    """The LLM may give its reasons before the JSON; structured output, which forbids that, is not asked for."""
    examples: list[Example] = []
    example_pool: str | None = None
    """A JSONL file of examples, relative to the project, some of which are shown with each question.

    Its texts are sent to the LLM like the rest of the prompt: never a real note, never a gold one.
    """
    choose: Literal["random", "similar"] = "random"
    """``random``: the same examples for all notes; ``similar``: each note's nearest ones."""
    count: PositiveInt = 3
    seed: Seed = 0
    window_words: PositiveInt | None = None
    """Longer notes are asked about in overlapping windows of so many words."""
    overlap_words: Annotated[int, Field(ge=0)] = 0
    replicates: Annotated[int, Field(ge=1, le=100)] = 1
    """How often each question is asked, with a seed of its own; a vote decides on every mention."""
    min_votes: PositiveInt | None = None
    """A mention is kept with so many votes; more than half of the answered replicates where absent."""
    second_look: Annotated[str, Field(min_length=1)] | None = None
    """A body that shows ``{{ note }}`` and ``{{ answer }}``: what it is answered with replaces the first answer."""
    max_answer_tokens: PositiveInt = 512
    body: Annotated[str, Field(min_length=1)]
    _pool: tuple[Example, ...] = PrivateAttr(())

    @property
    def pool(self) -> tuple[Example, ...]:
        """The content of ``example_pool``, once it was read."""
        return self._pool

    def with_pool(self, examples: Sequence[Example]) -> "Prompt":
        """Return the prompt with the content of its ``example_pool``."""
        prompt = self.model_copy()
        prompt._pool = tuple(examples)
        return prompt

    @model_validator(mode="after")
    def _one_way_of_asking(self) -> "Prompt":
        notes_only = ("per_entity", "reasoning", "example_pool", "window_words", "second_look")
        asked = [name for name in notes_only if getattr(self, name)] + ["replicates"] * (self.replicates > 1)
        if self.mode == "tag_words" and asked:
            raise ValueError(f"the mode tag_words asks about words alone and knows no {', '.join(asked)}")
        if self.example_pool and self.examples:
            raise ValueError("declare either examples or example_pool")
        lonely = sorted(self.model_fields_set & {"choose", "count", "seed"})
        if lonely and not self.example_pool:
            raise ValueError(f"{', '.join(lonely)} belongs to an example_pool, and there is none")
        return self

    @model_validator(mode="after")
    def _room_for_votes_and_overlaps(self) -> "Prompt":
        if self.min_votes and not 1 < self.replicates >= self.min_votes:
            raise ValueError("min_votes is a number of replicates: at most as many, and at least 2 of these")
        if self.overlap_words * 4 > (self.window_words or 0):
            raise ValueError("overlap_words must be at most a fourth of window_words, or windows hardly move on")
        return self


# --- prices -----------------------------------------------------------------------------------------


class Price(Declaration):
    """What a provider charges for a million tokens, as looked up on the day ``as_of``."""

    input_per_million: Money
    output_per_million: Money
    cached_input_per_million: Money | None = None
    """Of prompt tokens that the provider had cached; those of ``input_per_million`` where absent."""
    batch_discount: Annotated[Decimal, Field(ge=0, lt=1, decimal_places=4)] = Decimal("0.5")
    """The fraction of a price that the provider's batch interface takes off."""
    currency: Currency = ""
    as_of: date | None = None

    @property
    def is_free(self) -> bool:
        return not (self.input_per_million or self.output_per_million)

    @model_validator(mode="after")
    def _says_what_and_when(self) -> "Price":
        if not self.is_free and not (self.currency and self.as_of):
            raise ValueError("a price needs `currency` (such as USD) and `as_of`, the day on which it was looked up")
        if (self.cached_input_per_million or 0) > self.input_per_million:
            raise ValueError("cached_input_per_million must not be larger than input_per_million")
        return self


FREE = Price(input_per_million=Decimal(0), output_per_million=Decimal(0))
"""The price of what runs on one's own machines; declared as ``price: free``."""


def _free(declared: object) -> object:
    return FREE if declared == "free" else declared


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


class ConsensusAnnotator(AnnotatorBase):
    """What the cells of several annotators agree on; nobody is asked. All cells of each member vote."""

    kind: Literal["consensus"]
    members: Annotated[list[Key], Field(min_length=1)]
    method: Literal["majority", "dawid_skene"] = "dawid_skene"
    min_confidence: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Mentions of less confidence are left out: of the weighted votes, or of the posterior probability."""

    @property
    def least_voters(self) -> int:
        """Of two voters Dawid and Skene's method cannot tell who errs."""
        return 3 if self.method == "dawid_skene" else 2


class LlmAnnotator(AnnotatorBase):
    """What every LLM has. Keys come from environment variables, never from a declaration."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    seed: Seed = 0
    concurrency: PositiveInt = 8
    timeout_s: PositiveFloat = 60.0
    retries: Annotated[int, Field(ge=0, le=20)] = 5
    requests_per_minute: PositiveInt | None = None
    """At most so many requests in any minute; learnt from the server's headers where absent."""
    tokens_per_minute: PositiveInt | None = None
    """At most so many tokens, of questions and answers together, in any minute; likewise."""
    structured_output: Literal["json_schema", "json_object", "none"] = "json_schema"
    price: Annotated[Price | None, BeforeValidator(_free)] = None
    """Wins over ``prices.yaml``; ``free`` for a server of one's own."""
    mode: Literal["chat", "batch"] = "chat"
    """``batch``: files of many questions for half the price, answered within a day (OpenAI's Batch API)."""
    batch_requests: Annotated[int, Field(ge=1, le=50_000)] = 50_000
    """At most so many questions in one batch; fewer where the provider limits the tokens of waiting batches."""
    batch_poll_s: PositiveFloat = 60.0
    batch_max_wait_s: Annotated[float, Field(ge=0)] = 90_000.0
    """A build that has waited so long leaves the answers to the next one; 0 submits and goes on."""


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
    mode: Literal["chat"] = "chat"


Annotator = Annotated[
    LexiconAnnotator
    | ReferenceAnnotator
    | ConsensusAnnotator
    | OpenAIAnnotator
    | AzureAnnotator
    | CompatibleAnnotator
    | LlamaCppAnnotator,
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


class BudgetSettings(Declaration):
    """How much may be spent on LLMs at most. A limit that is absent limits nothing."""

    currency: Currency = ""
    max_cost_per_cell: Money | None = None
    """Of one cell within one build."""
    max_cost_per_build: Money | None = None
    max_cost_per_day: Money | None = None
    """Of all builds that share the store of responses, on one day in UTC."""

    @property
    def is_limited(self) -> bool:
        limits = (self.max_cost_per_cell, self.max_cost_per_build, self.max_cost_per_day)
        return any(limit is not None for limit in limits)

    @model_validator(mode="after")
    def _limits_have_a_currency(self) -> "BudgetSettings":
        if self.is_limited and not self.currency:
            raise ValueError("a limit needs `currency`, such as USD")
        return self


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
    budget: BudgetSettings = BudgetSettings()

    @model_validator(mode="after")
    def _room_for_notes(self) -> "Profile":
        if self.sampling.max_new_tokens >= self.generator.context_tokens:
            raise ValueError(
                "sampling.max_new_tokens must be smaller than generator.context_tokens, which also holds the prefix"
            )
        return self
