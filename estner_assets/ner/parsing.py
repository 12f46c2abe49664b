"""Reading what an LLM answered: JSON with prose around it, or one word out of a few.

Trap 10 and 11 of the published notebooks: their parser cut at the first ``}`` and one bad entity dropped the
whole document. Here the JSON is parsed, a bad entity costs only itself, and every failure has a status.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

OTHER = "other"
"""The word that says: this word belongs to no entity."""

_NOTHING = frozenset({"", "-", "none", "null", "n/a", "nothing", "puudub", "puuduvad", "ei ole"})
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
_BETWEEN_PARTS = re.compile(r"[\s,]*")
# What may stand beside an answer on its lines: quotes of Markdown, a fence, the brackets of a list
_BEFORE = re.compile(r"[\s>*_`\[]*(?:json\b\s*)?[\s\[]*", re.IGNORECASE)
_AFTER = re.compile(r"[\s.*_`\]]*")


class AnswerStatus(StrEnum):
    """What became of one question. Only ``ANNOTATED`` says anything about the note's entities."""

    ANNOTATED = "annotated"
    REFUSED = "refused"
    MALFORMED = "malformed"
    TRUNCATED = "truncated"
    FILTERED = "filtered"
    TIMED_OUT = "timed_out"
    FAILED = "failed"
    """Transport or server error after all retries."""
    OVER_BUDGET = "over_budget"
    """Not sent: its worst case would have gone beyond a declared limit."""
    PENDING = "pending"
    """Not sent, or not answered yet; the next build goes on with it."""

    @property
    def is_answer(self) -> bool:
        """Whether the LLM answered at all, well or badly; otherwise asking again may help."""
        return self not in _UNANSWERED


_UNANSWERED = frozenset({AnswerStatus.FAILED, AnswerStatus.TIMED_OUT, AnswerStatus.OVER_BUDGET, AnswerStatus.PENDING})


@dataclass(frozen=True, slots=True)
class Mention:
    """What an LLM named: a label and the words it gave, not yet looked up in the note.

    ``confidence`` is the share of replicates (0..1) that named it, ``None`` where there was no vote.
    """

    label: str
    text: str
    confidence: float | None = None


class _Found:
    """The mentions of an answer while it is read, by label, and how much had to be dropped."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = {label.casefold(): label for label in labels}
        self.lists: dict[str, list[str]] = {}
        self.singles: list[Mention] = []
        self.is_answer = False
        self.has_json = False
        self.dropped = 0
        self.unreadable = 0
        """Of the dropped, those that may have named an entity that was asked for."""

    def label(self, name: object) -> str | None:
        folded = name.strip().casefold() if isinstance(name, str) else ""
        return self.labels.get(folded) or self.labels.get(folded.removesuffix("s"))

    def mentions(self) -> tuple[Mention, ...]:
        listed = (Mention(label, text) for label, texts in self.lists.items() for text in texts)
        return (*listed, *self.singles)


class Parsed(NamedTuple):
    """An answer's status, its mentions in order with duplicates, and what was wrong (or ``""``).

    There are no mentions unless the status is ``ANNOTATED``.
    """

    status: AnswerStatus
    mentions: tuple[Mention, ...]
    reason: str


def parse_json_answer(text: str, labels: Sequence[str]) -> Parsed:
    """Read an answer that is JSON.

    Understands ``{"DRUG": ["a"], "PROCEDURE": []}`` and ``{"entities": [{"label": "DRUG", "text": "a"}]}``,
    bare, fenced or inside prose. Where two objects answer for the same label, the later one counts.
    """

    def read(shown: str) -> _Found:
        return _found([value for value, _, _ in _objects(shown)], labels)

    return _parsed(text, labels, read)


def parse_reasoned_answer(text: str, labels: Sequence[str]) -> Parsed:
    """Read an answer that stands as JSON behind the reasons for it.

    The last JSON that answers counts, and nothing before it: reasons quote the note, the examples and drafts.
    JSON within a line of prose is a quotation, too, unless the whole text ends with it. Objects that only
    white space and commas keep apart are one answer.
    """

    def read(shown: str) -> _Found:
        found = _Found(labels)
        for values in _standing_answers(shown):
            later = _found(values, labels)
            found = later if later.is_answer or not found.is_answer else found
        return found

    return _parsed(text, labels, read)


def _parsed(text: str, labels: Sequence[str], read: Callable[[str], _Found]) -> Parsed:
    try:
        found = read(_THINKING.sub("", text))
    except json.JSONDecodeError as error:
        return Parsed(AnswerStatus.MALFORMED, (), f"the JSON breaks off: {error.msg}")
    except RecursionError:
        return Parsed(AnswerStatus.MALFORMED, (), "the JSON is nested too deeply")
    if not found.is_answer:
        unknown = f"no known label in the JSON; expected {', '.join(labels)}"
        return Parsed(AnswerStatus.MALFORMED, (), unknown if found.has_json else "no JSON object in the answer")
    reason = f"{found.dropped} malformed or unknown entities dropped" if found.dropped else ""
    if found.unreadable and not found.mentions():
        # something was named, and none of it could be read: that is not "no entities"
        return Parsed(AnswerStatus.MALFORMED, (), reason)
    return Parsed(AnswerStatus.ANNOTATED, found.mentions(), reason)


def _found(values: Sequence[object], labels: Sequence[str]) -> _Found:
    found = _Found(labels)
    found.has_json = bool(values)
    for value in values:
        found.is_answer = found.is_answer or value == {}
        _read(value, found)
    return found


def _standing_answers(text: str) -> Iterator[list[Any]]:
    """Yield the objects that stand on lines of their own or end the text, neighbours together."""
    objects = list(_objects(text))
    first = 0
    for last, (_, _, end) in enumerate(objects):
        after = objects[last + 1][1] if last + 1 < len(objects) else None
        if after is not None and _BETWEEN_PARTS.fullmatch(text, end, after):
            continue
        if _stands_alone(text, objects[first][1], end):
            yield [value for value, _, _ in objects[first : last + 1]]
        first = last + 1


def _stands_alone(text: str, start: int, end: int) -> bool:
    if _AFTER.fullmatch(text, end):
        return True
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", end)
    is_last_of_line = _AFTER.fullmatch(text, end, line_end if line_end >= 0 else len(text))
    return bool(_BEFORE.fullmatch(text, line_start, start) and is_last_of_line)


def _objects(text: str) -> Iterator[tuple[Any, int, int]]:
    """Yield every outermost JSON object with its range (characters).

    Raises ``JSONDecodeError`` for an object that the text's end cuts off.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_joined, strict=False)
    end_of_text = len(text.rstrip())
    position = text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            if error.pos >= end_of_text or error.msg.startswith("Unterminated string"):
                raise
            end = position + 1
        else:
            yield value, position, end
        position = text.find("{", end)


