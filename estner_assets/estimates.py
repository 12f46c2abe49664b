"""What a plan will take: calls, tokens, money and time, from stored answers and earlier makings. Nothing is sent."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Literal

from estner_assets.declarations import Cell, Declarations
from estner_assets.llm.prices import CHARACTERS_PER_TOKEN, USUAL_ANSWER_TOKENS, cost, price_of
from estner_assets.llm.questions import Note, Questions
from estner_assets.llm.store import StoreError
from estner_assets.planner import Plan, Step
from estner_assets.project import Project
from estner_assets.resources.lineage import Partition
from estner_assets.resources.warehouse import Warehouse
from estner_assets.settings import LlmAnnotator
from estner_assets.shares import share_of
from estner_assets.versions import notes_of, systems_of

_CELLS_LOOKED_AT = 100
_REQUESTS_LOOKED_AT = 4000
"""A plan must stay quick: of more cells and requests than these, evenly spread ones stand for the others."""
_KEYS_A_QUERY = 500
_TYPICAL_WORD = "ravimiga "


Certainty = Literal["exactly", "about", "at most"]


@dataclass(frozen=True, slots=True)
class Calls:
    """The LLM calls of one step, or of several. Tokens and costs are those of the calls to send.

    ``costs`` is by currency; the calls of which no price is known are ``unpriced``. ``certainty`` is of the numbers
    of calls: ``at most`` where the notes are still to be made, so that no stored answer can be counted on; ``about``
    where a sample stands for all. Tokens are always a guess.
    """

    notes: int
    total: int
    stored: int
    prompt_tokens: int
    completion_tokens: int
    costs: Mapping[str, Decimal]
    unpriced: int
    certainty: Certainty

    @property
    def to_send(self) -> int:
        return self.total - self.stored


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a step will take: seconds as its last making took, or those like it; None where there was none."""

    duration_s: float | None
    calls: Calls | None = None


def estimates(project: Project, plan: Plan, steps: Sequence[Step]) -> dict[Partition, Estimate]:
    """Return an estimate for each of these steps of the plan."""
    declarations = project.declarations
    asking = [step for step in steps if _asks_llm(declarations, step.partition)]
    with project.warehouse.reading():
        durations = _Durations(project.warehouse)
        calls = _Counting(project, plan, asking).calls() if asking else {}
    return {
        step.partition: Estimate(durations.of(step.partition, calls.get(step.partition)), calls.get(step.partition))
        for step in steps
    }


def _asks_llm(declarations: Declarations, partition: Partition) -> bool:
    if partition.asset == "annotations":
        return isinstance(declarations.annotators[partition.annotator], LlmAnnotator)
    if partition.asset == "predictions":
        cell = Cell(partition.annotator, partition.prompt)
        is_llm = isinstance(declarations.annotators[partition.annotator], LlmAnnotator)
        return is_llm and "annotator" in systems_of(declarations, cell)
    return False


