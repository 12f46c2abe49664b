"""A server on loopback that speaks OpenAI's Batch API: files, batches, and results as a test tells it to."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from assets_tests.llm.fake_openai import Question, Reply, error

Line = dict[str, Any]
Answer = Callable[[Question], Reply | None]


def never(call: str) -> Reply | None:
    """Let a call take its course."""
    return None


def no_errors(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Find nothing wrong with a file."""
    return []


def as_asked(lines: list[Line]) -> list[Line]:
    """Leave the results in the order of the requests."""
    return lines


@dataclass
class FakeBatches:
    """The running server and what it was told. ``calls`` are written ``POST /batches``; ids count from 1."""

    answer: Answer
    """What becomes of one request; ``None``: there is no line about it."""
    polls: int = 1
    """A batch ends when it is looked at for the time of this number."""
    end: str = "completed"
    answered: int | None = None
    """So many requests of a batch are answered before it ends; all where absent."""
    wrong: Callable[[Sequence[Line]], list[dict[str, Any]]] = no_errors
    """What validation finds in a file, besides what is against the rules."""
    order: Callable[[list[Line]], list[Line]] = as_asked
    before: Callable[[str], Reply | None] = never
    """Replaces a call before it does anything."""
    after: Callable[[str], Reply | None] = never
    """Replaces the reply to a call that has done its work."""
    max_requests: int = 50_000
    url: str = ""
    calls: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    looked: dict[str, int] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def asked(self) -> list[list[str]]:
        """Return, for each batch, the last message of every request in its file."""
        return [
            [line["body"]["messages"][-1]["content"] for line in self.lines(batch)] for batch in self.batches.values()
        ]

    def lines(self, batch: Mapping[str, Any]) -> list[Line]:
        """Return the requests of a batch."""
        return [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]

    def count(self, call: str) -> int:
        """Return how often a call was made."""
        return self.calls.count(call)

    # --- the calls ---

    def upload(self, content_type: str, body: bytes) -> Reply:
        fields = multipart(content_type, body)
        if fields["purpose"][1] != b"batch" or not fields["file"][0].endswith(".jsonl"):
            return error(400, "Invalid file format for Batch API. Must be .jsonl")
        file_id = self._store(fields["file"][1])
        self.names[file_id] = fields["file"][0]
        return _json({"id": file_id, "object": "file", "purpose": "batch", "bytes": len(fields["file"][1])})

    def create(self, body: bytes) -> Reply:
        wanted = json.loads(body)
        if wanted["input_file_id"] not in self.files or wanted["completion_window"] != "24h":
            return error(400, "no such file or window")
        batch_id = f"batch_{len(self.batches) + 1}"
        self.batches[batch_id] = {
            "id": batch_id,
            "object": "batch",
            "status": "validating",
            "created_at": int(time.time()),
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
            **wanted,
        }
        return _json(self.batches[batch_id])

    def look(self, batch_id: str) -> Reply:
        batch = self.batches.get(batch_id)
        if batch is None:
            return error(404, f"No batch found with id '{batch_id}'.")
        self.looked[batch_id] = self.looked.get(batch_id, 0) + 1
        if batch["status"] == "validating":
            self._validate(batch)
        if batch["status"] == "in_progress" and self.looked[batch_id] >= self.polls:
            self._finish(batch)
        return _json(batch)

    def listed(self, query: Mapping[str, Sequence[str]]) -> Reply:
        newest = list(reversed(self.batches.values()))
        if "after" in query:
            newest = newest[[batch["id"] for batch in newest].index(query["after"][0]) + 1 :]
        size = int(query["limit"][0])
        return _json({"object": "list", "data": newest[:size], "has_more": len(newest) > size})

    def content(self, file_id: str) -> Reply:
        if file_id not in self.files:
            return error(404, f"No such File object: {file_id}")
        return Reply(self.files[file_id].decode(), headers={"Content-Type": "application/binary"})

    # --- what happens inside ---

    def _store(self, content: bytes) -> str:
        file_id = f"file-{len(self.files) + 1}"
        self.files[file_id] = content
        return file_id

    def _validate(self, batch: dict[str, Any]) -> None:
        lines = self.lines(batch)
        wrong = self.wrong(lines)
        keys = [line["custom_id"] for line in lines]
        if len(lines) > self.max_requests:
            wrong.append({"code": "too_many", "message": f"more than {self.max_requests} requests", "line": None})
        if len(set(keys)) < len(keys) or any(
            (line["method"], line["url"]) != ("POST", batch["endpoint"]) for line in lines
        ):
            wrong.append({"code": "invalid", "message": "duplicate custom_id, or another url", "line": 1})
        batch["status"] = "failed" if wrong else "in_progress"
        batch["errors"] = {"object": "list", "data": wrong} if wrong else None

    def _finish(self, batch: dict[str, Any]) -> None:
        good: list[Line] = []
        bad: list[Line] = []
        for place, line in enumerate(self.order(self.lines(batch))):
            result: Line = {"id": f"batch_req_{place}", "custom_id": line["custom_id"], "response": None, "error": None}
            if self.answered is not None and place >= self.answered:
                result["error"] = {"code": f"batch_{self.end}", "message": f"This request was {self.end}."}
                bad.append(result)
            elif (reply := self.answer(line["body"])) is not None:
                body = json.loads(reply.body)
                result["response"] = {"status_code": reply.status, "request_id": "req_1", "body": body}
                (good if reply.status == 200 else bad).append(result)
        for name, lines in (("output_file_id", good), ("error_file_id", bad)):
            # one of them is absent in the real service, too, where it would be empty
            batch[name] = self._store(_jsonl(lines)) if lines else None
        batch["status"] = self.end


