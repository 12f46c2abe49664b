"""The requests of one cell: which note becomes which questions, with which parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from estner_assets.llm.requests import JSON, Request, sha256
from estner_assets.llm.words import askable_words
from estner_assets.ner.parsing import Mention, answer_schema, word_grammar
from estner_assets.ner.prompts import EntityText, ExampleText, PromptTemplate
from estner_assets.settings import AzureAnnotator, CompatibleAnnotator, Entity, LlamaCppAnnotator, LlmAnnotator, Prompt


@dataclass(frozen=True)
class Note:
    """A note to annotate."""

    note_id: str
    text: str


class Questions(Sequence[Request]):
    """The requests of all notes, rendered when they are looked at: a long run holds only a few at a time.

    In the mode ``json`` a note is one request, in ``tag_words`` one for every word of ``places``.
    """

    def __init__(
        self, notes: Sequence[Note], annotator: LlmAnnotator, prompt: Prompt, entities: Sequence[Entity]
    ) -> None:
        """``entities`` are the enabled ones. Raises ``PromptError`` for a prompt that does not render."""
        self._notes = notes
        self._template = _template(prompt, entities)
        self._by_word = prompt.mode == "tag_words"
        self._model = _identity(annotator)
        self._parameters = _parameters(annotator, prompt, [entity.name for entity in entities])
        self._hashes = [sha256(note.text) for note in notes]
        self._starts = [0]
        self._owners: list[int] = []
        for index in range(len(notes)):
            count = len(self.places(index)) if self._by_word else 1
            self._owners += [index] * count
            self._starts.append(self._starts[-1] + count)

    def places(self, note_index: int) -> list[tuple[int, int]]:
        """Return the ranges (characters) of the words of a note that are asked about."""
        return askable_words(self._notes[note_index].text) if self._by_word else []

    def slice_of(self, note_index: int) -> slice:
        """Return where a note's requests lie in this sequence."""
        return slice(self._starts[note_index], self._starts[note_index + 1])

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Request: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Request]: ...
    def __getitem__(self, index: int | slice) -> Request | Sequence[Request]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        owner = self._owners[index]
        note = self._notes[owner]
        if self._by_word:
            start, end = self.places(owner)[index - self._starts[owner]]
            messages = self._template.render_word(note.text, start, end)
        else:
            messages = self._template.render_note(note.text)
        return Request(self._model, messages, self._parameters, note.note_id, self._hashes[owner])


def _template(prompt: Prompt, entities: Sequence[Entity]) -> PromptTemplate:
    shown = [
        EntityText(entity.name, entity.definition, tuple(entity.positive), tuple(entity.negative))
        for entity in entities
    ]
    names = {entity.name for entity in entities}
    examples = [
        ExampleText(
            example.text,
            tuple(Mention(one.label, one.text) for one in example.mentions if one.label in names),
        )
        for example in prompt.examples
    ]
    return PromptTemplate(prompt.body, shown, examples)


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
    if annotator.structured_output == "json_schema":
        schema: JSON = {"name": "entities", "strict": True, "schema": answer_schema(labels)}
        parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif annotator.structured_output == "json_object":
        parameters["response_format"] = {"type": "json_object"}
    return parameters
