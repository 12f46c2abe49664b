"""The requests of one cell: which note becomes which questions, with which parameters, and how answers are read."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

from estner_assets.llm.requests import JSON, Request, Response, sha256
from estner_assets.llm.store import ResponseStore
from estner_assets.llm.words import askable_words
from estner_assets.ner.examples import ExamplePool
from estner_assets.ner.languages import language
from estner_assets.ner.parsing import (
    AnswerStatus,
    Mention,
    Parsed,
    answer_schema,
    parse_json_answer,
    parse_reasoned_answer,
    word_grammar,
)
from estner_assets.ner.prompts import ChatMessage, EntityText, ExampleText, PromptTemplate
from estner_assets.ner.windows import windows
from estner_assets.settings import (
    AzureAnnotator,
    CompatibleAnnotator,
    Entity,
    Example,
    LlamaCppAnnotator,
    LlmAnnotator,
    Prompt,
)

NOTES_A_READ = 256
"""Notes whose answers are read from the store at once: that many are in memory, however many there are."""
NOTES_LANGUAGE = "et"
"""Language of the notes where the caller does not say it."""
_SEEDS = 2**31
_RECENT_NOTES = 256


@dataclass(frozen=True)
class Note:
    """A note to annotate."""

    note_id: str
    text: str


@dataclass(frozen=True)
class Part:
    """What one request is about: a range (characters) of a note, one of the prompt's askings, and which try it is."""

    note_index: int
    start: int
    end: int
    asking: int
    replicate: int


class _Rendered(Sequence[Request]):
    """Requests that are made when they are looked at."""

    def _at(self, index: int) -> Request:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Request: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Request]: ...
    def __getitem__(self, index: int | slice) -> Request | Sequence[Request]:
        places = range(len(self))[index]
        return [self._at(place) for place in places] if isinstance(places, range) else self._at(places)


class Questions(_Rendered):
    """The requests of all notes, rendered when they are looked at: a long run holds only a few at a time.

    In the mode ``tag_words`` a word of a note is a request. In the mode ``json`` a note is one, or one for each
    of its windows, of the enabled entities and of the replicates that the prompt declares.
    """

    def __init__(
        self,
        notes: Sequence[Note],
        annotator: LlmAnnotator,
        prompt: Prompt,
        entities: Sequence[Entity],
        notes_language: str = NOTES_LANGUAGE,
    ) -> None:
        """``entities`` are the enabled ones. Raises ``PromptError`` for a prompt that does not render."""
        self.notes, self.prompt, self.language = notes, prompt, language(notes_language)
        self._annotator, self._model = annotator, _identity(annotator)
        groups = [[entity] for entity in entities] if prompt.per_entity else [entities]
        self._askings = [_Asking(prompt, group) for group in groups]
        self._pool = _pool(prompt)
        self._hashes = [sha256(note.text) for note in notes]
        # the parts of a note are asked about one after the other
        self._ranges_of = lru_cache(maxsize=_RECENT_NOTES)(self._ranges)
        self._chosen = lru_cache(maxsize=_RECENT_NOTES)(self._pool.chosen) if self._pool else None
        self._starts = [0]
        for index in range(len(notes)):
            count = len(self._ranges(index)) * len(self._askings) * prompt.replicates
            self._starts.append(self._starts[-1] + count)

    def ranges(self, note_index: int) -> Sequence[tuple[int, int]]:
        """Return the ranges (characters) of a note that are asked about: its words, its windows, or all of it."""
        return self._ranges_of(note_index)

    def parts(self, note_index: int) -> list[Part]:
        """Return what a note's requests are about, in their order: by replicate, then range, then asking."""
        return [
            Part(note_index, start, end, asking, replicate)
            for replicate in range(self.prompt.replicates)
            for start, end in self.ranges(note_index)
            for asking in range(len(self._askings))
        ]

    def request(self, part: Part) -> Request:
        """Return the request about a part of a note."""
        text, asking = self.notes[part.note_index].text, self._askings[part.asking]
        if self.prompt.mode == "tag_words":
            return self._request(part, asking.body.render_word(text, part.start, part.end))
        shown = text[part.start : part.end]
        return self._request(part, asking.body.render_note(shown, self._examples(asking, shown)))

    def second_look(self, part: Part, mentions: Sequence[Mention]) -> Request:
        """Return the request that shows the first answer about a part and asks for a better one."""
        asking = self._askings[part.asking]
        assert asking.second_look is not None
        shown = self.notes[part.note_index].text[part.start : part.end]
        return self._request(part, asking.second_look.render_answer(shown, mentions, self._examples(asking, shown)))

    def read(self, part: Part, response: Response) -> Parsed:
        """Return what a response says about a part of a note; only an ``ANNOTATED`` one says anything."""
        if response.status is not AnswerStatus.ANNOTATED:
            return Parsed(response.status, (), response.reason)
        labels = self._askings[part.asking].labels
        parse = parse_reasoned_answer if self.prompt.reasoning else parse_json_answer
        return parse(response.text, labels)

    def _examples(self, asking: "_Asking", text: str) -> list[ExampleText] | None:
        return [asking.pool[place] for place in self._chosen(text)] if self._chosen else None

    def _ranges(self, note_index: int) -> Sequence[tuple[int, int]]:
        text = self.notes[note_index].text
        if self.prompt.mode == "tag_words":
            return askable_words(text, self.language)
        if self.prompt.window_words is None:
            return [(0, len(text))]
        return windows(text, self.prompt.window_words, self.prompt.overlap_words)

    def _request(self, part: Part, messages: tuple[ChatMessage, ...]) -> Request:
        parameters = _parameters(self._annotator, self.prompt, self._askings[part.asking].labels)
        # a server that samples by seed would give every replicate the same answer
        parameters["seed"] = (self._annotator.seed + part.replicate) % _SEEDS
        note_id, text_sha256 = self.notes[part.note_index].note_id, self._hashes[part.note_index]
        return Request(self._model, messages, parameters, note_id, text_sha256, part.replicate)

    def __len__(self) -> int:
        return self._starts[-1]

    def _at(self, index: int) -> Request:
        return self.request(self._part(index))

    def _part(self, index: int) -> Part:
        note_index = bisect_right(self._starts, index) - 1
        ranges = self.ranges(note_index)
        before, asking = divmod(index - self._starts[note_index], len(self._askings))
        replicate, place = divmod(before, len(ranges))
        return Part(note_index, *ranges[place], asking, replicate)