def multipart(content_type: str, body: bytes) -> dict[str, tuple[str, bytes]]:
    """Return the file name (or ``""``) and the content of each field of a form."""
    boundary = content_type.split("boundary=")[1].strip('"').encode()
    fields = {}
    for part in body.split(b"--" + boundary)[1:-1]:
        head, content = part.removeprefix(b"\r\n").split(b"\r\n\r\n", 1)
        names = dict(item.strip().split("=", 1) for line in head.decode().splitlines() for item in line.split(";")[1:])
        fields[names["name"].strip('"')] = (names.get("filename", "").strip('"'), content.removesuffix(b"\r\n"))
    return fields


@contextmanager
def fake_batches(fake: FakeBatches) -> Iterator[FakeBatches]:
    """Run the server; it is gone when the block ends."""
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


def _json(value: object) -> Reply:
    return Reply(json.dumps(value))


def _jsonl(lines: Sequence[Line]) -> bytes:
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def _handler(fake: FakeBatches) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self._reply(self.rfile.read(int(self.headers["Content-Length"])))

        def do_GET(self) -> None:
            self._reply(b"")

        def _reply(self, body: bytes) -> None:
            parts = urlsplit(self.path)
            path = parts.path.removeprefix("/v1")
            call = f"{self.command} {path}"
            with fake.lock:
                fake.calls.append(call)
                fake.headers.append({name.lower(): value for name, value in self.headers.items()})
            reply = fake.before(call)
            if reply is None:
                with fake.lock:
                    reply = self._done(call, parse_qs(parts.query), body)
                reply = fake.after(call) or reply
            time.sleep(reply.delay_s)
            # a client that was killed reads no answer
            with suppress(ConnectionError):
                self._send(reply)

        def _done(self, call: str, query: Mapping[str, Sequence[str]], body: bytes) -> Reply:
            match call.replace(" ", "/").split("/"):
                case ["POST", "", "files"]:
                    return fake.upload(self.headers["Content-Type"], body)
                case ["POST", "", "batches"]:
                    return fake.create(body)
                case ["GET", "", "batches"]:
                    return fake.listed(query)
                case ["GET", "", "batches", batch_id]:
                    return fake.look(batch_id)
                case ["GET", "", "files", file_id, "content"]:
                    return fake.content(file_id)
            return error(404, f"no such call: {call}")

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
