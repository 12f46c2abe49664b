"""Prompts: a Jinja2 body that becomes chat messages; the note is data that cannot break out of its fence."""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from estner_assets.ner.parsing import Mention

Role = Literal["system", "user", "assistant"]

ALLOWED_VARIABLES = ("entities", "entity", "examples", "labels", "note", "answer", "word", "before", "after")
"""``note`` is fenced already.

``entity`` exists with ``per_entity`` only, ``answer`` in a second look, ``word``, ``before`` and ``after`` in the
mode ``tag_words``.
"""

_ROLE_LINE = re.compile(r"^###[ \t]+(system|user|assistant)[ \t]*$", re.MULTILINE)
# What chat templates read as control tokens: <|im_start|>, <start_of_turn>, </s>, [INST]
_CONTROL = re.compile(r"<(?=\|?/?[A-Za-z_][\w-]*\|?>)|\[(?=/?INST\])")


class PromptError(ValueError):
    """A prompt body that cannot be used; the message names the line and what is allowed."""


@dataclass(frozen=True)
class EntityText:
    """An entity type as a prompt shows it."""

    name: str
    definition: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


@dataclass(frozen=True)
class ExampleText:
    """A few-shot example; ``{{ example.mentions | answer }}`` writes the answer it asks for."""

    text: str
    mentions: tuple[Mention, ...]


@dataclass(frozen=True)
class ChatMessage:
    """One message of a chat, as the OpenAI protocol has it."""

    role: Role
    content: str


class PromptTemplate:
    """A prompt body, compiled once and tried once, so that what renders later is known to render.

    Lines ``### system``, ``### user``, ``### assistant`` start a message, also inside loops. Filters:
    ``answer`` (mentions as the JSON to give), ``fenced`` (a text in its own fence), ``first_words(n)`` and
    ``last_words(n)``.
    """

    def __init__(
        self,
        body: str,
        entities: Sequence[EntityText],
        examples: Sequence[ExampleText],
        entity: EntityText | None = None,
    ) -> None:
        """Raise ``PromptError`` for invalid Jinja2, unknown names and a body that never shows the note.

        ``entity`` is the one asked about, where each entity has a question of its own.
        """
        self._labels = tuple(one.name for one in entities)
        self._constants: dict[str, object] = {
            "entities": tuple(entities),
            "examples": tuple(examples),
            "labels": self._labels,
        } | ({"entity": entity} if entity else {})
        # Roles are cut after rendering, at a mark that no note can contain because it is drawn here
        self._mark = f"\x00{secrets.token_hex(16)}:"
        self._template, used = self._compile(body)
        self.variables = frozenset(used)
        self.asks_words = bool(used & {"word", "before", "after"})
        self.shows_answer = "answer" in used
        if "entity" in used and entity is None:
            raise PromptError("the prompt uses {{ entity }}; set `per_entity: true`, or write `for entity in entities`")
        if not used & {"note", "word"}:
            raise PromptError("the prompt never shows the note; write {{ note }} where it belongs, or {{ word }}")
        self._try()

    def render_note(self, note: str, examples: Sequence[ExampleText] | None = None) -> tuple[ChatMessage, ...]:
        """Return the messages that ask about a whole note, with these examples in place of the template's own."""
        if self.asks_words:
            raise PromptError("the prompt uses {{ word }}, which only the mode tag_words has; set `mode: tag_words`")
        if self.shows_answer:
            raise PromptError("the prompt uses {{ answer }}, which only the body of a `second_look` has")
        return self._messages({"note": fence(note), **_shown(examples)})

    def render_answer(
        self, note: str, mentions: Sequence[Mention], examples: Sequence[ExampleText] | None = None
    ) -> tuple[ChatMessage, ...]:
        """Return the messages that ask to look again at the answer that was given for a note."""
        if not self.shows_answer:
            raise PromptError("the second look never shows the first answer; write {{ answer }} where it belongs")
        # the answer's words come from the note: on its one line of JSON they can end neither line nor turn
        shown = _defuse(_answer_json(mentions, self._labels))
        return self._messages({"note": fence(note), "answer": shown, **_shown(examples)})

    def render_word(self, note: str, word_start: int, word_end: int) -> tuple[ChatMessage, ...]:
        """Return the messages that ask about ``note[word_start:word_end]``."""
        word, before, after = note[word_start:word_end], note[:word_start], note[word_end:]
        pieces = {"word": word, "before": before, "after": after}
        return self._messages({"note": fence(note), **{name: _defuse(text) for name, text in pieces.items()}})

    def _compile(self, body: str) -> tuple[Template, set[str]]:
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.filters |= {"answer": partial(_answer_json, labels=self._labels), "fenced": fence}
        environment.filters |= {"first_words": _first_words, "last_words": _last_words}
        source = _ROLE_LINE.sub(lambda line: f"{self._mark}{line[1]}", body.replace("\r\n", "\n"))
        try:
            tree = environment.parse(source)
            template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise PromptError(_located(error.lineno, error.message or "syntax error")) from error
        _refuse_unknown(tree)
        return template, meta.find_undeclared_variables(tree)

    def _try(self) -> None:
        text = "Patsient tarvitab ravimit."
        try:
            if self.asks_words:
                self.render_word(text, 0, 8)
            elif self.shows_answer:
                self.render_answer(text, [])
            else:
                self.render_note(text)
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            if isinstance(error, PromptError):
                raise
            raise PromptError(_located(_template_line(error), str(error))) from error

    def _messages(self, variables: Mapping[str, object]) -> tuple[ChatMessage, ...]:
        preface, *parts = self._template.render({**self._constants, **variables}).split(self._mark)
        if not parts:
            return (ChatMessage("user", preface.strip()),)
        if preface.strip():
            raise PromptError("line 1: text before the first role line; start the body with ### system or ### user")
        split = (part.partition("\n") for part in parts)
        messages = tuple(ChatMessage(cast(Role, role), content.strip()) for role, _, content in split)
        if messages[-1].role != "user":
            raise PromptError(f"the last message is {messages[-1].role}; end the body with a ### user message")
        return messages