class SecondLooks(_Rendered):
    """The second requests of those parts whose first answer could be read; the others have nothing to look at.

    The first answers stay in the store until their request is rendered.
    """

    def __init__(self, questions: Questions, store: ResponseStore) -> None:
        self._questions, self._store = questions, store
        self._parts = [part for some in _in_chunks(questions) for part in self._readable(some)]

    def _readable(self, parts: Sequence[Part]) -> Iterator[Part]:
        keys = [self._questions.request(part).key for part in parts]
        found = self._store.get_many(keys)
        for part, key in zip(parts, keys, strict=True):
            if key in found and self._questions.read(part, found[key])[0] is AnswerStatus.ANNOTATED:
                yield part

    def __len__(self) -> int:
        return len(self._parts)

    def _at(self, index: int) -> Request:
        part = self._parts[index]
        key = self._questions.request(part).key
        _, mentions, _ = self._questions.read(part, self._store.get_many([key])[key])
        return self._questions.second_look(part, mentions)


def _in_chunks(questions: Questions) -> Iterator[list[Part]]:
    count = len(questions.notes)
    for start in range(0, count, NOTES_A_READ):
        yield [part for index in range(start, min(start + NOTES_A_READ, count)) for part in questions.parts(index)]


class _Asking:
    """The templates that ask for some of the entities at once, and the examples with no others."""

    def __init__(self, prompt: Prompt, entities: Sequence[Entity]) -> None:
        texts = [EntityText(one.name, one.definition, tuple(one.positive), tuple(one.negative)) for one in entities]
        entity = texts[0] if prompt.per_entity else None
        self.labels = tuple(one.name for one in entities)
        self.pool = self._shown(prompt.pool)
        examples = self._shown(prompt.examples) or self.pool[: prompt.count]
        self.body = PromptTemplate(prompt.body, texts, examples, entity)
        second = prompt.second_look
        self.second_look = PromptTemplate(second, texts, examples, entity) if second is not None else None

    def _shown(self, examples: Sequence[Example]) -> list[ExampleText]:
        return [
            ExampleText(one.text, tuple(Mention(it.label, it.text) for it in one.mentions if it.label in self.labels))
            for one in examples
        ]


def _pool(prompt: Prompt) -> ExamplePool | None:
    if not prompt.pool:
        return None
    return ExamplePool([one.text for one in prompt.pool], prompt.choose, prompt.count, prompt.seed)


def _identity(annotator: LlmAnnotator) -> str:
    """Return what tells this LLM from others: two providers may call different models by one name."""
    match annotator:
        case LlamaCppAnnotator():
            where = f"@{annotator.weights.sha256}"
        case CompatibleAnnotator():
            where = f"@{annotator.base_url_env}"
        case AzureAnnotator():
            where = f"@{annotator.endpoint_env}/{annotator.api_version}"
        case _:
            where = ""
    return f"{getattr(annotator, 'kind', 'llm')}/{annotator.model}{where}"


def _parameters(annotator: LlmAnnotator, prompt: Prompt, labels: Sequence[str]) -> dict[str, JSON]:
    parameters: dict[str, JSON] = {
        "temperature": annotator.temperature,
        "seed": annotator.seed,
        "max_tokens": prompt.max_answer_tokens,
    }
    is_llama = isinstance(annotator, LlamaCppAnnotator)
    if is_llama:
        parameters["cache_prompt"] = True
    if prompt.mode == "tag_words":
        # only llama.cpp takes GBNF; other LLMs are large enough to keep to the words asked for
        return parameters | ({"grammar": word_grammar(labels)} if is_llama else {})
    if prompt.reasoning:
        # a schema binds the first token already, and leaves no room for a reason
        return parameters
    if annotator.structured_output == "json_schema":
        schema: JSON = {"name": "entities", "strict": True, "schema": answer_schema(labels)}
        parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif annotator.structured_output == "json_object":
        parameters["response_format"] = {"type": "json_object"}
    return parameters
