"""Which steps of a plan are wanted, in the words that dbt's users know.

``annotations`` names an asset (``ner_*`` several), ``annotations[stub/few_shot]`` one partition of it. A ``+`` in
front adds all that it is made from, behind all that is made from it; ``2+`` and ``+1`` go so many edges.
``state:stale``, ``state:missing``, ``group:training``, ``annotator:stub`` and ``prompt:few_shot`` choose by method.
Words that blanks separate are added up, words that a comma joins must all hold.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from estner_assets.declarations import Cell
from estner_assets.graph import NODES
from estner_assets.planner import Planner, Step
from estner_assets.resources.lineage import Partition
from estner_assets.settings import NO_PROMPT
from estner_assets.tables import Table

_WORD = re.compile(r"^(?P<up>\d*\+)?(?P<method>[a-z]+:)?(?P<value>[^+:\s]+)(?P<down>\+\d*)?$")
_EVERY_EDGE = len(NODES)


class SelectionError(ValueError):
    """A selection that names nothing; the message says what there is."""


@dataclass(frozen=True)
class Selection:
    """What a build is narrowed to; the default selects everything.

    ``select`` and ``exclude`` are words as above. ``annotator`` and ``prompt`` narrow the partitions that have one.
    """

    select: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    annotator: str | None = None
    prompt: str | None = None
    upstream: bool = False
    downstream: bool = False

    @property
    def is_everything(self) -> bool:
        return self == Selection()

    def partitions(self, planner: Planner, steps: Iterable[Step]) -> set[Partition]:
        """Return the selected partitions of the project; ``steps`` tell which of them are missing or stale.

        Raises ``SelectionError`` for words that name no asset, annotator, prompt, group or state.
        """
        self._check_keys(planner)
        if self.select and not any(words.split() for words in self.select):
            raise SelectionError("the selection is empty; leave it out to select everything")
        graph = _Graph(planner, {step.partition: step.state for step in steps})
        chosen = graph.union(self.select) if self.select else set(graph.sources)
        if self.upstream:
            chosen |= graph.walk(chosen, graph.sources, _EVERY_EDGE)
        if self.downstream:
            chosen |= graph.walk(chosen, graph.uses, _EVERY_EDGE)
        chosen -= graph.union(self.exclude)
        return {one for one in chosen if _has(one.annotator, self.annotator) and _has(one.prompt, self.prompt)}

    def _check_keys(self, planner: Planner) -> None:
        declared = planner.declarations
        known = ((self.annotator, "annotator", declared.annotators), (self.prompt, "prompt", declared.prompts))
        for key, kind, keys in known:
            if key is not None and key != NO_PROMPT and key not in keys:
                raise SelectionError(f"there is no {kind} {key!r}; declared: {', '.join(keys)}")
        cells = [cell for cell in declared.cells if self._has_cell(cell)]
        if cells and all(cell in planner.not_configured for cell in cells):
            raise SelectionError(f"{cells[0]} cannot be made here: {planner.not_configured[cells[0]]}")
        if not cells:
            wanted = " and ".join(f"{kind} {key}" for key, kind, _ in known if key is not None)
            names = ", ".join(map(str, declared.cells))
            raise SelectionError(f"no cell of the profile {declared.profile.key} has {wanted}; its cells: {names}")

    def _has_cell(self, cell: Cell) -> bool:
        return _has(cell.annotator, self.annotator) and _has(cell.prompt, self.prompt)


def _has(key: str, wanted: str | None) -> bool:
    """Whether a partition's key passes; partitions without such a key belong to all."""
    return wanted is None or key in ("", wanted)


class _Graph:
    """All partitions with their edges, and what the words mean among them."""

    def __init__(self, planner: Planner, states: Mapping[Partition, str]) -> None:
        self.states = states
        self.tables: Mapping[str, Table] = planner.declarations.tables
        self.sources: dict[Partition, list[Partition]] = {
            partition: list(planner.inputs(partition))
            for node in NODES.values()
            for partition in planner.partitions(node)
        }
        self.uses: dict[Partition, list[Partition]] = {}
        for partition, sources in self.sources.items():
            for source in sources:
                self.uses.setdefault(source, []).append(partition)

    def union(self, texts: Iterable[str]) -> set[Partition]:
        """Return what any of the words means; ``a,b`` is what both mean."""
        words = [word for text in texts for word in text.split()]
        return set[Partition]().union(*(self._intersection(word.split(",")) for word in words))

    def _intersection(self, words: list[str]) -> set[Partition]:
        first, *others = map(self._word, words)
        return first.intersection(*others)

    def _word(self, word: str) -> set[Partition]:
        match = _WORD.match(word)
        if match is None:
            raise SelectionError(f"{word!r} is no selection; write an asset, asset[annotator/prompt], or method:value")
        chosen = self._named(word, (match["method"] or "asset:").removesuffix(":"), match["value"])
        up = self.walk(chosen, self.sources, _edges(match["up"]))
        return chosen | up | self.walk(chosen, self.uses, _edges(match["down"]))

    def _named(self, word: str, method: str, value: str) -> set[Partition]:
        tests: dict[str, tuple[Callable[[Partition], str], Iterable[str]]] = {
            "asset": (lambda one: one.asset, NODES),
            "annotator": (lambda one: one.annotator, {one.annotator for one in self.sources} - {""}),
            "prompt": (lambda one: one.prompt, {one.prompt for one in self.sources} - {""}),
            "group": (lambda one: self.tables[one.asset].group, {table.group for table in self.tables.values()}),
            "state": (lambda one: self.states.get(one, "current"), ("missing", "stale", "current")),
        }
        if method not in tests:
            raise SelectionError(f"{word!r}: there is no method {method!r}; methods: {', '.join(tests)}")
        test, known = tests[method]
        if method == "asset" and value.endswith("]"):
            test, known = str, [str(one) for one in self.sources]
            found = {one for one in self.sources if str(one) == value}
        else:
            found = {one for one in self.sources if fnmatchcase(test(one), value)}
        if not found and not any(fnmatchcase(one, value) for one in known):
            raise SelectionError(f"{word!r} selects nothing; {method}s: {', '.join(sorted(known))}")
        return found

    @staticmethod
    def walk(start: Iterable[Partition], edges: Mapping[Partition, Iterable[Partition]], most: int) -> set[Partition]:
        """Return what lies up to so many edges from the start, without the start itself."""
        seen, front = set(start), set(start)
        found: set[Partition] = set()
        for _ in range(most):
            front = {other for one in front for other in edges.get(one, ())} - seen
            if not front:
                break
            seen |= front
            found |= front
        return found


def _edges(sign: str | None) -> int:
    if not sign:
        return 0
    digits = sign.strip("+")
    return int(digits) if digits else _EVERY_EDGE