class _Counting:
    """Renders the requests of cells as a run would, and looks up which of them are answered."""

    def __init__(self, project: Project, plan: Plan, asking: Sequence[Step]) -> None:
        self.project, self.asking = project, asking
        self.declarations = project.declarations
        self.pending = {step.partition for step in plan.steps}
        self.notes = {
            "annotations": self._stored_notes("vetted_notes", "note_id"),
            "predictions": self._stored_notes("gold_documents", "document_id"),
        }

    def _stored_notes(self, table: str, key: str) -> dict[str, str]:
        rows = self.project.warehouse.query(f"select {key} as note_id, text from {table}")
        return {row["note_id"]: row["text"] for row in rows}

    def calls(self) -> dict[Partition, Calls]:
        """Return the calls of every step; those of cells not looked at are taken from the same prompt's."""
        every = -(-len(self.asking) // _CELLS_LOOKED_AT)
        looked_at = self.asking[::every]
        most = max(1, _REQUESTS_LOOKED_AT // len(looked_at))
        counted = {step.partition: self._counted(step.partition, most) for step in looked_at}
        by_prompt = {partition.prompt: calls for partition, calls in counted.items()}
        some = next(iter(counted.values()))
        for step in self.asking:
            partition = step.partition
            if partition not in counted:
                like = by_prompt.get(partition.prompt, some)
                counted[partition] = replace(like, certainty="about" if like.certainty == "exactly" else like.certainty)
        return counted

    def _counted(self, partition: Partition, most: int) -> Calls:
        annotator = self.declarations.annotators[partition.annotator]
        assert isinstance(annotator, LlmAnnotator)
        notes, is_known = self._notes(partition)
        prompt = self.declarations.prompts[partition.prompt]
        language = self.declarations.profile.language
        questions = Questions(notes, annotator, prompt, self.declarations.enabled_entities, language)
        every = max(1, -(-len(questions) // most))
        sample = [questions[index] for index in range(0, len(questions), every)]
        answered = stored_keys(self.project.responses_path, [request.key for request in sample]) if is_known else set()
        missing = [request for request in sample if request.key not in answered]
        looks = 2 if prompt.second_look else 1
        scale = looks * len(questions) / max(1, len(sample))
        to_send = round(scale * len(missing))
        characters = sum(len(message.content) for request in missing for message in request.messages)
        answer_tokens = min(USUAL_ANSWER_TOKENS, prompt.max_answer_tokens)
        tokens = round(scale * characters / CHARACTERS_PER_TOKEN), to_send * answer_tokens
        price = price_of(annotator, self.declarations.prices)
        is_sample = every > 1 or looks > 1
        return Calls(
            notes=len(notes),
            total=looks * len(questions),
            stored=looks * len(questions) - to_send,
            prompt_tokens=tokens[0],
            completion_tokens=tokens[1],
            costs={price.currency: cost(price, *tokens, is_batch=annotator.mode == "batch")}
            if price and not price.is_free
            else {},
            unpriced=0 if price else to_send,
            certainty="at most" if not is_known else "about" if is_sample else "exactly",
        )

    def _notes(self, partition: Partition) -> tuple[list[Note], bool]:
        """Return the notes that the cell will be given, or their like, and whether they are these very notes."""
        cell = Cell(partition.annotator, partition.prompt)
        texts = self.notes[partition.asset]
        source = "vetted_notes" if partition.asset == "annotations" else "gold_documents"
        if texts:
            chosen = share_of(self.declarations, cell, texts) if source == "vetted_notes" else list(texts)
            return [Note(note_id, texts[note_id]) for note_id in chosen], Partition(source) not in self.pending
        words = self.declarations.profile.sampling.max_new_tokens // 2
        return [Note(str(number), _TYPICAL_WORD * words) for number in range(notes_of(self.declarations, cell))], False


def stored_keys(path: Path, keys: Sequence[str]) -> set[str]:
    """Return which request keys have an answer in the response store; neither makes nor changes a file."""
    if not path.exists():
        return set()
    # without a log beside it nobody writes now, and the file can be read as it lies
    mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
    found: set[str] = set()
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True)) as connection:
            for start in range(0, len(keys), _KEYS_A_QUERY):
                some = keys[start : start + _KEYS_A_QUERY]
                query = f"select key from responses where key in ({', '.join('?' * len(some))})"
                found |= {key for (key,) in connection.execute(query, some)}
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path} is no response store ({error}); move it away to start a new one") from error
    return found


class _Durations:
    """How long makings took: the last of a partition, and the usual of its asset."""

    def __init__(self, warehouse: Warehouse) -> None:
        made = warehouse.query(
            "select asset, annotator, prompt, duration_s, row_count from materializations order by materialized_at"
        )
        self.last = {Partition(row["asset"], row["annotator"], row["prompt"]): row["duration_s"] for row in made}
        self.usual = {asset: self._median(values) for asset, values in self._by_asset()}
        # answers from the store take no time: the slowest making says what a note costs when it is asked
        self.per_note: dict[tuple[str, str], float] = {}
        for row in made:
            if row["asset"] == "annotations" and row["row_count"]:
                key = (row["annotator"], row["prompt"])
                self.per_note[key] = max(self.per_note.get(key, 0.0), row["duration_s"] / row["row_count"])

    def _by_asset(self) -> Iterator[tuple[str, list[float]]]:
        ordered = sorted(self.last.items())
        for asset, group in groupby(ordered, key=lambda item: item[0].asset):
            yield asset, [duration_s for _, duration_s in group]

    @staticmethod
    def _median(values: list[float]) -> float:
        return sorted(values)[len(values) // 2]

    def of(self, partition: Partition, calls: Calls | None) -> float | None:
        """Return the seconds that a step will probably take."""
        if calls is None or partition.asset != "annotations":
            return self.last.get(partition, self.usual.get(partition.asset))
        own = self.per_note.get((partition.annotator, partition.prompt))
        of_annotator = [value for (annotator, _), value in self.per_note.items() if annotator == partition.annotator]
        per_note = own if own is not None else max(of_annotator, default=None)
        return None if per_note is None else per_note * calls.notes * calls.to_send / max(1, calls.total)


def total(found: Mapping[Partition, Estimate]) -> Estimate:
    """Return the sum; cells that ask the same question each count it, though it is sent once."""
    calls = [one.calls for one in found.values() if one.calls]
    durations = [one.duration_s for one in found.values() if one.duration_s is not None]
    costs: dict[str, Decimal] = {}
    for one in calls:
        for currency, amount in one.costs.items():
            costs[currency] = costs.get(currency, Decimal(0)) + amount
    summed = Calls(
        notes=sum(one.notes for one in calls),
        total=sum(one.total for one in calls),
        stored=sum(one.stored for one in calls),
        prompt_tokens=sum(one.prompt_tokens for one in calls),
        completion_tokens=sum(one.completion_tokens for one in calls),
        costs=costs,
        unpriced=sum(one.unpriced for one in calls),
        certainty="exactly" if len(calls) == 1 and calls[0].certainty == "exactly" else "at most",
    )
    return Estimate(sum(durations) if durations else None, summed if calls else None)
