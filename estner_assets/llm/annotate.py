"""Notes to mentions: ask the LLM, read its answers; one outcome per note, whatever happens."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from estner_assets.llm.client import Progress, answer
from estner_assets.llm.endpoints import open_endpoint
from estner_assets.llm.questions import Note, Questions
from estner_assets.llm.requests import Response
from estner_assets.llm.store import ResponseStore
from estner_assets.llm.wall import Wall
from estner_assets.llm.words import mentions_of, word_spans
from estner_assets.ner.parsing import AnswerStatus, Mention, parse_json_answer, parse_word_answer
from estner_assets.ner.spans import Span
from estner_assets.settings import Entity, LlmAnnotator, Prompt

__all__ = ["Note", "NoteAnswer", "annotate_notes"]


@dataclass(frozen=True)
class NoteAnswer:
    """What an LLM made of one note. ``spans`` is known in the mode ``tag_words`` only, else ``None``.

    ``mentions`` is empty unless ``status`` is ``ANNOTATED``: a note that failed is not one without entities.
    ``raw`` is the answer to the letter, or for ``tag_words`` a JSON list of ``[start, end, label]``.
    """

    note_id: str
    status: AnswerStatus
    reason: str
    mentions: tuple[Mention, ...]
    spans: tuple[Span, ...] | None
    raw: str
    model_version: str | None
    prompt_tokens: int
    completion_tokens: int
    request_keys: tuple[str, ...]


def annotate_notes(
    notes: Sequence[Note],
    annotator: LlmAnnotator,
    prompt: Prompt,
    entities: Sequence[Entity],
    store: ResponseStore,
    vetted: Mapping[str, str],
    progress: Callable[[str], None],
) -> list[NoteAnswer]:
    """Return one answer per note, in their order; what the store has is not asked for again.

    Raises ``PromptError`` for a prompt that does not render, ``EgressRefused`` for a note that may not be
    sent there, ``EndpointError``, ``WeightsError`` or ``ServerError`` when the LLM cannot be reached at all.
    """
    enabled = [entity for entity in entities if entity.enabled]
    questions = Questions(notes, annotator, prompt, enabled)
    with open_endpoint(annotator, progress) as endpoint:
        report = _reporter(f"{annotator.key} x {prompt.key}", progress)
        responses = answer(questions, endpoint, annotator, store, Wall(vetted), report)
    labels = [entity.name for entity in enabled]
    answers = []
    for index, note in enumerate(notes):
        own = responses[questions.slice_of(index)]
        by_word = prompt.mode == "tag_words"
        answers.append(
            _read_words(note, questions.places(index), own, labels) if by_word else _read(note, own[0], labels)
        )
    return answers


def _read(note: Note, response: Response, labels: Sequence[str]) -> NoteAnswer:
    status, reason = response.status, response.reason
    mentions: tuple[Mention, ...] = ()
    if status is AnswerStatus.ANNOTATED:
        status, mentions, reason = parse_json_answer(response.text, labels)
    return _note_answer(note, [response], status, reason, response.text, mentions=mentions)


def _read_words(
    note: Note, places: Sequence[tuple[int, int]], responses: Sequence[Response], labels: Sequence[str]
) -> NoteAnswer:
    """Read the answers about a note's words.

    A word that the LLM answered unreadably counts as ``other``, and is counted in the reason; a word without
    any answer fails the note, which the next run completes.
    """
    read = [_word(response, labels) for response in responses]
    raw = json.dumps([[*place, word] for place, word in zip(places, read, strict=True)])
    lost = Counter(response.status for response in responses if response.status not in _ANSWERED)
    if lost:
        status = lost.most_common(1)[0][0]
        first = next(response.reason for response in responses if response.status is status)
        reason = f"{sum(lost.values())} of {len(read)} words have no answer: {first}"
        return _note_answer(note, responses, status, reason, raw, spans=())
    unread = read.count(None)
    reason = f"{unread} of {len(read)} words have no readable answer" if unread else ""
    if unread and unread == len(read):
        return _note_answer(note, responses, AnswerStatus.MALFORMED, reason, raw, spans=())
    spans = word_spans(note.text, {place: word for place, word in zip(places, read, strict=True) if word})
    mentions = mentions_of(note.text, spans)
    return _note_answer(note, responses, AnswerStatus.ANNOTATED, reason, raw, mentions=mentions, spans=spans)


# A word may well end at the token limit: under a grammar its first token has said all there is to say
_ANSWERED = frozenset({AnswerStatus.ANNOTATED, AnswerStatus.TRUNCATED})


def _word(response: Response, labels: Sequence[str]) -> str | None:
    return parse_word_answer(response.text, labels) if response.status in _ANSWERED else None


def _note_answer(
    note: Note,
    responses: Sequence[Response],
    status: AnswerStatus,
    reason: str,
    raw: str,
    mentions: tuple[Mention, ...] = (),
    spans: tuple[Span, ...] | None = None,
) -> NoteAnswer:
    versions = (response.model_version for response in responses if response.model_version)
    return NoteAnswer(
        note_id=note.note_id,
        status=status,
        reason=reason,
        mentions=mentions,
        spans=spans,
        raw=raw,
        model_version=next(versions, None),
        prompt_tokens=sum(response.prompt_tokens for response in responses),
        completion_tokens=sum(response.completion_tokens for response in responses),
        request_keys=tuple(response.key for response in responses),
    )


def _reporter(name: str, progress: Callable[[str], None]) -> Callable[[Progress], None]:
    """Turn counts into a line at every tenth of the way."""
    shown = -1

    def report(counts: Progress) -> None:
        nonlocal shown
        tenth = 10 * counts.done // max(counts.total, 1)
        if tenth > shown:
            shown = tenth
            progress(
                f"{name}: {counts.done} of {counts.total} answers, {counts.cached} from the store, "
                f"{counts.failed} failed, {counts.prompt_tokens} + {counts.completion_tokens} tokens, "
                f"{counts.elapsed_s:.0f} s"
            )

    return report
