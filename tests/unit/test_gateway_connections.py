"""Connections before they hold a request: what comes on them is answered in OpenAI's shape, and there are only so many."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from loraserve import log
from loraserve.gateway import server
from loraserve.gateway.bounds import Bounds
from loraserve.gateway.tls import self_signed
from tests.unit.gateway_world import World, adapter, chat, world


@pytest.fixture
def few(tmp_path: Path) -> Iterator[World]:
    """Three connections at most."""
    with world(tmp_path, connections=3, tls_port=0) as made:
        made.pods[0].holds("faq@v1")
        made.start(adapter())
        made.wait_for_status("ready")
        yield made


def connect(url: str, *, buffer: int | None = None) -> socket.socket:
    """`buffer`: bytes that the kernel keeps for this client."""
    client = socket.socket()
    if buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.connect(("127.0.0.1", int(url.rpartition(":")[2])))
    client.settimeout(10)
    return client


def answer_to(serving: World, *pieces: bytes, pause: float = 0) -> bytes:
    """Everything that comes until the gateway closes."""
    with connect(serving.url) as client:
        for piece in pieces:
            client.sendall(piece)
            time.sleep(pause)
        return b"".join(iter(lambda: client.recv(65_536), b""))


def records(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "loraserve.access"]


UNREADABLE = {
    "a stray CR": (b"Authorization: Bearer %s\r", 400),
    "a NUL": (b"Authorization: Bearer %s\x00", 400),
    "over 8 KiB": (b"Authorization: Bearer %s" + b"x" * 9000, 431),
    "folded": (b"Authorization: Bearer %s\r\n folded", 400),
    "no colon": (b"Authorization Bearer %s", 400),
    "a name that is none": (b"Bearer %s\x01: x", 400),
    "named twice": (b"Host: x\r\nAuthorization: Bearer %s", 400),
    "many small ones": (b"Authorization: Bearer %s" + b"".join(b"\r\nX-%d: " % n + b"y" * 400 for n in range(50)), 431),
    "too many": (b"Authorization: Bearer %s" + b"".join(b"\r\nX-%d: y" % n for n in range(200)), 400),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_headers_that_cannot_be_read_are_an_error_in_openais_shape_without_the_key(
    serving: World, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.DEBUG)
    header, status = UNREADABLE[kind]
    line = header.replace(b"%s", serving.key.encode())
    body = answer_to(serving, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + line + b"\r\nConnection: close\r\n\r\n")

    head, _, content = body.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert b"Content-Type: application/json" in head
    assert json.loads(content)["error"].keys() == {"message", "type", "param", "code"}
    (record,) = records(caplog)
    assert f"status={status}" in record
    secret = serving.key.split("-", 2)[2]
    assert secret not in body.decode("latin-1")
    assert secret not in caplog.text


@pytest.mark.parametrize("path", ["/v1/models", "/nothing"])
def test_an_expectation_that_is_not_met_is_an_error_like_any_other(
    serving: World, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level(logging.DEBUG)
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nExpect: {serving.key}\r\nConnection: close\r\n\r\n"
    answer = answer_to(serving, head.encode())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_request"
    assert len(records(caplog)) == 1
    assert serving.key.encode() not in answer
    assert serving.key not in caplog.text


def test_a_client_that_waits_before_it_sends_its_body_is_told_once_the_body_is_wanted(serving: World) -> None:
    body = json.dumps(chat()).encode()
    head = f"Host: x\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\nConnection: close\r\n"
    start = f"POST /v1/chat/completions HTTP/1.1\r\n{head}".encode()
    refused = answer_to(serving, start + b"\r\n")
    assert refused.startswith(b"HTTP/1.1 401 "), "and not to send it first"
    with connect(serving.url) as client:
        client.sendall(start + f"Authorization: Bearer {serving.key}\r\n\r\n".encode())
        assert client.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_a_key_is_no_id_of_a_request(serving: World) -> None:
    assert serving.post(chat(), **{"X-Request-Id": "id-1"}).headers["X-Request-Id"] == "id-1"
    assert serving.key not in serving.post(chat(), **{"X-Request-Id": serving.key}).headers["X-Request-Id"]


def test_no_key_gets_into_the_log_by_any_message() -> None:
    key = "lsk-0a1b2c3d-" + "s3cret_-" * 5
    try:
        raise ValueError(f"Authorization: Bearer {key}")
    except ValueError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "", 0, f"id={key}", None, (ValueError, error, error.__traceback__)
        )
    shown = log._Formatter("%(message)s").format(record)
    assert "Traceback" in shown
    assert "s3cret" not in shown


def test_a_head_that_never_ends_is_refused_before_it_fills_the_memory(serving: World) -> None:
    body = answer_to(
        serving, b"GET /v1/models HTTP/1.1\r\n", *[b"X-%d: " % n + b"y" * 1000 + b"\r\n" for n in range(17)]
    )
    assert body.split()[1] == b"431"


@pytest.mark.parametrize("authorized", [True, False])
def test_what_follows_a_body_is_bounded_like_a_head(serving: World, authorized: bool) -> None:
    key = f"Authorization: Bearer {serving.key}\r\n" if authorized else ""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{key}Transfer-Encoding: chunked\r\n\r\n".encode()
    body = b'{"model": "faq", "prompt": "Hi"}'
    trailers = [b"X-%d: " % n + b"y" * 8000 + b"\r\n" for n in range(100)]
    with connect(serving.url) as client, contextlib.suppress(ConnectionError):
        client.sendall(head + b"%x\r\n%s\r\n0\r\n" % (len(body), body))
        for trailer in [*trailers, b"\r\n"]:
            client.sendall(trailer)
            time.sleep(0.001)
        answered = client.recv(65_536)
        assert answered.startswith(b"HTTP/1.1 %d " % (400 if authorized else 401))
        while client.recv(65_536):  # until it is closed
            pass


@pytest.mark.parametrize("pause", [0, 0.1], ids=["all at once", "while it is being answered"])
def test_a_body_that_is_badly_framed_is_refused_at_once_and_once(
    serving: World, caplog: pytest.LogCaptureFixture, pause: float
) -> None:
    caplog.set_level(logging.INFO)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {serving.key}\r\n"
    began = time.monotonic()
    answer = answer_to(
        serving, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), b'2\r\n{"\r\n', b"zz\r\n", pause=pause
    )
    assert re.findall(rb"HTTP/1\.\d (\d+)", answer) == [b"400"]
    assert time.monotonic() - began < 5
    assert len(records(caplog)) == 1


def test_requests_that_come_before_their_turn_are_answered_in_order(serving: World) -> None:
    body = json.dumps(chat()).encode()
    head = f"HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {serving.key}\r\nContent-Length: {len(body)}\r\n"
    first = f"POST /v1/chat/completions {head}\r\n".encode() + body
    last = f"POST /v1/completions {head}Connection: close\r\n\r\n".encode() + body
    assert answer_to(serving, first * 5 + last).count(b"HTTP/1.1 200") == 6


def test_where_there_are_too_many_connections_the_oldest_idle_one_makes_room(few: World) -> None:
    idle = [connect(few.url) for _ in range(3)]
    assert few.post(chat()).status_code == 200
    assert idle[0].recv(1) == b""
    idle[2].sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    assert idle[2].recv(1), "the newest is still there"
    for client in idle:
        client.close()


def test_clients_that_do_not_take_their_answers_make_room(few: World) -> None:
    deaf = [ask_for_much(few) for _ in range(3)]
    few.pods[0].behaviour = None
    assert few.post(chat()).status_code == 200
    for client in deaf:
        client.close()


def test_a_client_that_does_not_take_its_answer_is_given_up(tmp_path: Path) -> None:
    with world(tmp_path, answer_seconds=0.2) as at:
        at.pods[0].holds("faq@v1")
        at.start(adapter())
        at.wait_for_status("ready")
        received = b""
        with ask_for_much(at) as client, contextlib.suppress(ConnectionError):
            while data := client.recv(1 << 20):  # what was on its way, then no more
                received += data
        assert received.count(b"HTTP/1.1 200") < 200


def ask_for_much(at: World) -> socket.socket:
    """A client that asks for some megabytes and reads nothing; returns once nothing more is done for it."""

    async def large(*_: Any) -> web.Response:
        return web.json_response({"text": "x" * 60_000})

    at.pods[0].behaviour = large
    before, body = len(at.pods[0].requests), json.dumps(chat()).encode()
    client = connect(at.url, buffer=2048)
    head = f"HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {at.key}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    client.sendall((b"POST /v1/chat/completions " + head + body) * 200)
    at.wait_until(lambda: len(at.pods[0].requests) > before and is_quiet(at))
    return client


def is_quiet(at: World) -> bool:
    before = len(at.pods[0].requests)
    time.sleep(1)
    return len(at.pods[0].requests) == before


@pytest.mark.parametrize("path", ["/v1/models", "/nothing", "/health"])
def test_who_has_no_key_gets_one_answer_for_each_connection(serving: World, path: str) -> None:
    answer = answer_to(serving, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 3)
    assert answer.count(b"HTTP/1.1 ") == 1


def test_handshakes_that_never_come_make_room_too(few: World) -> None:
    silent = [connect(few.tls_url) for _ in range(6)]
    headers = {"Authorization": f"Bearer {few.key}"}
    assert httpx.get(f"{few.tls_url}/v1/models", headers=headers, verify=False, trust_env=False).status_code == 200
    for client in silent:
        client.close()


def test_many_handshakes_at_once_are_begun_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = list[float]()

    async def begin(*_: object) -> None:
        begun.append(asyncio.get_running_loop().time())

    async def take(count: int) -> None:
        clients = server.Clients(web.Server(begin), lambda _: web.Response(), Bounds())  # type: ignore[arg-type]
        port = clients.listen(0, self_signed())
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(connect(f"http://127.0.0.1:{port}"))
            async with asyncio.timeout(20):
                while len(begun) < count:
                    await asyncio.sleep(0.01)
        clients.stop_listening()

    monkeypatch.setattr(server.Clients, "_begin", begin)
    asyncio.run(take(150))
    assert begun[64] - begun[0] > 0.05
    assert begun[128] - begun[64] > 0.05


def test_a_connection_whose_request_is_being_answered_is_never_cut_for_another_which_waits(few: World) -> None:
    few.pods[0].go_on = asyncio.Semaphore(0)
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(few.post, chat(stream=True)) for _ in range(3)]
        few.wait_for_load(running=3)
        running.append(pool.submit(few.post, chat(stream=True)))
        few.run(asyncio.sleep(1.2))  # longer than an idle one would be left in peace
        assert len(few.pods[0].requests) == 3
        few.pods[0].permit(100)
        assert [future.result().status_code for future in running] == [200] * 4
