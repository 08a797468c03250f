"""A vLLM that answers at once and always the same, its agent, and the Kubernetes API that names both, in one process."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import cast

import uvloop

from bench import before
from loraserve.contract.agent_state import AdapterStatus, AgentState, State
from loraserve.contract.base_model import Base
from loraserve.contract.desired_state import Adapter, DesiredState
from loraserve.contract.served_name import ServedName

_VERSION = "v1"
SERVED = ServedName.of("faq", _VERSION)
_BASE = "base-model"
_PIECES = 20


def answer(body: bytes, content_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _whole() -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "word " * 34}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 112, "completion_tokens": 34, "total_tokens": 146}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 1, "model": SERVED, "choices": [choice], "usage": usage}
    ).encode()


def _piece() -> bytes:
    choice = {"index": 0, "delta": {"content": "word "}, "finish_reason": None}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": SERVED, "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_STREAM = [chunked(_piece())] * _PIECES + [chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"]
_WHOLE = answer(_whole())
_SLOW_SECONDS = 2.0
_LARGE_PIECE, _LARGE_PIECES = b"x" * (1 << 16), 4096
_LARGE_HEAD = answer(b"").replace(b"Content-Length: 0", b"Content-Length: %d" % (len(_LARGE_PIECE) * _LARGE_PIECES))
_LARGE_CHUNK = chunked(_LARGE_PIECE)
_LARGE_EVENT = chunked(b'data: {"id":"1","choices":[{"index":0,"text":"')


class Http(asyncio.Protocol):
    """Just enough of HTTP/1.1 for clients that send one request at a time."""

    def __init__(self, respond: Callable[[Http, bytes, bytes], None]) -> None:
        self._respond = respond
        self._received = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        lengths = [line.split(b":")[1] for line in head.lower().splitlines() if line.startswith(b"content-length:")]
        if len(body) >= int(lengths[0] if lengths else 0):
            self._received = b""
            self._respond(self, head, body)

    def write(self, data: bytes) -> None:
        if self.transport:
            self.transport.write(data)


def vllm(http: Http, head: bytes, body: bytes) -> None:
    if b'"echo"' in body:
        http.write(_STREAM_HEAD + _LARGE_EVENT)
        for _ in range(_LARGE_PIECES):
            http.write(_LARGE_CHUNK)
    elif b'"prompt_logprobs"' in body:
        http.write(_LARGE_HEAD)
        for _ in range(_LARGE_PIECES):
            http.write(_LARGE_PIECE)
    elif b'"user": "slow"' in body:
        asyncio.get_running_loop().call_later(_SLOW_SECONDS, http.write, _WHOLE)
    elif b'"stream": true' in body or b'"stream":true' in body:
        http.write(_STREAM_HEAD)
        for piece in _STREAM:
            http.write(piece)
    elif head.startswith(b"POST"):
        http.write(_WHOLE)
    else:
        http.write(answer(json.dumps({"object": "list", "data": [{"id": SERVED, "object": "model"}]}).encode()))


def agent(http: Http, _head: bytes, _body: bytes) -> None:
    status = AdapterStatus(name=SERVED.adapter, version=_VERSION, state=State.READY)
    state = AgentState(base=_BASE, adapters=(status,), loaded=(SERVED,), ready=True)
    http.write(answer(state.model_dump_json(by_alias=True).encode()))


class Kubernetes:
    """Lists, and tells every watch when vLLM falls asleep or awakes."""

    def __init__(self) -> None:
        self._awake = True
        self._watches: list[tuple[Http, str]] = []

    def respond(self, http: Http, head: bytes, _body: bytes) -> None:
        target = head.split(b" ", 2)[1].decode()
        if target in ("/awake", "/asleep"):
            self._awake = target == "/awake"
            http.write(answer(b""))
            for watch, watched in self._watches:
                for item in self._items(watched):
                    line = json.dumps({"type": "MODIFIED", "object": item}).encode() + b"\n"
                    watch.write(b"%x\r\n%s\r\n" % (len(line), line))
        elif "watch=1" in target:
            http.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            self._watches.append((http, target))
        else:
            http.write(
                answer(json.dumps({"items": self._items(target), "metadata": {"resourceVersion": "1"}}).encode())
            )

    def _items(self, target: str) -> list[dict[str, object]]:
        if "configmaps" in target:
            return [{"metadata": _metadata("desired-state"), "data": {"desired.json": _desired()}}]
        addresses = ["127.0.0.1"] if self._awake or "vllm-service" not in target else []
        endpoints = [{"addresses": [address], "conditions": {"ready": True}} for address in addresses]
        return [{"metadata": _metadata("slice"), "endpoints": endpoints}]


def _metadata(name: str) -> dict[str, str]:
    return {"name": name, "resourceVersion": "1"}


def _desired() -> str:
    adapter = Adapter(
        name=SERVED.adapter,
        model=SERVED.adapter,
        version=_VERSION,
        digest="sha256:" + "0" * 64,
        rank=8,
        target_modules=("q_proj",),
        size_bytes=1,
    )
    return before.document(DesiredState(base=Base(name=_BASE), bucket="bench", adapters=(adapter,)))


async def _serve(vllm_port: int, agent_port: int, kubernetes_port: int) -> None:
    loop, kubernetes = asyncio.get_running_loop(), Kubernetes()
    for port, respond in ((vllm_port, vllm), (agent_port, agent), (kubernetes_port, kubernetes.respond)):
        await loop.create_server(lambda respond=respond: Http(respond), "127.0.0.1", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(*(int(port) for port in sys.argv[1:])))
