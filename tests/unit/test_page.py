"""The page to try models: served to this machine's browser only, it passes on what the page asks and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from aiohttp import web

from loraserve.operator.access.local_page import PortTaken
from loraserve.operator.models.page_server import PageServer
from tests.unit.gateway_world import World, chat, stream_lines


@pytest.fixture
def page(serving: World) -> Iterator[PageServer]:
    with PageServer(serving.url, 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def browser(page: PageServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=page.url, trust_env=False) as http:
        yield http


def with_key(serving: World) -> dict[str, str]:
    return {"Authorization": f"Bearer {serving.key}"}


def test_all_that_the_page_needs_comes_from_it(browser: httpx.Client) -> None:
    index = browser.get("/")
    assert index.headers["content-security-policy"].startswith("default-src 'none'")
    for name in ("page.js", "page.css"):
        assert name in index.text
        assert browser.get(f"/{name}").status_code == 200


def test_answers_are_passed_on_as_they_come(serving: World, browser: httpx.Client) -> None:
    serving.pods[0].go_on = asyncio.Semaphore(1)
    with browser.stream("POST", "/v1/chat/completions", json=chat(stream=True), headers=with_key(serving)) as answer:
        assert answer.headers["x-loraserve-model"] == "faq@v1"
        pieces = answer.iter_bytes()
        for line in stream_lines("faq@v1"):
            assert next(pieces) == line
            serving.pods[0].permit()


def test_an_answer_that_is_stopped_is_not_generated_any_further(serving: World, browser: httpx.Client) -> None:
    async def endless(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(stream_lines(body["model"])[0])
            await asyncio.sleep(0.02)

    serving.pods[0].behaviour = endless
    with browser.stream("POST", "/v1/chat/completions", json=chat(stream=True), headers=with_key(serving)) as answer:
        next(answer.iter_bytes())
    assert serving.pods[0].hung_up.wait(10)


def test_it_has_no_key_of_its_own(browser: httpx.Client) -> None:
    assert browser.get("/v1/models").status_code == 401


@pytest.mark.parametrize("path", ["/v1/completions", "/health", "/../pyproject.toml", "/index.html", "/page/page.js"])
def test_nothing_else_is_there(browser: httpx.Client, path: str) -> None:
    assert browser.get(path).status_code == 404


def test_a_name_that_only_points_at_this_machine_is_refused(browser: httpx.Client) -> None:
    assert browser.get("/", headers={"Host": "elsewhere.example"}).status_code == 421


def test_no_other_page_may_call_it(browser: httpx.Client) -> None:
    asked = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    assert browser.options("/v1/chat/completions", headers=asked).status_code == 501


def test_a_gateway_that_is_gone_is_told_in_one_sentence(serving: World, browser: httpx.Client) -> None:
    serving.stop_gateway()
    answer = browser.get("/v1/models", headers=with_key(serving))
    assert answer.status_code == 502
    assert "start `loraserve page` again" in answer.json()["error"]["message"]


def test_a_taken_port_is_told(page: PageServer) -> None:
    with pytest.raises(PortTaken, match="--port"):
        PageServer("http://127.0.0.1:9", page.server_port)
