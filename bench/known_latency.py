"""A model whose latencies are known: it draws them beforehand, and keeps by its own clock what each call really took."""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import time

import uvloop

from bench.constant_upstream import Http, answer, chunked

BASE, ADAPTER = "base-model", "faq"
VERSION = "v1"
MEDIAN_SECONDS, SPREAD = 0.15, 0.6
"""Of the time to the first token, which is log-normal."""
GAP_SECONDS, TOKENS = 0.02, 10
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Model:
    """`is_fast`: everything comes at once, and one token."""

    def __init__(self, is_fast: bool) -> None:
        self._is_fast = is_fast
        self._rng = random.Random(7)
        self.took: list[tuple[float, float]] = []
        """To the first token and to the end, in seconds."""
        self._streams: set[asyncio.Task[None]] = set()

    def respond(self, http: Http, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET /took"):
            http.write(answer(json.dumps(self.took).encode()))
        elif head.startswith(b"GET"):
            models = [{"id": BASE, "parent": None}, {"id": ADAPTER, "parent": BASE}]
            http.write(answer(json.dumps({"data": models}).encode()))
        else:
            asked = json.loads(body)["model"]
            served = asked if asked == BASE else f"{asked}@{VERSION}"
            stream = asyncio.create_task(self._stream(http, served, time.monotonic()))
            self._streams.add(stream)
            stream.add_done_callback(self._streams.discard)

    async def _stream(self, http: Http, served: str, received: float) -> None:
        pieces, first, gap = (1, 0.0, 0.0) if self._is_fast else (TOKENS, self._draw(), GAP_SECONDS)
        token = chunked(_event({"model": served, "choices": [{"text": "word "}]}))
        await _until(received + first)
        http.write(_HEAD + token)
        began = time.monotonic()
        for piece in range(1, pieces):
            await _until(received + first + piece * gap)
            http.write(token)
        usage = {"model": served, "choices": [], "usage": {"completion_tokens": pieces}}
        http.write(chunked(_event(usage) + b"data: [DONE]\n\n") + b"0\r\n\r\n")
        self.took.append((began - received, time.monotonic() - received))

    def _draw(self) -> float:
        return MEDIAN_SECONDS * math.exp(self._rng.gauss(0, SPREAD))


async def _until(due: float) -> None:
    if (early := due - time.monotonic()) > 0:
        await asyncio.sleep(early)


def _event(content: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


async def _serve(port: int, is_fast: bool) -> None:
    model = Model(is_fast)
    await asyncio.get_running_loop().create_server(lambda: Http(model.respond), "127.0.0.1", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), "--fast" in sys.argv))
