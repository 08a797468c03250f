"""Tenants beside each other: what one of them costs is counted and bounded, and none learns of another."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from tests.unit.gateway_world import BASE, World, adapter, chat, world


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


def started(at: World) -> World:
    at.start(adapter())
    at.wait_for_status("ready")
    return at


def code(answer: httpx.Response) -> str:
    return answer.json()["error"]["code"]


def complete(
    at: World, body: dict[str, Any] | bytes, key: str | None = None, path: str = "/v1/completions"
) -> httpx.Response:
    with at.client(key) as http:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return http.post(path, content=content)


def asking(at: World, key: str, size: int) -> socket.socket:
    """A client that has announced a body and sent nothing of it."""
    client = socket.create_connection(("127.0.0.1", int(at.url.rpartition(":")[2])))
    client.settimeout(10)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {size}\r\n\r\n"
    client.sendall(head.encode())
    return client


# What a request costs.


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2048},
        {"n": "2048"},
        {"n": 2048.0},
        {"n": 33, "prompt": ["a", "b"]},
        {"prompt": [[1, 2]] * 65},
        {"prompt": None, "prompt_embeds": ["x"] * 65},
    ],
)
def test_one_request_for_too_many_sequences_is_refused(at: World, more: dict[str, Any]) -> None:
    answer = complete(started(at), {"model": "faq", "prompt": "Hello", "max_tokens": 64, "temperature": 1} | more)
    assert (answer.status_code, code(answer)) == (400, "invalid_request")
    assert "sequences" in answer.json()["error"]["message"]
    assert not at.pods[0].requests


@pytest.mark.parametrize("more", [{"n": 64}, {"n": None}, {"n": "many"}, {"prompt": list(range(1000))}, {"prompt": []}])
def test_what_costs_no_more_is_vllms_to_judge(at: World, more: dict[str, Any]) -> None:
    assert complete(started(at), {"model": "faq", "prompt": "Hello"} | more).status_code == 200


def test_every_sequence_takes_a_place(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    with world(tmp_path, pod_concurrency=4) as at:
        other = at.add_key("team-b")
        at.pods[0].holds("faq@v1")
        started(at).pods[0].go_on = asyncio.Semaphore(0)
        wide = pool.submit(at.post, chat(stream=True, n=4))
        at.wait_for_load(running=4)
        narrow = pool.submit(at.post, chat(stream=True), other)
        at.wait_for_load(waiting=1, running=4)
        at.pods[0].permit(100)
        assert [wide.result().status_code, narrow.result().status_code] == [200, 200]
        at.wait_for_load()


def test_a_request_that_is_wider_than_a_pod_still_gets_its_turn(tmp_path: Path) -> None:
    with world(tmp_path, pod_concurrency=2) as at:
        at.pods[0].holds("faq@v1")
        assert started(at).post(chat(n=8)).status_code == 200


def test_sequences_count_as_requests(at: World) -> None:
    key = at.add_key("team-b", requests_per_minute=10)
    started(at)
    assert complete(at, {"model": "faq", "prompt": ["a", "b"], "n": 4}, key).status_code == 200
    refused = complete(at, {"model": "faq", "prompt": "a", "n": 3}, key)
    assert (refused.status_code, code(refused)) == (429, "rate_limit_exceeded")
    assert "retry-after" in refused.headers


def test_tokens_are_limited_by_what_was_asked_for_and_then_by_what_was_used(at: World) -> None:
    """The fake vLLM reads 7 tokens and writes 3."""
    key = at.add_key("team-b", tokens_per_minute=1000)
    started(at)
    first = at.post(chat(max_tokens=600), key)
    assert first.status_code == 200
    assert int(first.headers["x-ratelimit-remaining-tokens"]) in range(985, 992)
    assert first.headers["x-ratelimit-limit-tokens"] == "1000"
    assert "x-ratelimit-limit-requests" not in first.headers

    at.pods[0].behaviour = forever
    with ThreadPoolExecutor() as pool:
        running = pool.submit(at.post, chat(max_tokens=600), key)
        at.wait_for_load(running=1)
        refused = at.post(chat(max_tokens=600), key)
        assert (refused.status_code, code(refused)) == (429, "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        at.run(at.pods[0].stop("vllm"))
        assert running.result().status_code >= 500
    assert int(at.client(key).get("/v1/models").headers["x-ratelimit-remaining-tokens"]) > 900, "nothing was generated"


def test_a_stream_is_charged_for_what_it_brought(at: World) -> None:
    key = at.add_key("team-b", tokens_per_minute=1000)
    started(at).post(chat(stream=True, max_tokens=900), key)
    assert int(at.post(chat(max_tokens=1), key).headers["x-ratelimit-remaining-tokens"]) > 900


def test_every_answer_tells_what_is_left(at: World) -> None:
    key = at.add_key("team-b", requests_per_minute=60)
    started(at)
    headers = [
        at.post(chat(), key).headers,
        at.post(chat(stream=True), key).headers,
        at.post(chat("nope"), key).headers,
    ]
    assert [each["x-ratelimit-limit-requests"] for each in headers] == ["60"] * 3
    assert [int(each["x-ratelimit-remaining-requests"]) for each in headers] == [59, 58, 57]
    assert headers[2]["x-ratelimit-reset-requests"] in ("2s", "3s")
    assert not [name for name in at.post(chat()).headers if name.startswith("x-ratelimit")], "a key without limits"


def test_a_tenants_limit_holds_over_all_its_keys(at: World) -> None:
    keys = [at.add_key("team-b", requests_per_minute=3) for _ in range(2)]
    started(at)
    answers = [at.post(chat(), key).status_code for key in keys * 2]
    assert answers == [200, 200, 200, 429]


def test_a_key_is_refused_from_its_end_on(at: World) -> None:
    past = at.add_key("team-b", expires_at="2020-01-01T00:00:00Z")
    future = at.add_key("team-b", expires_at="2999-01-01T00:00:00+02:00")
    started(at)
    refused = at.post(chat(), past)
    assert (refused.status_code, code(refused)) == (401, "invalid_api_key")
    assert "2020-01-01" in refused.json()["error"]["message"]
    assert at.post(chat(), future).status_code == 200


# Limits come before memory.


def test_who_is_over_the_limit_is_told_before_the_body_is_read(at: World) -> None:
    key = at.add_key("team-b", requests_per_minute=1)
    started(at)
    at.post(chat(), key)
    with asking(at, key, 4_000_000) as client:
        assert client.recv(100).startswith(b"HTTP/1.1 429 ")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models", b""),
        ("GET", "/v1/models/nope", b""),
        ("POST", "/v1/completions", b"{"),
        ("POST", "/v1/completions", b'{"model": "nope"}'),
        ("POST", "/v1/embeddings", b"{}"),
    ],
)
def test_whatever_a_key_asks_counts(at: World, method: str, path: str, body: bytes) -> None:
    key = at.add_key("team-b", requests_per_minute=2)
    started(at)
    with at.client(key) as http:
        statuses = [http.request(method, path, content=body).status_code for _ in range(3)]
    assert statuses[2] == 429
    assert 429 not in statuses[:2]


def test_bodies_in_memory_are_bounded_by_tenant_and_in_all(tmp_path: Path) -> None:
    with world(tmp_path, in_flight_bytes=1000) as at:
        keys = [at.add_key(tenant) for tenant in ("team-b", "team-c", "team-d")]
        at.pods[0].holds("faq@v1")
        started(at)
        holding = [asking(at, keys[0], 450)]
        at.run(asyncio.sleep(0.1))
        mine = complete(at, b" " * 100, keys[0])
        assert (mine.status_code, code(mine), mine.headers["retry-after"]) == (429, "rate_limit_exceeded", "1")
        holding.append(asking(at, keys[1], 450))
        at.run(asyncio.sleep(0.1))
        others = complete(at, b" " * 150, keys[2])
        assert (others.status_code, code(others), others.headers["retry-after"]) == (503, "overloaded", "1")
        for client in holding:
            client.close()
        at.wait_until(lambda: complete(at, b" " * 450, keys[2]).status_code == 400)


def test_bodies_that_do_not_come_take_no_more_than_half_of_what_is_worked_on(tmp_path: Path) -> None:
    with world(tmp_path, in_flight=4) as at:
        mine = at.add_key("team-b")
        at.pods[0].holds("faq@v1")
        started(at)
        silent = [asking(at, mine, 1) for _ in range(2)]
        at.wait_until(lambda: complete(at, b"{}", mine).status_code == 429)
        assert at.post(chat()).status_code == 200, "another tenant's"
        for client in silent:
            client.close()
        at.wait_until(lambda: at.post(chat(), mine).status_code == 200)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "faq", "prompt": [' + b"[]," * 500_000 + b"[]]}",
        b'{"model": "faq", "prompt": [' + b'{"a": {}},' * 200_000 + b"{}]}",
        b'{"model": "faq", "prompt": "' + b"[," * 500_000,
        b"[" + b"," * 160_000 + b'"' + b'\\"' * 900_000,
        b"[" + b"," * 160_000 + b'"' + b'\\"' * 900_000 + b"\\",
        ('"\u2200", ' + "[]," * 300_000 + '"\u2200"').encode("utf-16-be"),
    ],
    ids=["lists", "objects", "a text without an end", "or with many", "or half of one", "in another encoding"],
)
def test_a_body_that_would_burst_into_many_values_is_refused_unread(at: World, body: bytes) -> None:
    began = time.process_time()
    answer = complete(started(at), body)
    assert (answer.status_code, code(answer)) == (400, "invalid_request")
    assert time.process_time() - began < 2


def test_a_long_text_full_of_punctuation_is_no_burst(at: World) -> None:
    prompt = '[{"a": 1}, "\\"] ' * 50_000
    assert complete(started(at), {"model": "faq", "prompt": prompt}).status_code == 200
    assert at.pods[0].requests[0]["prompt"] == prompt


def test_a_large_answer_is_passed_on_as_fast_as_its_client_reads(at: World) -> None:
    sent, piece, count = 0, b'"prompt_logprobs": ' + b"x" * 65_536, 1000

    async def flood(request: web.Request, _: Any) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"usage": {"prompt_tokens": 70, "completion_tokens": 30}, ')
        for _ in range(count):
            await response.write(piece)
            sent += 1
        return response

    started(at).pods[0].behaviour = flood
    with at.client() as http, http.stream("POST", "/v1/completions", json=chat()) as answer:
        pieces = answer.iter_raw(65_536)
        received = len(next(pieces))
        before = -1
        while before != (before := sent):  # until vLLM cannot write any more
            at.run(asyncio.sleep(0.3))
        assert sent < count / 2
        assert received + sum(len(data) for data in pieces) > count * len(piece)
    assert 'tokens_total{direction="in",model="faq",tenant="team-a",version="v1"} 70' in at.inner("/metrics").text


@pytest.mark.parametrize("models", [("*",), ("legal",)], ids=["unknown", "not allowed"])
def test_an_error_does_not_repeat_what_is_long(at: World, models: tuple[str, ...]) -> None:
    key = at.add_key("team-b", models)
    answer = complete(started(at), chat("x" * 1_000_000), key)
    assert answer.status_code in (403, 404)
    assert len(answer.content) < 2000


def test_a_large_answer_that_breaks_off_is_visibly_broken(at: World) -> None:
    async def break_off(request: web.Request, _: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b"x" * 200_000)
        assert request.transport
        await asyncio.sleep(0.2)
        request.transport.abort()
        return response

    started(at).pods[0].behaviour = break_off
    with pytest.raises(httpx.RemoteProtocolError):
        at.post(chat())
    assert 'outcome="upstream_error"' in at.inner("/metrics").text


# Who learns what of whom.


def test_every_tenant_has_a_prefix_cache_of_its_own(at: World) -> None:
    other = at.add_key("team-b")
    started(at)
    for key in (at.key, other):
        for more in ({}, {"cache_salt": "mine"}, {"cache_salt": "team-a"}, {"cache_salt": "x@/\\" * 100}):
            assert at.post(chat(**more), key).status_code == 200
            assert complete(at, {"model": BASE, "prompt": "Hi"} | more, key).status_code == 200
    salts = {request["cache_salt"] for request in at.pods[0].requests}
    assert len(salts) == 8
    assert {"team-a", "team-b"} < salts
    # What vLLM 0.32.0 takes for a salt.
    assert all(0 < len(salt) <= 128 and not set(salt) & set("@/\\\0") for salt in salts)


@pytest.mark.parametrize("salt", ["", 1, ["team-a"], {"a": 1}])
def test_a_salt_that_is_none_is_refused(at: World, salt: object) -> None:
    answer = started(at).post(chat(cache_salt=salt))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "cache_salt")


def test_a_stranger_cannot_tell_others_models_from_none(at: World) -> None:
    stranger = at.add_key("team-b", ("legal",))
    started(at)

    def told(model: str) -> list[Any]:
        with at.client(stranger) as http:
            answers = [http.post("/v1/completions", json=chat(model)), http.get(f"/v1/models/{model}")]
        return [(each.status_code, each.text.replace(model, "...")) for each in answers]

    assert told("faq") == told("nope") == told("faq@v1") == told("nope@v1") == told(BASE)


async def forever(*_: Any) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError
