"""Spans of requests as a collector gets them, read by OpenTelemetry's own definitions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.traces import Collector, Span, collector, tree
from tests.unit.gateway_world import BASE, World, adapter, chat, world
from tests.waiting import eventually

CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = "00-{}-{}-{}"


@pytest.fixture
def seen() -> Iterator[Collector]:
    with collector() as listening:
        yield listening


@pytest.fixture
def traced(tmp_path: Path, seen: Collector) -> Iterator[World]:
    with world(tmp_path, traces_url=f"{seen.url}/v1/traces") as made:
        made.pods[0].holds("faq@v1")
        made.start(adapter(fallback="base"))
        yield made


REQUEST = "POST /v1/chat/completions"


def spans(seen: Collector) -> dict[str, Span]:
    """By name, once a request's own has come, which is the last of them to end."""
    eventually(lambda: any(span.name == REQUEST for span in seen.spans))
    return {span.name: span for span in seen.spans}


def test_a_request_is_a_span_and_its_call_of_vllm_another_below_it(traced: World, seen: Collector) -> None:
    answer = traced.post(chat())
    found = spans(seen)
    request, call = found[REQUEST], found["vllm"]
    assert traced.pods[0].headers[-1]["traceparent"] == f"00-{request.trace}-{call.id}-01"
    assert (request.parent, call.parent, call.trace) == ("", request.id, request.trace)
    assert request.service == "loraserve-gateway"
    assert request.began <= call.began <= call.ended <= request.ended
    attributes = request.attributes
    assert (attributes["gen_ai.request.model"], attributes["gen_ai.response.model"]) == ("faq", "faq@v1")
    assert (attributes["loraserve.version"], attributes["loraserve.tenant"]) == ("v1", "team-a")
    assert attributes["loraserve.request_id"] == answer.headers["X-Request-Id"]
    assert not request.failed
    assert "Hi" not in str(found), "never a prompt"
    assert traced.key not in str(found), "never a key"


def test_it_goes_on_with_its_callers_trace(traced: World, seen: Collector) -> None:
    traced.post(chat(), traceparent=PARENT.format(*CALLER, "01"))
    request = spans(seen)[REQUEST]
    assert (request.trace, request.parent) == CALLER


def test_who_does_not_want_a_trace_gets_none_and_vllm_is_told(traced: World, seen: Collector) -> None:
    traced.post(chat(), traceparent=PARENT.format(*CALLER, "00"))
    traced.post(chat())
    assert CALLER[0] not in {span.trace for span in spans(seen).values()}
    unwanted = traced.pods[0].headers[0]["traceparent"].split("-")
    assert (unwanted[1], unwanted[3]) == (CALLER[0], "00")


def test_a_stream_tells_its_first_token_and_a_fallback_its_reason(traced: World, seen: Collector) -> None:
    traced.pods[0].known = {BASE}
    traced.post(chat(stream=True))
    request = spans(seen)[REQUEST]
    assert request.attributes["loraserve.fallback"] == "adapter_unavailable"
    assert request.attributes["gen_ai.response.model"] == BASE
    assert request.attributes["loraserve.time_to_first_token_seconds"] >= 0


def test_a_wait_is_a_part_of_its_own(tmp_path: Path, seen: Collector) -> None:
    with world(tmp_path, traces_url=f"{seen.url}/v1/traces", wait_seconds=0.2) as traced:
        traced.start(adapter(), pods=0)
        assert traced.post(chat()).status_code == 503
        found = spans(seen)
    wait, request = found["wait"], found[REQUEST]
    assert wait.parent == request.id
    assert request.began <= wait.began < wait.ended <= request.ended
    assert (wait.attributes["error.type"], request.attributes["loraserve.outcome"]) == ("Asleep", "model_starting")
    assert wait.failed
    assert request.failed


def test_the_last_requests_spans_are_sent_when_it_stops(traced: World, seen: Collector) -> None:
    traced.post(chat())
    traced.stop_gateway()
    assert len(seen.spans) == 2


def test_a_collector_that_is_away_costs_nobody_an_answer_and_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with world(tmp_path, traces_url="http://127.0.0.1:9/v1/traces") as traced, caplog.at_level(logging.WARNING):
        traced.pods[0].holds("faq@v1")
        traced.start(adapter())
        assert traced.post(chat()).status_code == 200
        eventually(lambda: "spans are lost" in caplog.text)
        assert traced.post(chat()).status_code == 200
        traced.stop_gateway()
    assert caplog.text.count("spans are lost") == 1


def test_without_a_collector_vllm_gets_the_callers_own_headers(tmp_path: Path) -> None:
    with world(tmp_path) as made:
        made.pods[0].holds("faq@v1")
        made.start(adapter())
        made.post(chat(), traceparent=PARENT.format(*CALLER, "01"))
        assert made.pods[0].headers[-1]["traceparent"] == PARENT.format(*CALLER, "01")


def test_a_trace_is_a_tree() -> None:
    def span(name: str, identifier: str, parent: str, began: int, **more: object) -> Span:
        return Span(
            "gateway",
            name,
            "t",
            identifier,
            parent,
            began * 10**6,
            (began + 5) * 10**6,
            False,
            {f"loraserve.{name}": value for name, value in more.items()},
        )

    spans = [
        span("llm_request", "c", "b", 3),
        span("vllm", "b", "a", 2),
        span("POST", "a", "caller's", 0, tenant="acme"),
    ]
    lines = tree([*spans, span("wait", "d", "a", 1)])
    assert [line.split(" (")[0] for line in lines] == ["POST", "  wait", "  vllm", "    llm_request"]
    assert lines[0].endswith("tenant=acme")
