"""Where an LLM answers: a client per annotator, its host, and whether that host is this machine."""

import asyncio
import ipaddress
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx2
import openai

from estner_assets.llm.configuration import missing_configuration
from estner_assets.llm.limits import Limits
from estner_assets.llm.llama_server import running_server
from estner_assets.settings import (
    AzureAnnotator,
    CompatibleAnnotator,
    LlamaCppAnnotator,
    LlmAnnotator,
    OpenAIAnnotator,
)

StructuredOutput = Literal["json_schema", "json_object", "none"]
CONNECT_TIMEOUT_S = 10.0
T = TypeVar("T")


class EndpointError(RuntimeError):
    """An endpoint that no request can use; the message says what to change and never holds a key."""


@dataclass
class Endpoint:
    """An LLM that can be asked. ``model`` is the name that the server knows.

    The runner keeps one event loop for the endpoint's life, because pooled connections belong to their loop.
    """

    client: openai.AsyncOpenAI = field(repr=False)
    model: str
    host: str
    is_loopback: bool
    key_env: str | None = None
    structured_output: StructuredOutput = "json_schema"
    backoff_s: float = 0.5
    is_settled: bool = False
    runner: asyncio.Runner = field(default_factory=asyncio.Runner, repr=False)
    settling: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    limits: Limits = field(default_factory=lambda: Limits(1), repr=False)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine to its end; not to be called from inside an event loop."""
        return self.runner.run(work)

    def redacted(self, text: str) -> str:
        """Return the text without this endpoint's key."""
        key = self.client.api_key
        return text.replace(key, "***") if key else text


@contextmanager
def open_endpoint(annotator: LlmAnnotator, progress: Callable[[str], None]) -> Iterator[Endpoint]:
    """Open the annotator's endpoint, for ``llama_cpp`` with a server of its own, and close both again.

    Raises ``EndpointError`` with the remedy when something is missing.
    """
    missing = missing_configuration(annotator)  # type: ignore[arg-type]
    if missing:
        raise EndpointError(f"annotator {annotator.key}: {missing}")
    if isinstance(annotator, LlamaCppAnnotator):
        with running_server(annotator, progress) as address:
            yield from _closing(_compatible(annotator, f"{address}/v1", None))
    else:
        yield from _closing(_remote(annotator))


def _closing(endpoint: Endpoint) -> Iterator[Endpoint]:
    try:
        yield endpoint
    finally:
        with endpoint.runner:
            endpoint.runner.run(endpoint.client.close())


def _remote(annotator: LlmAnnotator) -> Endpoint:
    match annotator:
        case OpenAIAnnotator():
            address = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
            return _compatible(annotator, address, annotator.api_key_env)
        case CompatibleAnnotator():
            return _compatible(annotator, os.environ[annotator.base_url_env], annotator.api_key_env)
        case AzureAnnotator():
            return _azure(annotator)
    raise TypeError(f"annotator {annotator.key} of the kind {type(annotator).__name__} has no endpoint")


def _compatible(annotator: LlmAnnotator, address: str, key_env: str | None) -> Endpoint:
    host = _host(address)
    # an explicit key, or the SDK would send OPENAI_API_KEY to whatever server this is
    key = os.environ[key_env] if key_env else "not-needed"
    client = openai.AsyncOpenAI(base_url=address, api_key=key, **_options(annotator, host))
    if not isinstance(annotator, OpenAIAnnotator):
        # the SDK takes them from the environment, where they are meant for OpenAI
        client.organization = client.project = client.admin_api_key = None
    return _endpoint(annotator, client, host, key_env)


def _azure(annotator: AzureAnnotator) -> Endpoint:
    address = os.environ[annotator.endpoint_env]
    host = _host(address)
    client = openai.AsyncAzureOpenAI(
        azure_endpoint=address,
        azure_deployment=annotator.model,
        api_version=annotator.api_version,
        api_key=os.environ[annotator.api_key_env],
        **_options(annotator, host),
    )
    return _endpoint(annotator, client, host, annotator.api_key_env)


def _endpoint(annotator: LlmAnnotator, client: openai.AsyncOpenAI, host: str, key_env: str | None) -> Endpoint:
    return Endpoint(
        client,
        annotator.model,
        host,
        is_loopback(host),
        key_env,
        structured_output=annotator.structured_output,
        limits=Limits(annotator.concurrency, annotator.requests_per_minute, annotator.tokens_per_minute),
    )


def _options(annotator: LlmAnnotator, host: str) -> dict[str, Any]:
    """Return the client's options: our own retries, and no way round the wall.

    A redirect could lead a local request to another host, and so could a proxy from the environment.
    """
    # reading has no time-out of its own: `sending` bounds the whole answer, also of a server that trickles
    timeout = openai.Timeout(None, connect=min(CONNECT_TIMEOUT_S, annotator.timeout_s))
    trusts_environment = not is_loopback(host)
    # a transport of our own would not look for a proxy
    spread = None if trusts_environment and getproxies() else Spread(annotator.concurrency)
    transport = openai.DefaultAsyncHttpx2Client(
        timeout=timeout, follow_redirects=False, trust_env=trusts_environment, transport=spread
    )
    return {"max_retries": 0, "timeout": timeout, "http_client": transport}


class Spread(httpx2.AsyncBaseTransport):
    """Deals requests out to many small connection pools: one pool looks at all its connections for each request."""

    def __init__(self, pools: int) -> None:
        context = httpx2.create_ssl_context()
        self._pools = [httpx2.AsyncHTTPTransport(verify=context) for _ in range(pools)]
        self._next = cycle(self._pools)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request through the next pool; errors are the pool's."""
        return await next(self._next).handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        for pool in self._pools:
            await pool.aclose()


def _host(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EndpointError("the endpoint's address must look like https://host/path or http://host:port/v1")
    return parts.hostname


def is_loopback(host: str) -> bool:
    """Whether the host is this machine; names other than ``localhost`` are not, wherever they lead."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
