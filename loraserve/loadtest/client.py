"""Makes the calls of a schedule when they are due, whatever comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from loraserve.errors import LoraserveError
from loraserve.loadtest.accounting import Outcome
from loraserve.loadtest.prompts import MAX_TOKENS
from loraserve.loadtest.schedule import Call
from loraserve.planning.cold_start import PATIENCE_SECONDS

TICK_SECONDS = 1.0
_LEAD_SECONDS = 0.1
_EVENT = b"data: "


class CannotTest(LoraserveError):
    """There is nothing to load, or it does not answer."""


@dataclass(frozen=True)
class Target:
    """`url` is that of the API, and ends in /v1."""

    url: str
    key: str

    def session(self) -> aiohttp.ClientSession:
        """Opens as many connections as there are calls at once."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=PATIENCE_SECONDS, sock_connect=30),
            headers={"Authorization": f"Bearer {self.key}"},
        )


@dataclass(frozen=True)
class Served:
    """What the key may call."""

    base: str | None
    adapters: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """Where a run is."""

    phase: str
    seconds: float
    sent: int
    answered: int
    failed: int


async def served(target: Target) -> Served:
    """Raises CannotTest."""
    try:
        async with target.session() as http, http.get(f"{target.url}/models") as answer:
            if answer.status != 200:
                raise CannotTest(
                    f"{target.url}/models answered {answer.status}: check the URL, which ends in /v1, and the key"
                )
            models = (await answer.json())["data"]
    except (aiohttp.ClientError, OSError, ValueError, KeyError) as error:
        raise CannotTest(f"{target.url} does not answer as a gateway does: {error}") from None
    bases = [model["id"] for model in models if not model.get("parent")]
    return Served(bases[0] if bases else None, tuple(model["id"] for model in models if model.get("parent")))


async def wake(target: Target, call: Call) -> float:
    """Asks until an answer comes, so that no phase has a cold start in it; returns the seconds. Raises CannotTest."""
    started = time.monotonic()
    async with target.session() as http:
        while (outcome := await _make(http, target, call, started)).error:
            if outcome.error != "model_starting":
                raise CannotTest(f"the first call of {call.model} ended in {outcome.error}")
    return time.monotonic() - started


async def run(
    target: Target, calls: Sequence[Call], seen: Callable[[Progress], None] = lambda _: None
) -> list[Outcome]:
    """Every call, each when it is due; returns when the last has ended."""
    _allow_connections()
    outcomes: list[Outcome] = []
    async with target.session() as http:
        started = time.monotonic() + _LEAD_SECONDS
        sent = _Sent()
        watch = asyncio.create_task(_watch(started, sent, outcomes, seen))
        try:
            async with asyncio.TaskGroup() as group:
                for call in calls:
                    if (early := started + call.due - time.monotonic()) > 0:
                        await asyncio.sleep(early)
                    sent.count, sent.phase = sent.count + 1, call.phase
                    group.create_task(_record(http, target, call, started, outcomes))
        finally:
            watch.cancel()
    return outcomes


@dataclass
class _Sent:
    count: int = 0
    phase: str = ""


async def _watch(started: float, sent: _Sent, outcomes: list[Outcome], seen: Callable[[Progress], None]) -> None:
    while True:
        await asyncio.sleep(TICK_SECONDS)
        failed = sum(one.error is not None for one in outcomes)
        seen(Progress(sent.phase, time.monotonic() - started, sent.count, len(outcomes), failed))


async def _record(
    http: aiohttp.ClientSession, target: Target, call: Call, started: float, outcomes: list[Outcome]
) -> None:
    outcomes.append(await _make(http, target, call, started))


async def _make(http: aiohttp.ClientSession, target: Target, call: Call, started: float) -> Outcome:
    outcome = Outcome(call, time.monotonic() - started)
    try:
        async with http.post(f"{target.url}/completions", json=_body(call)) as answer:
            if answer.status != 200:
                outcome.error = _code(await answer.read()) or f"http_{answer.status}"
            elif not await _read(answer, outcome, started):
                outcome.error = outcome.error or "broke_off"
    except TimeoutError:
        outcome.error = "timeout"
    except (aiohttp.ClientError, OSError):
        outcome.error = "connection"
    outcome.ended = time.monotonic() - started
    outcome.tokens = outcome.tokens or len(outcome.pieces)
    return outcome


def _body(call: Call) -> Mapping[str, Any]:
    return {
        "model": call.model,
        "prompt": call.prompt,
        "max_tokens": MAX_TOKENS[call.kind],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def _read(answer: aiohttp.ClientResponse, outcome: Outcome, started: float) -> bool:
    """Whether the stream came to its end, without an error event."""
    rest = b""
    async for piece in answer.content.iter_any():
        now = time.monotonic() - started
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if not line.startswith(_EVENT):
                continue  # a held stream's comments
            data = line[len(_EVENT) :].strip()
            if data == b"[DONE]":
                return True
            if not _take(json.loads(data), outcome, now):
                return False
    return False


def _take(event: dict[str, Any], outcome: Outcome, now: float) -> bool:
    if "error" in event:
        outcome.error = str(event["error"].get("code") or "error_event")
        return False
    outcome.served = event.get("model", outcome.served)
    if event.get("choices"):
        outcome.pieces.append(now)
    if usage := event.get("usage"):
        outcome.tokens = usage["completion_tokens"]
    return True


def _code(body: bytes) -> str | None:
    """Of an error in OpenAI's shape; vLLM's own are numbers."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        code = json.loads(body)["error"]["code"]
        return code if isinstance(code, str) else None
    return None


def _allow_connections() -> None:
    """As many as this process may have at all."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
