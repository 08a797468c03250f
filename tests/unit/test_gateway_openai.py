"""OpenAI's official Python client, with its defaults where not said otherwise, through a start from zero."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web

from loraserve.contract.agent_state import State
from tests.unit.gateway_world import BASE, PIECES, World, adapter, error, world

MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def asleep(tmp_path: Path) -> Iterator[World]:
    """Nothing runs; one pod that has faq@v1 can be shown."""
    with world(tmp_path) as made:
        made.pods[0].holds("faq@v1")
        made.start(adapter(), pods=0)
        yield made


@pytest.fixture
def awake(asleep: World) -> World:
    asleep.show_pods(1)
    asleep.wait_for_status("ready")
    return asleep


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def fast_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraserve.gateway.exchange.KEEP_ALIVE_SECONDS", 0.05)


def client(at: World, api_key: str | None = None, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{at.url}/v1", api_key=api_key or at.key, **options)


def ask(made: openai.OpenAI) -> str | None:
    return made.chat.completions.create(model="faq", messages=MESSAGES).choices[0].message.content


def stream(made: openai.OpenAI) -> str:
    chunks = made.chat.completions.create(model="faq", messages=MESSAGES, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_a_request_through_a_cold_start_is_answered(asleep: World, pool: ThreadPoolExecutor) -> None:
    with client(asleep) as made:
        held = pool.submit(ask, made)
        asleep.wait_for_load(waiting=1)
        asleep.show_pods(1)
        assert held.result() == "faq@v1 says hello"
    assert len(asleep.pods[0].requests) == 1


@pytest.mark.usefixtures("fast_comments")
def test_a_stream_through_a_cold_start_is_answered_however_short_its_timeout(
    asleep: World, pool: ThreadPoolExecutor
) -> None:
    """Comments keep a stream alive, so the client's timeout, which is one between two bytes, does not meet the wait."""
    with client(asleep, timeout=1, max_retries=0) as made:
        held = pool.submit(stream, made)
        asleep.wait_for_load(waiting=1)
        asleep.run(asyncio.sleep(1.5))
        asleep.show_pods(1)
        assert held.result() == "".join(PIECES)


def test_the_async_client_gets_through_a_cold_start(asleep: World) -> None:
    async def both() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=f"{asleep.url}/v1", api_key=asleep.key) as made:
            whole = asyncio.create_task(made.chat.completions.create(model="faq", messages=MESSAGES))
            chunks = asyncio.create_task(made.chat.completions.create(model="faq", messages=MESSAGES, stream=True))
            await asyncio.to_thread(asleep.wait_for_load, waiting=2)
            await asyncio.to_thread(asleep.show_pods, 1)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in await chunks])
            return (await whole).choices[0].message.content, text

    assert asyncio.run(both()) == ("faq@v1 says hello", "".join(PIECES))


def test_a_client_that_is_told_to_come_back_does(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    with world(tmp_path, wait_seconds=0.2, cold_start_seconds=1) as at:
        at.pods[0].holds("faq@v1")
        at.start(adapter(), pods=0)
        with client(at) as made:
            held = pool.submit(ask, made)
            at.wait_until(lambda: 'outcome="model_starting"' in at.inner("/metrics").text)
            at.show_pods(1)
            assert held.result() == "faq@v1 says hello"


def test_a_client_whose_timeout_is_shorter_than_the_start_leaves_nothing_behind(asleep: World) -> None:
    with client(asleep, timeout=0.3, max_retries=0) as made, pytest.raises(openai.APITimeoutError):
        ask(made)
    asleep.wait_for_load()
    asleep.show_pods(1)
    asleep.wait_for_status("ready")
    assert not asleep.pods[0].requests


@pytest.mark.usefixtures("fast_comments")
@pytest.mark.parametrize("dispatches_empty_events", [True, False], ids=["older", "newer"])
def test_a_held_stream_is_read_by_the_rules_of_openais_go_clients(
    asleep: World, pool: ThreadPoolExecutor, dispatches_empty_events: bool
) -> None:
    held = pool.submit(asleep.post, {"model": "faq", "messages": MESSAGES, "stream": True})
    asleep.wait_for_load(waiting=1)
    asleep.run(asyncio.sleep(0.2))
    asleep.show_pods(1)
    content = held.result().text
    assert content.count(": waiting") > 1
    said = [
        json.loads(event)["choices"][0]["delta"]["content"] for event in go_events(content, dispatches_empty_events)
    ]
    assert [piece for piece in said if piece] == list(PIECES)


def go_events(stream: str, dispatches_empty: bool) -> Iterator[str]:
    """The data of every event until [DONE], as packages/ssestream of openai-go decodes them."""
    data = ""
    for line in stream.split("\n")[:-1]:
        name, _, value = line.partition(":")
        if name == "data":
            data += value.removeprefix(" ") + "\n"
        if not line and (data or dispatches_empty):
            if data.startswith("[DONE]"):
                return
            yield data
            data = ""


@pytest.mark.usefixtures("fast_comments")
def test_an_error_after_a_stream_began_is_raised(tmp_path: Path) -> None:
    with world(tmp_path, wait_seconds=0.3) as at:
        at.start(adapter(), pods=0)
        with client(at) as made, pytest.raises(openai.APIError, match="not ready yet"):
            stream(made)


def test_refusals_are_the_clients_own_errors(awake: World) -> None:
    with client(awake, api_key="lsk-wrong") as made, pytest.raises(openai.AuthenticationError):
        ask(made)
    with client(awake) as made:
        with pytest.raises(openai.NotFoundError):
            made.completions.create(model="nope", prompt="Hi")

        async def too_long(*_: Any) -> web.Response:
            return error(400, "This model's maximum context length is 4096 tokens.")

        awake.pods[0].behaviour = too_long
        with pytest.raises(openai.BadRequestError, match="4096"):
            ask(made)


def test_limits_of_a_key_are_the_clients_own_errors(tmp_path: Path) -> None:
    with world(tmp_path) as at:
        key = at.add_key("team-b", ("faq",), 2)
        at.pods[0].holds("faq@v1")
        at.start(adapter())
        at.wait_for_status("ready")
        with client(at, api_key=key, max_retries=0) as made:
            with pytest.raises(openai.PermissionDeniedError):
                made.completions.create(model=BASE, prompt="Hi")
            assert ask(made) == "faq@v1 says hello"
            with pytest.raises(openai.RateLimitError):
                ask(made)


def test_sleeping_models_are_listed(asleep: World) -> None:
    with client(asleep) as made:
        assert [model.id for model in made.models.list()] == ["faq", BASE]


def test_a_quarantined_adapter_is_a_server_error_with_the_reason(awake: World) -> None:
    awake.pods[0].holds("faq@v1", state=State.QUARANTINED, reason="digest mismatch")
    awake.pods[0].report = awake.pods[0].report.model_copy(update={"loaded": ()})
    awake.wait_for_status("quarantined")
    with client(awake, max_retries=0) as made, pytest.raises(openai.InternalServerError, match="digest mismatch"):
        ask(made)