def _joined(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, but join the lists of a repeated key instead of keeping the last."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        before = result.get(key)
        result[key] = [*before, *value] if isinstance(before, list) and isinstance(value, list) else value
    return result


def _read(value: object, found: _Found) -> None:
    if isinstance(value, list):
        for item in value:
            _read(item, found)
    elif isinstance(value, Mapping):
        _read_object(value, found)


def _read_object(value: Mapping[str, Any], found: _Found) -> None:
    if "label" in value and "text" in value:
        _read_single(value, found)
    elif isinstance(value.get("entities"), list):
        found.is_answer, found.singles = True, []
        for item in value["entities"]:
            if isinstance(item, Mapping):
                _read_single(item, found)
            else:
                found.dropped += 1
                found.unreadable += 1
    elif any(found.label(key) for key in value):
        found.is_answer = True
        for key, items in value.items():
            _read_list(key, items, found)
    else:
        for item in value.values():
            _read(item, found)


def _read_single(item: Mapping[str, Any], found: _Found) -> None:
    found.is_answer = True
    label, text = found.label(item.get("label")), _mention_text(item.get("text"))
    if label is None or text is None:
        found.dropped += 1
        found.unreadable += text is None or not isinstance(item.get("label"), str)
    elif text.casefold() not in _NOTHING:
        found.singles.append(Mention(label, text))


def _read_list(key: str, items: object, found: _Found) -> None:
    label = found.label(key)
    texts = [_mention_text(item) for item in (items if isinstance(items, list) else [items])]
    if label is None:
        found.dropped += len(texts)
        return
    # null stands for "none of these", as the empty list does
    lost = 0 if items is None else texts.count(None)
    found.dropped += lost
    found.unreadable += lost
    found.lists[label] = [text for text in texts if text is not None and text.casefold() not in _NOTHING]


def _mention_text(item: object) -> str | None:
    text = item.get("text") if isinstance(item, Mapping) else item
    # json.loads lets lone surrogates through, which no file or database can store
    return text.strip() if isinstance(text, str) and not re.search("[\ud800-\udfff]", text) else None


def answer_schema(labels: Sequence[str]) -> dict[str, Any]:
    """Return the JSON schema of an answer, strict enough for every server's structured output."""
    strings = {"type": "array", "items": {"type": "string"}}
    return {
        "type": "object",
        "properties": dict.fromkeys(labels, strings),
        "required": list(labels),
        "additionalProperties": False,
    }


def word_grammar(labels: Sequence[str]) -> str:
    """Return a GBNF grammar (llama.cpp) whose only sentences are the labels in lower case and ``other``."""
    return "root ::= " + " | ".join(f'"{word}"' for word in (*(label.lower() for label in labels), OTHER))


def parse_word_answer(text: str, labels: Sequence[str]) -> str | None:
    """Return the label that the answer names, ``"other"`` for none of them, or ``None`` when it says neither.

    The beginning of exactly one choice names it: under a grammar, one token is all there is to say.
    """
    words = re.findall(r"\w+", text.casefold())
    choices = {label.casefold(): label for label in labels} | {OTHER: OTHER}
    named = {choices[word] for word in words if word in choices}
    if not named and len(words) == 1:
        named = {label for choice, label in choices.items() if choice.startswith(words[0])}
    return named.pop() if len(named) == 1 else None
