"""A cheap OpenAI-compatible server for benchmarks: it answers after a fixed time and does nothing else.

Runs as a process of its own (``python bench/annotate_stub.py LATENCY_S``), prints its port, and ends when its
standard input closes. One JSON line with what it served is printed for every ``GET /stats``.
"""

import asyncio
import json
import re
import sys

ANSWER = json.dumps({"DRUG": ["Concor"], "PROCEDURE": ["EKG"]})
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def _body(answer: str) -> bytes:
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "stub-1",
            "system_fingerprint": "fp_1",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}],
            "usage": {"prompt_tokens": 300, "completion_tokens": 20, "total_tokens": 320},
        }
    ).encode()


def _reply(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class Stub:
    """What all connections share: the reply, the latency in seconds, and the counts."""

    def __init__(self, latency_s: float, answer: str = ANSWER) -> None:
        self.latency_s, self.reply = latency_s, _reply(_body(answer))
        self.served = self.at_once = self.most_at_once = 0

    def stats(self) -> bytes:
        """Return how many chat requests were served, and how many were open at once at most; then start anew."""
        counts = {"served": self.served, "most_at_once": self.most_at_once}
        self.served = self.most_at_once = 0
        return _reply(json.dumps(counts).encode())


class Connection(asyncio.Protocol):
    """One keep-alive connection without pipelining."""

    def __init__(self, stub: Stub) -> None:
        self._stub, self._received = stub, b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or len(body) < (int(length[1]) if length else 0):
            return
        self._received = b""
        if head.startswith(b"GET"):
            self._transport.write(self._stub.stats())
            return
        stub = self._stub
        stub.at_once += 1
        stub.most_at_once = max(stub.most_at_once, stub.at_once)
        if stub.latency_s:
            asyncio.get_running_loop().call_later(stub.latency_s, self._answer)
        else:
            self._answer()

    def _answer(self) -> None:
        # before the write: the client may come back before this goes on
        self._stub.at_once -= 1
        self._stub.served += 1
        if not self._transport.is_closing():
            self._transport.write(self._stub.reply)


async def _serve(stub: Stub) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(stub), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    # the lifeline: whoever started this closes the pipe, or dies and so closes it
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve(Stub(float(sys.argv[1]), *sys.argv[2:3])))
