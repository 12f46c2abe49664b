"""Notes to mentions: ask the LLM, read its answers; one outcome per note, whatever happens."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from estner_assets.llm.batches import ask_in_batches
from estner_assets.llm.budget import Budget
from estner_assets.llm.client import Progress, ask
from estner_assets.llm.endpoints import open_endpoint
from estner_assets.llm.questions import NOTES_A_READ, NOTES_LANGUAGE, Note, Part, Questions, SecondLooks
from estner_assets.llm.requests import Request, Response
from estner_assets.llm.store import ResponseStore, StoreError
from estner_assets.llm.wall import Wall
from estner_assets.llm.words import mentions_of, word_spans
from estner_assets.ner.parsing import AnswerStatus, Mention, Parsed, parse_word_answer
from estner_assets.ner.spans import Span
from estner_assets.ner.voting import agreed, failed, together
from estner_assets.ner.windows import merge_windows
from estner_assets.settings import Entity, LlmAnnotator, Prompt

BATCHES_FILE = "batches.sqlite"
"""Which questions were submitted in which batch, beside the response store."""

__all__ = ["Note", "NoteAnswer", "annotate_notes"]


@dataclass(frozen=True)
class NoteAnswer:
    """What an LLM made of one note. ``spans`` is known in the mode ``tag_words`` only, else ``None``.

    ``mentions`` is empty unless ``status`` is ``ANNOTATED``: a note that failed is not one without entities.
    ``raw`` is the answer to the letter; a JSON list of answers where there were several questions, and for
    ``tag_words`` one of ``[start, end, label]``. ``request_keys`` names first answers that were replaced, too.
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
    notes_language: str = NOTES_LANGUAGE,
    budget: Budget | None = None,
) -> list[NoteAnswer]:
    """Return one answer per note, in their order; what the store has is not asked for again.

    Second looks are asked when all first answers are there. Raises ``PromptError`` for a prompt that does not
    render, ``EgressRefused`` for a note that may not be sent there, ``EndpointError``, ``WeightsError`` or
    ``ServerError`` when the LLM cannot be reached at all.
    """
    enabled = [entity for entity in entities if entity.enabled]
    questions = Questions(notes, annotator, prompt, enabled, notes_language)
    name = f"{annotator.key} x {prompt.key}"
    wall = Wall(vetted)
    if budget is not None:
        budget.recover(store.get_many(budget.abandoned()))
    with open_endpoint(annotator, progress) as endpoint:

        def asked(requests: Sequence[Request], what: str) -> dict[str, Response]:
            report = _reporter(what, progress, budget)
            if annotator.mode == "batch":
                batches = store.path.with_name(BATCHES_FILE)
                return ask_in_batches(requests, endpoint, annotator, store, wall, budget, report, batches)
            return ask(requests, endpoint, annotator, store, wall, report, budget)

        lost = asked(questions, name)
        if prompt.second_look:
            lost |= asked(SecondLooks(questions, store), f"{name}, second look")
    return list(_answers(questions, _Outcomes(store, lost), [entity.name for entity in enabled]))


@dataclass(frozen=True)
class _Outcomes:
    """What became of each request: in the store, or in memory where it is to be asked again."""

    store: ResponseStore
    lost: Mapping[str, Response]

    def of(self, requests: Sequence[Request]) -> list[Response]:
        """Return one response per request; raise ``StoreError`` for one that is gone.

        What was lost here stays lost, also where another process has stored an answer since: the second look at
        it was not asked for.
        """
        keys = [request.key for request in requests]
        stored = self.store.get_many(keys)
        gone = [key for key in keys if key not in stored and key not in self.lost]
        if gone:
            raise StoreError(f"{self.store.path} has lost {len(gone)} answers while they were read; build again")
        return [self.lost.get(key) or stored[key] for key in keys]


def _answers(questions: Questions, outcomes: _Outcomes, labels: Sequence[str]) -> Iterator[NoteAnswer]:
    """Yield the notes' answers in order, read a few notes at a time."""
    count = len(questions.notes)
    read = _answers_by_word if questions.prompt.mode == "tag_words" else _answers_by_note
    for start in range(0, count, NOTES_A_READ):
        yield from read(questions, outcomes, range(start, min(start + NOTES_A_READ, count)), labels)


