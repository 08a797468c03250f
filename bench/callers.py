"""Callers of a gateway in the background, as many as a bench wants, whatever comes back."""

from __future__ import annotations

import asyncio
import itertools
import resource
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import httpx

from local.models import QUESTION

_TOKENS = 300
_PAUSE_S = 1
"""After an answer, so that a refusal is no reason to ask without end."""
_PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Callers:
    """Of this gateway, with this key."""

    url: str
    key: str

    def ask(self, model: str, times: int) -> None:
        """One after the other."""
        with httpx.Client(**_options(self.url, self.key)) as http:
            for _ in range(times):
                http.post(_PATH, json=_body(model, tokens=8))

    def streams(self, callers: Mapping[str, int], one_more_every_s: float = 0) -> AbstractContextManager[None]:
        """So many of each model, who ask again and again for long streams; one more of each every so often."""

        async def call() -> None:
            async with _unbounded(self.url, self.key) as http, asyncio.TaskGroup() as group:
                for model, count in callers.items():
                    for _ in range(count):
                        group.create_task(_stream(http, model))
                while one_more_every_s:
                    await asyncio.sleep(one_more_every_s)
                    for model in callers:
                        group.create_task(_stream(http, model))

        return _in_background(call())

    def held(self, model: str, count: int, keys: Sequence[str]) -> AbstractContextManager[None]:
        """So many requests at once, of these keys in turn."""

        async def call() -> None:
            async with _unbounded(self.url, self.key) as http, asyncio.TaskGroup() as group:
                for _, key in zip(range(count), itertools.cycle(keys), strict=False):
                    group.create_task(_ask_again(http, model, key))

        return _in_background(call())


async def _stream(http: httpx.AsyncClient, model: str) -> None:
    body = _body(model, _TOKENS) | {"stream": True, "ignore_eos": True}
    while True:
        with suppress(httpx.HTTPError):
            async with http.stream("POST", _PATH, json=body) as answer:
                async for _ in answer.aiter_raw():
                    pass
        await asyncio.sleep(_PAUSE_S)


async def _ask_again(http: httpx.AsyncClient, model: str, key: str | None = None) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    while True:
        with suppress(httpx.HTTPError):
            await http.post(_PATH, json=_body(model, tokens=8), headers=headers)
        await asyncio.sleep(_PAUSE_S)


def _body(model: str, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": QUESTION}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0}


def _unbounded(url: str, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(limits=httpx.Limits(max_connections=None), **_options(url, key))


def _options(url: str, key: str) -> dict[str, Any]:
    return {"base_url": url, "headers": {"Authorization": f"Bearer {key}"}, "timeout": None, "trust_env": False}


@contextmanager
def _in_background(work: Coroutine[Any, Any, None]) -> Iterator[None]:
    """In a thread of its own, for as long as it is used."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection each
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
