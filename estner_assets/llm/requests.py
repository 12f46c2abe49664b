"""What is asked of an LLM and what came back, as values."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TypeAlias

from estner_assets.ner.parsing import AnswerStatus
from estner_assets.ner.prompts import ChatMessage

JSON: TypeAlias = "str | int | float | bool | Sequence[JSON] | Mapping[str, JSON] | None"


def sha256(text: str) -> str:
    """Return the hash of a text; a lone surrogate, which UTF-8 has no bytes for, is hashed as it is."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Request:
    """One question to an LLM.

    ``model`` says provider and model (and the weights' hash where they are local), so that two annotators
    share an answer only when they would have asked the same LLM. ``note_id`` and ``text_sha256`` say which
    note is in the messages: the wall looks at them, the key does not.
    """

    model: str
    messages: tuple[ChatMessage, ...]
    parameters: Mapping[str, JSON]
    note_id: str
    text_sha256: str
    replicate: int = 0

    @cached_property
    def key(self) -> str:
        """The SHA-256 of everything that the answer depends on, as canonical JSON."""
        content = {
            "model": self.model,
            "messages": [[message.role, message.content] for message in self.messages],
            "parameters": self.parameters,
            "replicate": self.replicate,
        }
        return sha256(json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


@dataclass(frozen=True)
class Response:
    """What became of a request. ``ANNOTATED`` means that the LLM answered; its text is not parsed yet."""

    key: str
    status: AnswerStatus
    text: str = ""
    reason: str = ""
    finish_reason: str | None = None
    model_version: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    created_at: str = ""

    @property
    def is_final(self) -> bool:
        """Whether asking again would be a waste: it cost money, or would end the same way."""
        return self.status in FINAL_STATUSES


FINAL_STATUSES = frozenset(
    {AnswerStatus.ANNOTATED, AnswerStatus.REFUSED, AnswerStatus.TRUNCATED, AnswerStatus.FILTERED}
)


def now() -> str:
    """Return the present time as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
