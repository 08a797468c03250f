"""From outside its pod, vLLM's port offers inference and nothing else, whatever key a caller has."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from loraserve.vllm_plugins.guard import OPEN_ROUTES, OPEN_WITH_KEY, Guard

POD = "10.0.3.7"


def answer(
    path: str,
    method: str = "POST",
    client: str | None = POD,
    kind: str = "http",
    key: str = "",
    request_id: bytes | None = None,
) -> Any:
    """What the guard lets the server behind it say (200), or says itself."""
    sent: list[Any] = []

    async def server(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> Any:
        raise AssertionError("the guard reads nothing")

    async def send(message: Any) -> None:
        sent.append(message)

    address = (client, 1234) if client else None
    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    headers += [(b"x-request-id", request_id)] if request_id else []
    scope = {"type": kind, "path": path, "client": address, "headers": headers} | (
        {"method": method} if kind == "http" else {}
    )
    asyncio.run(Guard(server)(scope, receive, send))
    return sent[0].get("status", sent[0]["type"])


@pytest.mark.parametrize(("method", "path"), sorted(OPEN_ROUTES))
def test_inference_is_open_to_other_pods(method: str, path: str) -> None:
    assert answer(path, method) == 200


@pytest.mark.parametrize(("method", "path"), sorted(OPEN_WITH_KEY))
def test_where_vllm_asks_for_no_key_the_guard_does(method: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "vllm-key")
    assert answer(path, method) == 404
    assert answer(path, method, key="vllm-keY") == 404
    assert answer(path, method, key="vllm-key") == 200


@pytest.mark.parametrize(
    "path",
    ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/invocations", "/v1/messages"],
)
def test_all_else_is_not_there_for_other_pods_but_is_for_the_agent(path: str) -> None:
    assert answer(path) == 404
    assert answer(path, client=None) == 404
    assert answer(path, client="127.0.0.1") == 200
    assert answer(path, client="::1") == 200


@pytest.mark.parametrize("path", ["//v1/completions", "/v1/completions/", "/V1/completions", "/v1/completions/../load"])
def test_only_the_exact_path_counts(path: str) -> None:
    assert answer(path) == 404


def test_the_method_counts_too() -> None:
    assert answer("/v1/models", "DELETE") == 404


def test_each_request_is_logged_by_its_id_and_nothing_else_of_a_callers_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "vllm.loraserve")
    answer("/v1/completions", request_id=b"req-1")
    answer("/v1/completions", request_id=b"a prompt that is no id")
    answer("/v1/completions")
    answer("/adapters", request_id=b"req-2")
    assert [record.getMessage() for record in caplog.records] == ["request path=/v1/completions request_id=req-1"]


def test_a_websocket_from_elsewhere_is_closed() -> None:
    assert answer("/v1/completions", kind="websocket") == "websocket.close"


def test_start_and_stop_of_the_server_pass_through() -> None:
    assert answer("", kind="lifespan") == 200