def _shown(examples: Sequence[ExampleText] | None) -> dict[str, object]:
    return {} if examples is None else {"examples": tuple(examples)}


def fence(text: str) -> str:
    """Return the text between two lines that it cannot contain: they carry a hash of the text itself.

    Sequences that chat templates take for control tokens (``<|im_end|>``) are taken apart as well.
    """
    shown = _defuse(text)
    seal = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    while seal in shown:
        seal = hashlib.sha256(seal.encode()).hexdigest()[:12]
    return f"<<<NOTE {seal}\n{shown}\nNOTE {seal}>>>"


def _defuse(text: str) -> str:
    return _CONTROL.sub(lambda match: match[0] + " ", text)


def _answer_json(mentions: Sequence[Mention], labels: Sequence[str]) -> str:
    lists = {label: [mention.text for mention in mentions if mention.label == label] for label in labels}
    return json.dumps(lists, ensure_ascii=False)


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split()[:count])


def _last_words(text: str, count: int) -> str:
    return " ".join(text.split()[-count:]) if count else ""


def _refuse_unknown(tree: nodes.Template) -> None:
    unknown = meta.find_undeclared_variables(tree) - set(ALLOWED_VARIABLES)
    for name in tree.find_all(nodes.Name):
        if name.name in unknown:
            raise PromptError(_located(name.lineno, f"unknown variable {name.name!r}"))


def _located(line: int | None, problem: str) -> str:
    place = f"line {line}: " if line else ""
    return f"{place}{problem}; allowed variables: {', '.join(ALLOWED_VARIABLES)}"


def _template_line(error: BaseException) -> int | None:
    """Return the line of the body where rendering failed: Jinja2 puts it into the traceback."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