def _answers_by_word(
    questions: Questions, outcomes: _Outcomes, indexes: range, labels: Sequence[str]
) -> Iterator[NoteAnswer]:
    parts = [part for index in indexes for part in questions.parts(index)]
    responses = iter(outcomes.of([questions.request(part) for part in parts]))
    for index in indexes:
        places = questions.ranges(index)
        yield _read_words(questions.notes[index], places, [next(responses) for _ in places], labels)


def _answers_by_note(
    questions: Questions, outcomes: _Outcomes, indexes: range, labels: Sequence[str]
) -> Iterator[NoteAnswer]:
    parts = [part for index in indexes for part in questions.parts(index)]
    first = outcomes.of([questions.request(part) for part in parts])
    readings = [questions.read(part, response) for part, response in zip(parts, first, strict=True)]
    responses = [[response] for response in first]
    if questions.prompt.second_look:
        looked = [place for place, one in enumerate(readings) if one.status is AnswerStatus.ANNOTATED]
        requests = [questions.second_look(parts[place], readings[place].mentions) for place in looked]
        for place, response in zip(looked, outcomes.of(requests), strict=True):
            responses[place].append(response)
            readings[place] = _second(questions.read(parts[place], response))
    everything = zip(parts, readings, responses, strict=True)
    for index, own in groupby(everything, key=lambda one: one[0].note_index):
        own_parts, own_readings, own_responses = zip(*own, strict=True)
        reading = _combined(questions, own_parts, own_readings)
        texts = [some[-1].text for some in own_responses]
        raw = texts[0] if len(texts) == 1 else json.dumps(texts, ensure_ascii=False)
        asked = [response for some in own_responses for response in some]
        yield _note_answer(questions.notes[index], asked, reading.status, reading.reason, raw, reading.mentions)


def _second(reading: Parsed) -> Parsed:
    return reading._replace(reason=f"second look: {reading.reason}" if reading.reason else "")


def _combined(questions: Questions, parts: Sequence[Part], readings: Sequence[Parsed]) -> Parsed:
    """Return what a note's answers say together: merged within each replicate, then voted on."""
    replicates = [
        _merged(questions, dict(some))
        for _, some in groupby(zip(parts, readings, strict=True), key=lambda pair: pair[0].replicate)
    ]
    return replicates[0] if len(replicates) == 1 else agreed(replicates, questions.prompt.min_votes)


def _merged(questions: Questions, readings: Mapping[Part, Parsed]) -> Parsed:
    """Return the answers about all windows and entities as one; nothing of them where one is lacking."""
    lost = [one for one in readings.values() if one.status is not AnswerStatus.ANNOTATED]
    if lost:
        return lost[0] if len(readings) == 1 else failed(lost, len(readings), "questions have no usable answer")
    by_range: dict[tuple[int, int], list[Mention]] = {}
    for part, reading in readings.items():
        by_range.setdefault((part.start, part.end), []).extend(reading.mentions)
    text = questions.notes[next(iter(readings)).note_index].text
    mentions = merge_windows(text, list(by_range), list(by_range.values()), questions.language)
    return Parsed(AnswerStatus.ANNOTATED, mentions, together(one.reason for one in readings.values()))


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


def _reporter(name: str, progress: Callable[[str], None], budget: Budget | None) -> Callable[[Progress], None]:
    """Turn counts into a line at every tenth of the way."""
    shown = -1

    def report(counts: Progress) -> None:
        nonlocal shown
        tenth = 10 * counts.done // max(counts.total, 1)
        if tenth > shown:
            shown = tenth
            parts = [
                f"{counts.done} of {counts.total} answers",
                f"{counts.cached} from the store",
                f"{counts.failed} failed",
                f"{counts.prompt_tokens} + {counts.completion_tokens} tokens",
                *([str(spending) for spending in budget.spent()] if budget is not None else []),
                f"{counts.elapsed_s:.0f} s{_to_come(counts)}",
            ]
            progress(f"{name}: {', '.join(parts)}")

    return report


def _to_come(counts: Progress) -> str:
    """Say how long the rest will take, if it goes on like this."""
    asked, rest = counts.done - counts.cached, counts.total - counts.done
    return f", about {counts.elapsed_s * rest / asked:.0f} s to go" if asked and rest else ""
