"""Where an LLM answers: a client per annotator, its host, and whether that host is this machine."""

import asyncio
import ipaddress
import json
import os
from collections.abc import Callable, Coroutine, Iterator, Mapping
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
_NOT_REPEATED = (b"content-length", b"x-stainless-")
"""Headers that belong to one body, and the SDK's telemetry: half of all headers."""
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
    spread: "Spread | None" = field(default=None, repr=False)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine to its end; not to be called from inside an event loop."""
        return self.runner.run(work)

    async def post(self, body: Mapping[str, Any]) -> httpx2.Response:
        """Ask for a chat completion and return the server's answer, whatever its status, read to its end.

        The SDK builds, authorises and sends the first request. What is alike in all of them (address, headers)
        is then taken from it, for the SDK needs more time to build a request than to send one.

        Raises ``openai.APIConnectionError`` or ``httpx2.TransportError`` where there is no answer.
        """
        if self.spread is not None and self.spread.is_ready:
            return await self.spread.repeat(body)
        try:
            response = await self.client.post(
                "/chat/completions",
                cast_to=httpx2.Response,
                body=body,
                options={"security": {"bearer_auth": True}},
            )
        except openai.APIStatusError as error:
            return error.response
        if self.spread is not None:
            self.spread.learn(response.request)
        return response

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
    spread = _spread(annotator, host)
    client = openai.AsyncOpenAI(base_url=address, api_key=key, **_options(annotator, host, spread))
    if not isinstance(annotator, OpenAIAnnotator):
        # the SDK takes them from the environment, where they are meant for OpenAI
        client.organization = client.project = client.admin_api_key = None
    return _endpoint(annotator, client, host, key_env, spread)


def _azure(annotator: AzureAnnotator) -> Endpoint:
    address = os.environ[annotator.endpoint_env]
    host = _host(address)
    spread = _spread(annotator, host)
    client = openai.AsyncAzureOpenAI(
        azure_endpoint=address,
        azure_deployment=annotator.model,
        api_version=annotator.api_version,
        api_key=os.environ[annotator.api_key_env],
        **_options(annotator, host, spread),
    )
    return _endpoint(annotator, client, host, annotator.api_key_env, spread)


def _endpoint(
    annotator: LlmAnnotator, client: openai.AsyncOpenAI, host: str, key_env: str | None, spread: "Spread | None"
) -> Endpoint:
    return Endpoint(
        client,
        annotator.model,
        host,
        is_loopback(host),
        key_env,
        structured_output=annotator.structured_output,
        limits=Limits(annotator.concurrency, annotator.requests_per_minute, annotator.tokens_per_minute),
        spread=spread,
    )


def _spread(annotator: LlmAnnotator, host: str) -> "Spread | None":
    # it would not look for a proxy, which a host elsewhere may need
    return Spread(annotator.concurrency) if is_loopback(host) or not getproxies() else None


def _options(annotator: LlmAnnotator, host: str, spread: "Spread | None") -> dict[str, Any]:
    """Return the client's options: our own retries, and no way round the wall.

    A redirect could lead a local request to another host, and so could a proxy from the environment.
    """
    # reading has no time-out of its own: `sending` bounds the whole answer, also of a server that trickles
    timeout = openai.Timeout(None, connect=min(CONNECT_TIMEOUT_S, annotator.timeout_s))
    transport = openai.DefaultAsyncHttpx2Client(
        timeout=timeout, follow_redirects=False, trust_env=not is_loopback(host), transport=spread
    )
    return {"max_retries": 0, "timeout": timeout, "http_client": transport}


class Spread(httpx2.AsyncBaseTransport):
    """Deals requests out to many small connection pools: one pool looks at all its connections for each request.

    It can also repeat a request that it has learnt with another body.
    """

    def __init__(self, pools: int) -> None:
        context = httpx2.create_ssl_context()
        self._pools = [httpx2.AsyncHTTPTransport(verify=context) for _ in range(pools)]
        self._next = cycle(self._pools)
        self._url, self._headers, self._timeout = httpx2.URL(), list[tuple[bytes, bytes]](), dict[str, float | None]()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request through the next pool; errors are the pool's."""
        return await next(self._next).handle_async_request(request)

    @property
    def is_ready(self) -> bool:
        """Whether there is a request to repeat."""
        return bool(self._headers)

    def learn(self, request: httpx2.Request) -> None:
        """Keep what ``repeat`` repeats: address, headers (with the key) and time-outs."""
        self._url, self._timeout = request.url, request.extensions["timeout"]
        self._headers = [pair for pair in request.headers.raw if not pair[0].lower().startswith(_NOT_REPEATED)]

    async def repeat(self, body: Mapping[str, Any]) -> httpx2.Response:
        """Send the learnt request with this body as JSON. Raises ``httpx2.TransportError``."""
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        request = httpx2.Request(
            "POST", self._url, headers=self._headers, content=content, extensions={"timeout": self._timeout}
        )
        response = await self.handle_async_request(request)
        try:
            await response.aread()
        finally:
            await response.aclose()
        return response

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
