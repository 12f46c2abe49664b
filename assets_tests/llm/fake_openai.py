"""A server that speaks the OpenAI protocol on loopback and answers as a test tells it to."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Question = Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """What the server sends; ``cut_at`` ends the body after so many bytes though the header promised more."""

    body: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut_at: int | None = None


def completion(text: str | None, finish_reason: str = "stop", **message: object) -> Reply:
    """Return a chat completion as OpenAI sends it."""
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": text, **message},
    }
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "fake-1",
        "system_fingerprint": "fp_7",
        "choices": [choice],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
    return Reply(json.dumps(body, ensure_ascii=False))


def error(status: int, message: str, code: str = "", **headers: str) -> Reply:
    """Return an error response; a header's name is written with underscores."""
    body = {"error": {"message": message, "type": code or "error", "code": code or None}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(json.dumps(body), status, named)


@dataclass
class FakeOpenAI:
    """The running server: what it was asked, and how many requests it served at once at most."""

    answer: Callable[[Question], Reply]
    url: str = ""
    questions: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def notes(self) -> list[str]:
        """Return the last message of every question."""
        return [question["messages"][-1]["content"] for question in self.questions]


@contextmanager
def fake_openai(answer: Callable[[Question], Reply]) -> Iterator[FakeOpenAI]:
    """Run a server that replies with ``answer(question)``; it is gone when the block ends."""
    fake = FakeOpenAI(answer)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake))
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def in_turn(*replies: Reply) -> Callable[[Question], Reply]:
    """Return an ``answer`` that gives the replies one after the other and stays with the last."""
    rest = list(replies)
    return lambda question: rest.pop(0) if len(rest) > 1 else rest[0]


def _handler(fake: FakeOpenAI) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with fake.lock:
                fake.questions.append(question)
                fake.paths.append(self.path)
                fake.headers.append(dict(self.headers))
                fake.at_once += 1
                fake.most_at_once = max(fake.most_at_once, fake.at_once)
                reply = fake.answer(question)
            time.sleep(reply.delay_s)
            with fake.lock:
                # before the body: the client may come back before this thread runs on
                fake.at_once -= 1
            # a client that was killed reads no answer
            with suppress(ConnectionError):
                self._send(reply)

        def _send(self, reply: Reply) -> None:
            body = reply.body.encode("utf-8", "surrogatepass")
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: reply.cut_at])
            self.close_connection = reply.cut_at is not None

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
