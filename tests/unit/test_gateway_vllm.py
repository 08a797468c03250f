"""What vLLM says and does, in the words of vLLM 0.32.0: whose fault it is, and that nobody else pays for it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web

from loraserve.gateway.metrics import Metrics
from loraserve.gateway.record import HiddenUsage
from loraserve.gateway.refusals import means_unknown_adapter
from tests.unit.gateway_world import BASE, World, adapter, chat, stream_lines, world

FAULTS: dict[str, dict[str, Any]] = {
    "temperature as text": {
        "message": "1 validation error:\n  {'type': 'float_parsing', 'loc': 'body.temperature', 'msg': 'Input should be a "
        "valid number, unable to parse string as a number', 'input': 'exploratory'}",
        "type": "Bad Request",
        "param": "body.temperature",
        "code": 400,
    },
    "an image to a text base": {
        "message": f"{BASE} is not a multimodal model",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    },
    "a value that names the adapter": {
        "message": "Input should be one of json, text: faq@v1 from Colorado",
        "type": "BadRequestError",
        "param": "response_format",
        "code": 400,
    },
    "another page": {"message": "Not Found", "type": "NotFoundError", "param": None, "code": 404},
    "a stored response": {
        "message": "Response with id 'The model `faq@v1` does not exist.' not found.",
        "type": "NotFoundError",
        "param": "response_id",
        "code": 404,
    },
}
"""Clients' own."""
UNKNOWN = {
    "asked": (404, "The model `faq@v1` does not exist. Valid aliases: base-model.", "model"),
    "unloaded while asked": (404, "The model `faq@v1` does not exist.", None),
    "its files are gone": (404, "Loading lora faq@v1 failed: No adapter found for <path>", None),
    "its files are gone, told by the worker": (400, "Loading lora faq@v1 failed: No adapter found for <path>", None),
}


@pytest.fixture
def at(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        made.pods[0].holds("faq@v1")
        made.start(adapter(fallback="base"))
        made.wait_for_status("ready")
        yield made


def says(fault: dict[str, Any]) -> Any:
    async def answer(*_: Any) -> web.Response:
        return web.json_response({"error": fault}, status=fault["code"])

    return answer


def sends(*raw: bytes) -> Any:
    """Bytes in an answer's place, one after the other, then the end of the connection."""

    async def answer(request: web.Request, _: Any) -> web.StreamResponse:
        assert request.transport
        for piece in raw:
            request.transport.write(piece)
            await asyncio.sleep(0.05)
        request.transport.close()
        return await asyncio.Event().wait()  # type: ignore[return-value]

    return answer


def code(answer: httpx.Response) -> str:
    return answer.json()["error"]["code"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_clients_own_mistake_goes_to_the_client_and_changes_nothing_for_others(at: World, fault: str) -> None:
    pod = at.pods[0]
    pod.behaviour = says(FAULTS[fault])
    began = time.monotonic()
    answer = at.post(chat())
    pod.behaviour = None
    next_one = at.post(chat())

    assert (answer.status_code, answer.json()) == (FAULTS[fault]["code"], {"error": FAULTS[fault]})
    assert "x-loraserve-fallback" not in answer.headers
    assert (next_one.status_code, next_one.json()["model"]) == (200, "faq@v1")
    assert len(pod.requests) == 2, "each was asked once"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("said", UNKNOWN)
def test_vllms_own_words_about_the_adapter_are_believed(said: str) -> None:
    status, message, param = UNKNOWN[said]
    body = json.dumps({"error": {"message": message, "type": "NotFoundError", "param": param, "code": status}}).encode()
    assert means_unknown_adapter(status, body, "faq@v1")
    assert not means_unknown_adapter(500, body, "faq@v1")


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b'{"error": "x"}', b'{"error": null}', b"[" * 100_000])
def test_an_error_that_is_none_of_vllms_says_nothing_about_the_adapter(body: bytes) -> None:
    assert not means_unknown_adapter(404, body, "faq@v1")


