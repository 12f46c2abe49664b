"""What one call of ``ask_in_batches`` knows: its requests, their outcomes, and the batches it waits for."""

import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from uuid import uuid4

from estner_assets.llm.batch_api import BatchApi
from estner_assets.llm.batch_parts import REQUESTS_AT_ONCE, Reservations
from estner_assets.llm.batch_store import BatchStore
from estner_assets.llm.client import Progress
from estner_assets.llm.endpoints import Endpoint
from estner_assets.llm.requests import Request, Response, now
from estner_assets.llm.store import ResponseStore
from estner_assets.llm.wall import Wall
from estner_assets.ner.parsing import AnswerStatus
from estner_assets.settings import LlmAnnotator


class Outcomes:
    """The requests that the store lacks, by key, and what became of them. Holds no text of a request."""

    def __init__(
        self,
        requests: Sequence[Request],
        endpoint: Endpoint,
        store: ResponseStore,
        wall: Wall,
        progress: Callable[[Progress], None],
    ) -> None:
        self._requests, self._endpoint, self._wall, self._progress = requests, endpoint, wall, progress
        self._began = time.monotonic()
        self.lost: dict[str, Response] = {}
        self._failed = self._cached = self._total = self._prompt_tokens = self._completion_tokens = 0
        # in the same order: how many requests ask for a key, and the place of the first of them
        self._askers: dict[str, int] = {}
        self._places = array("Q")
        self._read(store)
        self._done = self._cached

    @property
    def missing(self) -> set[str]:
        """The keys that the store lacked."""
        return set(self._askers)

    def _read(self, store: ResponseStore) -> None:
        """Show all requests to the wall, and keep the keys of those that the store lacks."""
        requests = iter(self._requests)
        while some := list(islice(requests, REQUESTS_AT_ONCE)):
            for request in some:
                self._wall.check(request, self._endpoint)
            keys = [request.key for request in some]
            stored = store.known(keys)
            for key in keys:
                if key in stored:
                    self._cached += 1
                elif key in self._askers:
                    self._askers[key] += 1
                else:
                    self._askers[key] = 1
                    self._places.append(self._total)
                self._total += 1

    def requests(self, keys: set[str]) -> Iterator[Request]:
        """Yield the requests of some missing keys, in order, as they are wanted; the wall looks at each again."""
        for key, place in zip(self._askers, self._places, strict=True):
            if key in keys:
                request = self._requests[place]
                self._wall.check(request, self._endpoint)
                yield request

    def lose(self, status: AnswerStatus, reasons: Mapping[str, str]) -> None:
        """Count requests that are left without an answer, and say why."""
        for key, reason in reasons.items():
            self.lost[key] = Response(key, status, reason=reason, created_at=now())
            self._done += self._askers[key]
            self._failed += self._askers[key]
        self.report()

    def answered(self, response: Response) -> None:
        """Count a request whose answer was collected."""
        self._done += self._askers[response.key]
        self._prompt_tokens += response.prompt_tokens
        self._completion_tokens += response.completion_tokens

    def found(self, keys: Iterable[str]) -> None:
        """Count requests whose answer another process has stored since."""
        self._done += sum(self._askers[key] for key in keys)

    def report(self) -> None:
        """Say how far this call is."""
        self._progress(
            Progress(
                done=self._done,
                cached=self._cached,
                failed=self._failed,
                total=self._total,
                prompt_tokens=self._prompt_tokens,
                completion_tokens=self._completion_tokens,
                elapsed_s=time.monotonic() - self._began,
            )
        )


@dataclass
class OpenBatch:
    """A batch that is waited for: which requests of this call it has yet to answer, and why it will not."""

    batch_id: str
    status: str
    keys: set[str]
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Session:
    """What submitting and collecting share."""

    endpoint: Endpoint
    annotator: LlmAnnotator
    store: ResponseStore
    state: BatchStore
    api: BatchApi
    reservations: Reservations
    outcomes: Outcomes
    owner: str = field(default_factory=lambda: uuid4().hex)
    open: dict[str, OpenBatch] = field(default_factory=dict)
    """By tag."""

    def unsend(self, tag: str, keys: Sequence[str]) -> None:
        """Free the keys and the money of a batch that was never made, or is gone."""
        self.reservations.release(keys)
        self.state.end(tag, "not submitted")
