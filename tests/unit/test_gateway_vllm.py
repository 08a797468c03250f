"""What vLLM says and does, in the words of vLLM 0.32.0: whose fault it is, and that nobody else pays for it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web

from loraserve.gateway.exchange import means_unknown_adapter
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