def test_a_failure_that_is_told_within_a_stream_counts_as_one(at: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    failure = {
        "message": "EngineCore encountered an issue.",
        "type": "Internal Server Error",
        "param": None,
        "code": 500,
    }

    async def fail(request: web.Request, _: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: " + json.dumps({"error": failure}).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    at.pods[0].behaviour = fail
    assert at.post(chat(stream=True)).content.endswith(b"data: [DONE]\n\n")
    metrics = at.inner("/metrics").text
    assert 'requests_total{model="faq",outcome="vllm_500",version="v1"} 1.0' in metrics
    assert 'requests_total{model="faq",outcome="ok",version="v1"} 0.0' in metrics
    assert "outcome=vllm_500" in caplog.text


def test_a_model_that_talks_of_errors_has_none(at: World) -> None:
    async def talk(request: web.Request, _: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        said = {"choices": [{"delta": {"content": '\ndata: {"error": {"code": 500}}'}}]}
        await response.write(b"data: " + json.dumps(said).encode() + b"\n\n")
        return response

    at.pods[0].behaviour = talk
    at.post(chat(stream=True))
    assert 'requests_total{model="faq",outcome="ok",version="v1"} 1.0' in at.inner("/metrics").text


UNASKED = [None, {}, {"include_usage": False}, {"include_usage": None, "continuous_usage_stats": True}]


@pytest.mark.parametrize("options", UNASKED)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_tokens_of_a_stream_are_vllms_and_who_did_not_ask_for_them_receives_what_they_would(
    at: World, path: str, options: dict[str, Any] | None
) -> None:
    with at.client() as http:
        answer = http.post(path, json=chat(stream=True, stream_options=options))
    assert answer.content == b"".join(stream_lines("faq@v1"))
    assert at.pods[0].requests[0]["stream_options"] == {"include_usage": True, "continuous_usage_stats": False}
    assert tokens(at) == {"in": 7, "out": 5}


def test_who_asks_for_usage_gets_it_as_vllm_sends_it(at: World) -> None:
    answer = at.post(chat(stream=True, stream_options={"include_usage": True}))
    assert answer.content == b"".join(stream_lines("faq@v1", usage=True))
    assert tokens(at) == {"in": 7, "out": 5}


@pytest.mark.parametrize("body", [chat(), chat(stream=False), chat(stream=True, stream_options="much")])
def test_what_is_no_stream_or_for_vllm_to_refuse_is_left_as_it_is(at: World, body: dict[str, Any]) -> None:
    async def refuse(*_: Any) -> web.Response:
        return web.json_response({"error": {"code": 400}}, status=400)

    at.pods[0].behaviour = refuse
    at.post(body)
    assert at.pods[0].requests[0].get("stream_options") == body.get("stream_options")


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("sequences", [1, 3])
def test_usage_is_found_however_the_stream_is_cut(sequences: int, size: int) -> None:
    hidden = HiddenUsage()
    sent = b"".join(stream_lines("faq@v1", usage=True, sequences=sequences))
    shown = b"".join(hidden.see(sent[at : at + size]) for at in range(0, len(sent), size)) + hidden.close()
    assert shown == b"".join(stream_lines("faq@v1", sequences=sequences))


def test_a_sequence_that_finishes_early_holds_no_other_back() -> None:
    *_, first_end, second_end, usage, _ = stream_lines("faq@v1", usage=True, sequences=2)
    hidden, more = HiddenUsage(), stream_lines("faq@v1")[1]
    assert hidden.see(first_end) == b""
    assert hidden.see(more) == more
    assert hidden.see(second_end) == b""
    assert hidden.see(usage) == b"".join(stream_lines("faq@v1", sequences=2)[-3:-1])


def test_a_stream_that_fails_after_a_sequence_has_finished_loses_nothing() -> None:
    hidden, finish = HiddenUsage(), stream_lines("faq@v1", usage=True)[-3]
    failure = b'data: {"error":{"code":500}}\n\n'
    assert hidden.see(finish) + hidden.see(failure) == finish + failure
    assert hidden.see(finish + b"data: {") + hidden.close() == finish + b"data: {"


@pytest.mark.parametrize("size", [5, 1000, 65_536])
def test_a_large_event_is_passed_on_and_not_collected(size: int) -> None:
    """As `echo` and `logprobs` make them of a long prompt."""
    first, *others = stream_lines("faq@v1", usage=True)
    large = first.replace(b'"content":""', b'"content":"%s"' % (b"x" * 150_000))
    hidden, shown, sent = HiddenUsage(), b"", large + b"".join(others)
    for at in range(0, len(sent), size):
        shown += hidden.see(sent[at : at + size])
        assert at + size - len(shown) < 70_000
    assert shown + hidden.close() == large + b"".join(stream_lines("faq@v1")[1:])


def test_a_stream_that_breaks_off_in_a_large_event_loses_nothing() -> None:
    *_, finish, _, _ = stream_lines("faq@v1", usage=True, sequences=2)
    hidden, broken = HiddenUsage(), b'data: {"id":' + b"x" * 100_000
    assert hidden.see(finish) + hidden.see(broken) + hidden.close() == broken


def test_a_refusal_that_repeats_a_long_request_ends_a_held_stream_with_an_event(
    at: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraserve.gateway.exchange.KEEP_ALIVE_SECONDS", 0.05)
    at.pods[0].behaviour = says({"message": "x" * 100_000, "type": "BadRequestError", "param": None, "code": 400})
    at.show_pods(0)
    at.wait_for_status("sleeping")
    with at.client() as http, http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
        received = answer.iter_bytes()
        next(received)
        at.show_pods(1)
        *_, event = b"".join(received).strip().splitlines()
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "upstream_error"


def test_a_stream_that_its_client_drops_counts_what_was_produced(at: World) -> None:
    at.pods[0].go_on = asyncio.Semaphore(4)
    body = chat(stream=True, stop="x" * 400)
    with at.client() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        received = b""
        for piece in answer.iter_bytes():
            received += piece
            if b" wor" in received:
                break
    at.wait_until(lambda: 'outcome="client_gone",version="v1"} 1.0' in at.inner("/metrics").text)
    counted = tokens(at)
    assert counted["out"] == 3, "the chunk that names the role has no token"
    assert counted["in"] == pytest.approx(400 / 4, rel=0.5), "a guess by the size of the request"


def tokens(at: World) -> dict[str, int]:
    """By direction, of all that the gateway counted."""
    at.wait_for_load()
    found = re.findall(r'gateway_tokens_total\{direction="(\w+)".*?\} (\S+)', at.inner("/metrics").text)
    return {direction: int(float(value)) for direction, value in found}


def test_a_model_that_is_no_longer_declared_leaves_no_series(at: World) -> None:
    at.pods[0].holds("faq@v1", "legal@v1")
    at.declare(adapter(fallback="base"), adapter("legal"))
    at.wait_for_status("ready", "legal")
    assert 'fallbacks_total{model="legal"' in at.inner("/metrics").text
    at.pods[0].go_on = asyncio.Semaphore(1)
    body = chat("legal", stream=True)
    with at.client() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        received = answer.iter_bytes()
        next(received)
        at.declare(adapter(fallback="base"))
        at.wait_until(lambda: '"legal"' not in at.inner("/metrics").text)
        at.pods[0].permit(100)
        for _ in received:
            pass
    at.wait_for_load()
    assert '"legal"' not in at.inner("/metrics").text, "nor does a request that ends later bring one back"


def test_waits_for_a_model_that_is_gone_are_forgotten() -> None:
    metrics = Metrics()
    metrics.declare({"faq": ["v1"]}, [])
    metrics.wait.labels("faq").observe(1)
    metrics.declare({}, [])
    assert b'"faq"' not in metrics.exposition()


def test_a_pods_redirect_is_not_followed(at: World) -> None:
    async def redirect(*_: Any) -> web.Response:
        raise web.HTTPTemporaryRedirect(f"http://{at.pods[1].address}:{at.pods[1].ports['vllm']}/v1/completions")

    at.pods[0].behaviour = redirect
    answer = at.post(chat())
    assert (answer.status_code, code(answer)) == (502, "upstream_error")
    assert not at.pods[1].requests


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n%s"
BAD_CHUNK = b"zz\r\n"
EVENT = b"data: {}\n\n"


@pytest.mark.parametrize(
    "raw",
    [
        CHUNKED % (b"application/json", BAD_CHUNK),
        CHUNKED % (b"text/event-stream", BAD_CHUNK),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"not HTTP\r\n\r\n",
    ],
    ids=["bad chunk", "bad chunk of a stream", "empty stream", "empty chunked stream", "not HTTP"],
)
def test_an_answer_that_is_none_is_an_error(at: World, raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    at.pods[0].behaviour = sends(raw)
    answer = at.post(chat())
    assert (answer.status_code, code(answer)) == (502, "upstream_error")
    assert "Traceback" not in caplog.text


def test_a_bad_chunk_after_an_event_ends_the_stream_with_an_error_event(at: World) -> None:
    first = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
    at.pods[0].behaviour = sends(CHUNKED % (b"text/event-stream", first), BAD_CHUNK)
    events = at.post(chat(stream=True)).content.split(b"\n\n")
    assert events[0] == EVENT.strip()
    assert json.loads(events[1].removeprefix(b"data: "))["error"]["code"] == "upstream_error"


def test_a_user_whom_no_encoding_can_write_is_served(at: World) -> None:
    with at.client() as http:
        answer = http.post("/v1/completions", content=b'{"model": "faq", "prompt": "Hi", "user": "\\ud800"}')
    assert answer.status_code == 200


def test_a_client_that_leaves_its_stream_leaves_no_traceback(at: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    at.pods[0].go_on = asyncio.Semaphore(1)
    with at.client() as http, http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
        assert next(answer.iter_bytes()) == stream_lines("faq@v1")[0]
    at.pods[0].permit(100)
    at.wait_for_load()
    assert "outcome=client_gone" in caplog.text
    assert [record for record in caplog.records if record.exc_info and record.name != "fake pod"] == []


def test_a_pod_whose_agent_is_slow_stays_awake_and_one_whose_agent_is_gone_does_not(
    at: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraserve.gateway.pods.FRESH_SECONDS", 0.5)
    monkeypatch.setattr("loraserve.gateway.pods._ANSWER", aiohttp.ClientTimeout(total=0.1))
    monkeypatch.setattr("loraserve.gateway.pods.POLL_SECONDS", 0.05)
    at.run(asyncio.sleep(1))  # until the new times count
    at.pods[0].agent_hangs = True
    at.run(asyncio.sleep(0.8))
    assert at.post(chat()).json()["model"] == "faq@v1"
    at.run(at.pods[0].stop("agent"))
    at.wait_for_status("sleeping")


def test_a_gateway_without_readable_keys_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraserve.gateway.main.KEYS_SECONDS", 0.1)
    with world(tmp_path) as at:
        at.keys_file.write_text("{")
        at.start(adapter(), ready=False)
        at.wait_until(lambda: "keys" in at.inner("/readyz").text)
        assert at.inner("/readyz").status_code == 503
        at.write_keys()
        at.wait_until(lambda: at.inner("/readyz").status_code == 200)
