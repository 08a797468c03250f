"""The gateway as clients meet it: between a Kubernetes API, agents and vLLMs on loopback addresses."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from loraserve.contract.agent_state import AdapterStatus, State
from tests.unit.gateway_world import BASE, World, adapter, chat, error, stream_lines, world


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as executor:
        yield executor


def code(response: httpx.Response) -> str:
    """The error's code; every error has OpenAI's four fields."""
    body = response.json()["error"]
    assert body.keys() == {"message", "type", "param", "code"}
    return body["code"]


def metric(at: World, line: str) -> float:
    """A sample's value, 0 if there is none."""
    found = [row for row in at.inner("/metrics").text.splitlines() if row.startswith(f"{line} ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


# What passes, and what does not.


def test_a_public_name_reaches_its_version_with_vllms_key_and_not_the_clients(serving: World) -> None:
    answer = serving.post(chat(temperature=0.5, extra={"a": [1, None]}))

    pod = serving.pods[0]
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "faq@v1 says hello"
    assert answer.headers["x-loraserve-model"] == "faq@v1"
    assert pod.requests == [chat("faq@v1", temperature=0.5, extra={"a": [1, None]}, cache_salt="team-a")]
    assert pod.headers[0]["authorization"] == "Bearer vllm-key"
    assert serving.key not in str(pod.headers)


def test_a_stream_is_passed_on_byte_for_byte(serving: World) -> None:
    answer = serving.post(chat(stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content == b"".join(stream_lines("faq@v1"))


def test_a_stream_is_passed_on_piece_by_piece(serving: World) -> None:
    pod = serving.pods[0]
    pod.go_on = asyncio.Semaphore(1)
    with serving.client() as http, http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
        pieces = answer.iter_bytes()
        for line in stream_lines("faq@v1"):
            assert next(pieces) == line
            pod.permit()  # the next piece is not sent before this one has arrived


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/load_lora_adapter", 404),
        ("POST", "/v1/unload_lora_adapter", 404),
        ("POST", "/invocations", 404),
        ("POST", "/v1/messages", 404),
        ("GET", "/metrics", 404),
        ("GET", "/scale", 404),
        ("GET", "/v1/responses/resp_1", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "/v1/chat/../load_lora_adapter", 404),
        ("POST", "/v1/%6coad_lora_adapter", 404),
        ("POST", "//v1/completions", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("OPTIONS", "/v1/models", 405),
    ],
)
def test_every_other_route_is_closed(serving: World, method: str, path: str, status: int) -> None:
    with serving.client() as http:
        answer = http.request(method, path, json=chat())
    assert answer.status_code == status
    assert code(answer) == {404: "unknown_url", 405: "method_not_allowed"}[status]
    assert not serving.pods[0].requests


def test_a_request_without_a_valid_key_is_refused_before_its_body_is_read(serving: World) -> None:
    with socket.create_connection(("127.0.0.1", int(serving.url.rpartition(":")[2]))) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 401 ")


def test_a_key_may_call_what_it_names_and_sees_nothing_else(at: World) -> None:
    legal_only = at.add_key("team-b", ("legal",))
    at.pods[0].holds("faq@v1", "legal@v1")
    at.start(adapter(), adapter("legal"))
    at.wait_for_status("ready")

    assert at.post(chat("legal"), legal_only).status_code == 200
    for model in ("faq", "faq@v1", BASE):
        refused = at.post(chat(model), legal_only)
        assert (refused.status_code, code(refused)) == (403, "model_not_allowed")
    with at.client(legal_only) as http:
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["legal"]


def test_a_key_over_its_limit_is_told_when_to_come_back(at: World) -> None:
    limited = at.add_key("team-b", requests_per_minute=2)
    at.start(adapter())
    at.wait_for_status("ready")
    answers = [at.post(chat(), limited) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert code(answers[2]) == "rate_limit_exceeded"
    assert 1 <= int(answers[2].headers["retry-after"]) <= 60
    assert at.post(chat()).status_code == 200


def test_a_new_key_is_valid_without_a_restart(serving: World) -> None:
    added = serving.add_key("team-b")
    serving.wait_until(lambda: serving.post(chat(), added).status_code == 200)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"faq"',
        b"{}",
        b'{"model": ""}',
        b'{"model": 1}',
        b'{"model": null}',
        b'{"model": "faq", "temperature": NaN}',
        b'{"model": "faq", "temperature": 1e999}',
        b'{"model": "faq", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "faq", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\xff\xfe\x00",
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    ],
)
def test_a_body_that_is_no_completion_request_is_a_clear_400(serving: World, body: bytes) -> None:
    with serving.client() as http:
        answer = http.post("/v1/completions", content=body)
    assert answer.status_code == 400
    assert code(answer) == "invalid_request"


def test_of_two_models_in_one_body_the_key_is_checked_for_the_one_that_answers(at: World) -> None:
    legal_only = at.add_key("team-b", ("legal",))
    at.pods[0].holds("faq@v1", "legal@v1")
    at.start(adapter(), adapter("legal"))
    at.wait_for_status("ready")
    with at.client(legal_only) as http:
        assert http.post("/v1/completions", content=b'{"model": "legal", "model": "faq"}').status_code == 403
        assert http.post("/v1/completions", content=b'{"model": "faq", "model": "legal"}').status_code == 200
    assert at.pods[0].models == ["legal@v1"]


def test_vllms_refusal_of_a_request_is_passed_on(serving: World) -> None:
    async def too_long(*_: Any) -> web.Response:
        return error(400, "This model's maximum context length is 4096 tokens.")

    serving.pods[0].behaviour = too_long
    answer = serving.post(chat())
    assert answer.status_code == 400
    assert "4096" in answer.json()["error"]["message"]


def test_vllm_refusing_the_gateways_key_is_not_shown_as_the_clients_fault(serving: World) -> None:
    async def unauthorized(*_: Any) -> web.Response:
        return web.json_response({"error": "Unauthorized"}, status=401)

    serving.pods[0].behaviour = unauthorized
    assert code(serving.post(chat())) == "upstream_error"


def test_the_load_balancer_is_answered_in_tls(tmp_path: Path) -> None:
    with world(tmp_path, tls_port=0) as at:
        at.start(adapter())
        headers = {"Authorization": f"Bearer {at.key}"}
        answer = httpx.get(f"{at.tls_url}/v1/models", headers=headers, verify=False, trust_env=False)
        assert answer.json()["data"]


# Limits.


def test_a_body_over_the_limit_is_refused(tmp_path: Path) -> None:
    with world(tmp_path, body_bytes=1000) as at:
        at.start(adapter())
        declared = at.post(chat(more="x" * 1000))
        with at.client() as http:
            chunked = http.post("/v1/completions", content=iter([b"x" * 600, b"x" * 600]))
    assert (declared.status_code, chunked.status_code) == (413, 413)
    assert {code(declared), code(chunked)} == {"request_too_large"}


def test_a_body_that_does_not_come_ends_the_request(tmp_path: Path) -> None:
    with world(tmp_path, body_seconds=0.2) as at:
        at.start(adapter())
        with socket.create_connection(("127.0.0.1", int(at.url.rpartition(":")[2]))) as client:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {at.key}\r\n"
            client.sendall(f"{head}Content-Length: 10\r\n\r\n{{".encode())
            client.settimeout(10)
            assert client.recv(100).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("sent", [b"", b"GET /v1/mod", b"GET /v1/models HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_whose_headers_do_not_come_is_closed(tmp_path: Path, sent: bytes) -> None:
    with world(tmp_path, idle_seconds=0.3) as at:
        at.start(adapter())
        with socket.create_connection(("127.0.0.1", int(at.url.rpartition(":")[2]))) as client:
            client.sendall(sent)
            client.settimeout(10)
            assert client.recv(100) == b""


def test_a_load_balancers_connection_is_left_to_the_load_balancer_to_end(tmp_path: Path) -> None:
    unverified = ssl._create_unverified_context()
    with world(tmp_path, idle_seconds=0.2, tls_port=0) as at:
        at.start(adapter())
        address = ("127.0.0.1", int(at.tls_url.rpartition(":")[2]))
        with socket.create_connection(address) as plain, unverified.wrap_socket(plain) as client:
            client.settimeout(0.6)
            with pytest.raises(TimeoutError):
                client.recv(100)


def test_a_client_that_hangs_up_cancels_its_generation(serving: World) -> None:
    pod = serving.pods[0]
    pod.behaviour = forever
    with asking(serving):
        serving.wait_for_load(running=1)
    assert pod.hung_up.wait(10)
    serving.wait_for_load()
    assert metric(serving, 'loraserve_gateway_requests_total{model="faq",outcome="client_gone",version="v1"}') == 1


def test_a_client_that_hangs_up_in_the_middle_of_a_stream_cancels_its_generation(serving: World) -> None:
    pod = serving.pods[0]
    pod.go_on = asyncio.Semaphore(1)
    with serving.client() as http, http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
        next(answer.iter_bytes())
    assert pod.hung_up.wait(10)
    serving.wait_for_load()


def test_a_client_that_reads_slowly_slows_vllm_down(serving: World) -> None:
    sent = 0
    piece = b"data: " + b"x" * 65_536 + b"\n\n"

    async def flood(request: web.Request, _: Any) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(2000):
            await response.write(piece)
            sent += 1
        return response

    serving.pods[0].behaviour = flood
    with serving.client() as http, http.stream("POST", "/v1/completions", json=chat(stream=True)) as answer:
        pieces = answer.iter_raw(65_536)
        next(pieces)
        before = -1
        while before != (before := sent):  # until vLLM cannot write any more
            serving.run(asyncio.sleep(0.5))
        assert sent < 1000
        assert sum(len(data) for data in pieces) > 1000 * len(piece)
    assert sent == 2000


def test_a_client_that_stops_reading_is_given_up(tmp_path: Path) -> None:
    async def flood(request: web.Request, _: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b"data: " + b"x" * 65_536 + b"\n\n")

    with world(tmp_path, stall_seconds=0.5) as at:
        at.pods[0].holds("faq@v1")
        at.start(adapter())
        at.wait_for_status("ready")
        at.pods[0].behaviour = flood
        with at.client() as http, http.stream("POST", "/v1/completions", json=chat(stream=True)):
            assert at.pods[0].hung_up.wait(15)


# Following the cluster.


def test_the_public_name_follows_the_desired_version_without_a_gap(serving: World, pool: ThreadPoolExecutor) -> None:
    pod, stop = serving.pods[0], threading.Event()

    def keep_asking() -> list[httpx.Response]:
        answers = []
        with serving.client() as http:
            while not stop.is_set():
                answers.append(http.post("/v1/chat/completions", json=chat()))
        return answers

    asking = [pool.submit(keep_asking) for _ in range(4)]
    serving.declare(adapter(version="v2"))
    serving.wait_until(lambda: len(pod.requests) > 50)
    pod.report = pod.report.model_copy(update={"adapters": _statuses(v1=State.READY, v2=State.LOADING)})
    pod.known |= {"faq@v2"}
    pod.report = pod.report.model_copy(update={"adapters": _statuses(v1=State.DRAINING, v2=State.READY)})
    serving.wait_until(lambda: "faq@v2" in pod.models)
    stop.set()
    answers = [answer for future in asking for answer in future.result()]

    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json()["model"] == answer.headers["x-loraserve-model"] for answer in answers)
    assert serving.post(chat()).json()["model"] == "faq@v2"


def test_a_version_that_vllm_unloaded_a_moment_ago_costs_no_request(serving: World) -> None:
    """The agent was asked up to a second ago; vLLM's 404 makes the gateway ask anew, and go on to the new version."""
    pod = serving.pods[0]
    serving.declare(adapter(version="v2"))
    pod.report = pod.report.model_copy(update={"adapters": _statuses(v2=State.READY)})
    pod.known = {BASE, "faq@v2"}
    answers = [serving.post(chat()) for _ in range(5)]
    assert [answer.json().get("model") for answer in answers] == ["faq@v2"] * 5


def test_a_bad_document_never_replaces_a_good_one(serving: World) -> None:
    serving.show_document('{"schemaVersion": 99}')
    serving.declare(adapter(), adapter("legal"))
    serving.show_document("not JSON")
    serving.wait_until(lambda: serving.post(chat("legal"), "lsk").status_code == 401)
    with serving.client() as http:
        serving.wait_until(lambda: len(http.get("/v1/models").json()["data"]) == 3)


def test_an_ending_pod_gets_nothing_new_and_finishes_what_it_has(at: World) -> None:
    for pod in at.pods[:2]:
        pod.holds("faq@v1")
        pod.go_on = asyncio.Semaphore(1)
    at.start(adapter(), pods=2)
    at.wait_for_status("ready")
    with at.client() as http, http.stream("POST", "/v1/completions", json=chat(stream=True)) as answer:
        at.wait_until(lambda: any(pod.requests for pod in at.pods))
        ending = next(pod for pod in at.pods if pod.requests)
        other = next(pod for pod in at.pods[:2] if pod is not ending)
        at.show_pods(2, terminating=(ending.address,))

        def goes_to_the_other() -> bool:
            return at.post(chat()).status_code == 200 and bool(other.requests)

        at.wait_until(goes_to_the_other)
        ending_before = len(ending.requests)
        assert [at.post(chat()).status_code for _ in range(5)] == [200] * 5
        assert len(ending.requests) == ending_before
        ending.permit(10)
        assert answer.read() == b"".join(stream_lines("faq@v1"))


def test_what_the_gateway_tells_kubernetes_is_its_current_token(serving: World) -> None:
    assert serving.kubernetes.tokens == {"Bearer the-token"}


def test_a_lost_api_server_changes_nothing_for_clients(serving: World) -> None:
    serving.run(serving.kubernetes.stop())
    assert serving.post(chat()).status_code == 200


# Fallback.


def test_an_adapter_that_vllm_does_not_know_is_answered_by_the_base_model_and_says_so(at: World) -> None:
    at.start(adapter(fallback="base"))
    at.wait_for_status("ready")
    at.pods[0].known = {BASE}
    answer = at.post(chat())

    assert (answer.status_code, answer.json()["model"]) == (200, BASE)
    assert answer.headers["x-loraserve-fallback"] == "base"
    assert metric(at, 'loraserve_gateway_fallbacks_total{model="faq",reason="adapter_unavailable"}') == 1


def test_nobody_is_sent_to_the_base_model_while_another_pod_has_the_version(at: World) -> None:
    for pod in at.pods[:2]:
        pod.holds("faq@v1")
    at.start(adapter(fallback="base"), pods=2)
    at.wait_for_status("ready")
    at.post(chat())
    home = next(pod for pod in at.pods if pod.requests)
    home.known = {BASE}

    answer = at.post(chat())

    assert len(home.requests) == 2, "it was asked, and did not know the adapter"
    assert (answer.status_code, answer.json()["model"]) == (200, "faq@v1")
    assert "x-loraserve-fallback" not in answer.headers


def test_a_quarantined_adapter_is_answered_by_the_base_model_where_that_is_declared(at: World) -> None:
    at.pods[0].holds("faq@v1", "legal@v1", state=State.QUARANTINED, reason="digest mismatch")
    at.pods[0].report = at.pods[0].report.model_copy(update={"loaded": ()})
    at.start(adapter(fallback="base"), adapter("legal"))
    at.wait_for_status("quarantined")

    assert at.post(chat()).headers["x-loraserve-fallback"] == "base"
    strict = at.post(chat("legal"))
    assert (strict.status_code, code(strict)) == (503, "adapter_unavailable")
    assert "digest mismatch" in strict.json()["error"]["message"]


def test_a_strict_adapter_that_vllm_does_not_know_is_an_error_and_never_the_base_model(serving: World) -> None:
    serving.pods[0].known = {BASE}
    answer = serving.post(chat())
    assert (answer.status_code, code(answer)) == (503, "adapter_unavailable")
    assert BASE not in serving.pods[0].models


def test_a_clients_own_mistake_is_no_reason_to_fall_back(at: World) -> None:
    async def too_long(*_: Any) -> web.Response:
        return error(400, "This model's maximum context length is 4096 tokens.")

    at.start(adapter(fallback="base"))
    at.wait_for_status("ready")
    at.pods[0].behaviour = too_long
    answer = at.post(chat())
    assert answer.status_code == 400
    assert "x-loraserve-fallback" not in answer.headers
    assert len(at.pods[0].requests) == 1


# Broken vLLMs.


def test_a_vllm_that_drops_a_request_before_answering_is_asked_again(serving: World) -> None:
    drops = iter([True, False])

    async def drop(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if next(drops):
            assert request.transport
            request.transport.abort()
            return web.Response()
        return web.json_response({"model": body["model"]})

    serving.pods[0].behaviour = drop
    assert serving.post(chat()).status_code == 200


def test_a_request_that_kills_every_vllm_is_not_tried_for_ever(serving: World) -> None:
    serving.pods[0].behaviour = abort
    answer = serving.post(chat())
    assert (answer.status_code, code(answer)) == (502, "upstream_error")
    assert len(serving.pods[0].requests) == 2


def test_another_pod_answers_where_one_is_gone(at: World) -> None:
    for pod in at.pods[:2]:
        pod.holds("faq@v1")
    at.start(adapter(), pods=2)
    at.wait_until(lambda: at.post(chat()).status_code == 200)
    home = next(pod for pod in at.pods if pod.requests)
    at.run(home.stop("vllm"))
    answers = [at.post(chat()) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 5


def test_a_stream_that_breaks_between_events_ends_with_an_error_event(serving: World) -> None:
    serving.pods[0].behaviour = breaking(stream_lines("faq@v1")[0])
    answer = serving.post(chat(stream=True))
    lines = answer.content.split(b"\n\n")
    assert answer.status_code == 200
    assert lines[0] + b"\n\n" == stream_lines("faq@v1")[0]
    assert json.loads(lines[1].removeprefix(b"data: "))["error"]["code"] == "upstream_error"


def test_a_stream_that_breaks_within_an_event_is_visibly_broken(serving: World) -> None:
    serving.pods[0].behaviour = breaking(b'data: {"half')
    with pytest.raises(httpx.RemoteProtocolError):
        serving.post(chat(stream=True))


def test_a_vllm_that_sends_nothing_is_given_up(tmp_path: Path) -> None:
    with world(tmp_path, stall_seconds=0.3) as at:
        at.pods[0].holds("faq@v1", "legal@v1")
        at.start(adapter(), adapter("legal", fallback="base"))
        at.wait_for_status("ready")
        at.pods[0].behaviour = silent_adapters
        strict, lenient = at.post(chat()), at.post(chat("legal"))
        assert (strict.status_code, code(strict)) == (504, "upstream_timeout")
        assert lenient.headers["x-loraserve-fallback"] == "base"
        assert at.pods[0].hung_up.is_set()


# Waiting.


def test_a_request_to_a_sleeping_model_is_held_until_it_is_awake(at: World, pool: ThreadPoolExecutor) -> None:
    at.start(adapter(), pods=0)
    with at.client() as http:
        models = http.get("/v1/models").json()["data"]
    assert {model["id"]: model["status"] for model in models} == {"faq": "sleeping", BASE: "sleeping"}
    held = pool.submit(at.post, chat())
    at.wait_for_load(waiting=1)
    assert metric(at, 'loraserve_gateway_waiting{model="faq"}') == 1

    at.show_pods(1)

    assert held.result().json()["model"] == "faq@v1"
    at.wait_for_load()
    assert metric(at, "loraserve_gateway_cold_starts_total") == 1
    assert metric(at, 'loraserve_gateway_cold_start_phase_seconds_count{phase="model"}') == 1


def test_a_request_to_an_adapter_that_still_loads_is_held(at: World, pool: ThreadPoolExecutor) -> None:
    at.pods[0].starting()
    at.start(adapter())
    held = pool.submit(at.post, chat())
    at.wait_for_load(waiting=1)
    at.pods[0].holds("faq@v1")
    assert held.result().status_code == 200


def test_who_waits_too_long_is_told_to_come_back(tmp_path: Path) -> None:
    with world(tmp_path, wait_seconds=0.3, cold_start_seconds=450) as at:
        at.start(adapter(), pods=0)
        answer = at.post(chat())
    assert (answer.status_code, code(answer)) == (503, "model_starting")
    assert answer.headers["retry-after"] == "60"


def test_an_answer_is_honest_about_how_long_the_start_still_takes(tmp_path: Path) -> None:
    with world(tmp_path, wait_seconds=0.3, cold_start_seconds=30) as at:
        at.start(adapter(), pods=0)
        assert 28 <= int(at.post(chat()).headers["retry-after"]) <= 30


def test_a_full_room_refuses_at_once(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    with world(tmp_path, waiting=2) as at:
        other = at.add_key("team-b")
        at.pods[0].holds("faq@v1")
        at.start(adapter(), pods=0)
        held: list[Future[httpx.Response]] = [pool.submit(at.post, chat(), key) for key in (at.key, other)]
        at.wait_for_load(waiting=2)
        refused = at.post(chat(), other)
        assert (refused.status_code, code(refused)) == (503, "overloaded")
        assert "retry-after" in refused.headers
        at.show_pods(1)
        assert [future.result().status_code for future in held] == [200, 200]


def test_a_held_request_whose_client_left_is_dropped(at: World) -> None:
    at.start(adapter(), pods=0)
    with asking(at):
        at.wait_for_load(waiting=1)
    at.wait_for_load()
    at.show_pods(1)
    at.wait_for_status("ready")
    assert not at.pods[0].requests


def test_a_saturated_pod_makes_requests_wait_instead_of_queueing_in_vllm(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with world(tmp_path, pod_concurrency=2) as at:
        at.pods[0].holds("faq@v1")
        at.pods[0].go_on = asyncio.Semaphore(0)
        at.start(adapter())
        at.wait_for_status("ready")
        asked = [pool.submit(at.post, chat(stream=True)) for _ in range(5)]
        at.wait_for_load(waiting=3, running=2)
        at.pods[0].permit(100)
        assert [future.result().status_code for future in asked] == [200] * 5


def test_a_held_stream_is_kept_alive_and_later_errors_are_told_in_band(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraserve.gateway.exchange.KEEP_ALIVE_SECONDS", 0.05)
    with world(tmp_path, wait_seconds=0.5) as at:
        at.start(adapter(), pods=0)
        answer = at.post(chat(stream=True))
        whole = at.post(chat())
    *comments, event, rest, end = answer.content.split(b"\n")
    assert answer.status_code == 200
    assert set(comments) == {b": waiting"}
    assert end == b""
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "model_starting"
    assert rest == b""
    assert whole.status_code == 503


def test_a_held_stream_that_is_served_at_last_is_a_valid_one(
    at: World, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraserve.gateway.exchange.KEEP_ALIVE_SECONDS", 0.05)
    at.start(adapter(), pods=0)
    with at.client() as http, http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
        received = answer.iter_bytes()
        assert next(received).startswith(b": waiting\n")
        at.show_pods(1)
        rest = b"".join(received)
    assert rest.endswith(b"".join(stream_lines("faq@v1")))


# Stopping, telling.


def test_a_stopping_gateway_finishes_what_runs_and_sends_away_what_waits(at: World, pool: ThreadPoolExecutor) -> None:
    at.pods[0].go_on = asyncio.Semaphore(0)
    at.start(adapter(), adapter("legal"))
    at.wait_for_status("ready")
    running = pool.submit(at.post, chat(stream=True))
    waiting = pool.submit(at.post, chat("legal"))
    at.wait_for_load(waiting=1, running=1)

    at.begin_stop()

    sent_away = waiting.result()
    assert (sent_away.status_code, code(sent_away), sent_away.headers["retry-after"]) == (503, "gateway_stopping", "1")
    assert at.inner("/readyz").status_code == 503
    with pytest.raises(httpx.ConnectError):
        at.post(chat())
    at.pods[0].permit(100)
    assert running.result().content == b"".join(stream_lines("faq@v1"))


def test_metrics_name_declared_models_only(serving: World) -> None:
    for model in ("nope", "faq@v9", "../etc"):
        serving.post(chat(model))
    serving.post(chat(), "lsk-wrong-key")
    serving.post(chat(stream=True))
    serving.post(chat())
    exposition = serving.inner("/metrics").text
    labels = set(re.findall(r'[{,]model="([^"]*)"', exposition))
    assert labels == {"faq", "base-model", "other"}
    assert metric(serving, 'loraserve_gateway_requests_total{model="faq",outcome="ok",version="v1"}') == 2
    assert metric(serving, 'loraserve_gateway_time_to_first_token_seconds_count{model="faq",version="v1"}') == 1
    assert (
        metric(serving, 'loraserve_gateway_tokens_total{direction="in",model="faq",tenant="team-a",version="v1"}')
        == 7 + 7
    )
    assert (
        metric(serving, 'loraserve_gateway_tokens_total{direction="out",model="faq",tenant="team-a",version="v1"}')
        == 3 + 5
    )
    assert (
        metric(serving, 'loraserve_gateway_requests_total{model="other",outcome="model_not_found",version="none"}') == 3
    )


def test_a_trace_goes_on_to_vllm_and_into_the_log_and_no_key_is_logged(
    serving: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    wrong = serving.key[:-2] + "xx"
    answer = serving.post(chat(), traceparent=trace, tracestate="a=b", **{"X-Request-Id": "req-1"})
    serving.post(chat(), wrong)

    sent = serving.pods[0].headers[0]
    assert (sent["traceparent"], sent["tracestate"], sent["x-request-id"]) == (trace, "a=b", "req-1")
    assert answer.headers["x-request-id"] == "req-1"
    assert "trace=4bf92f3577b34da6a3ce929d0e0e4736" in caplog.text
    assert "tenant=team-a" in caplog.text
    for secret in (serving.key, wrong, serving.key.split("-", 2)[2], "vllm-key"):
        assert secret not in caplog.text


def _statuses(**states: State) -> tuple[Any, ...]:
    return tuple(AdapterStatus(name="faq", version=version, state=state) for version, state in states.items())


async def forever(*_: Any) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def abort(request: web.Request, _: Any) -> web.StreamResponse:
    assert request.transport
    request.transport.abort()
    return web.Response()


async def silent_adapters(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    if body["model"] == BASE:
        return web.json_response({"model": BASE})
    return await forever()


def breaking(first: bytes) -> Any:
    """Sends something, then ends the connection."""

    async def broken(request: web.Request, _: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(first)
        await asyncio.sleep(0.1)
        return await abort(request, _)

    return broken


def asking(at: World) -> socket.socket:
    """A client that has asked for a whole answer and hangs up at the end of the block."""
    body = json.dumps(chat()).encode()
    client = socket.create_connection(("127.0.0.1", int(at.url.rpartition(":")[2])))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {at.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    return client
