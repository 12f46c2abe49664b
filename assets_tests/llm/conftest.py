"""What the tests of the annotation client share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from assets_tests.llm.fake_openai import FakeOpenAI, Question, Reply, fake_openai
from estner_assets.llm.requests import Request, sha256
from estner_assets.llm.store import ResponseStore
from estner_assets.ner.prompts import ChatMessage
from estner_assets.settings import CompatibleAnnotator

SECRET = "sk-test-0123456789"
FakeServer = Callable[[Callable[[Question], Reply]], FakeOpenAI]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """Start a fake server and point the annotator of ``annotator()`` at it."""
    running = []

    def start(answer: Callable[[Question], Reply]) -> FakeOpenAI:
        server = fake_openai(answer)
        running.append(server)
        fake = server.__enter__()
        monkeypatch.setenv("FAKE_BASE_URL", fake.url)
        monkeypatch.setenv("FAKE_API_KEY", SECRET)
        return fake

    yield start
    for server in running:
        server.__exit__(None, None, None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ResponseStore]:
    with ResponseStore(tmp_path / "responses.sqlite3") as store:
        yield store


def annotator(**changes: object) -> CompatibleAnnotator:
    """Return an annotator whose server is the fake one."""
    values: dict[str, object] = {
        "kind": "openai_compatible",
        "key": "fake",
        "title": "Fake",
        "prompts": ["p"],
        "model": "fake",
        "base_url_env": "FAKE_BASE_URL",
        "api_key_env": "FAKE_API_KEY",
        "concurrency": 4,
        "timeout_s": 5.0,
        "retries": 2,
    }
    return CompatibleAnnotator.model_validate(values | changes)


def request(text: str, **parameters: object) -> Request:
    """Return a request that asks about ``text``."""
    return Request("fake", (ChatMessage("user", text),), parameters, f"id-{text}", sha256(text))  # type: ignore[arg-type]
