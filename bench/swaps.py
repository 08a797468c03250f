"""Fifty adapters on one vLLM, two hundred version swaps and a canary under open-loop load, on the local stack.

Every version answers with its own name, so a wrong answer cannot go unnoticed. Clients call public names through the
gateway; while a name is swapped, the old and the new version's answers are right, and nothing else is. A canary's callers
stay on their side; a larger share moves nobody back.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench import report
from bench.load import open_loop
from bench.served import gateway_url, own_stack
from local.models import QUESTION
from local.stack import LocalStack, console
from loraserve.contract.served_name import ServedName

_TIMEOUT_S = 30
_POLL_S = 0.5
_SETTLED_S = 3
"""Every gateway has seen a new desired state by then, and no request from before is under way."""
_DRAINED_S = 35
"""An old version is unloaded after half a minute without requests: then the next swap loads anew."""
_CANARY_PERCENTS = (10, 50)
_USERS = [f"user-{number}" for number in range(200)]


@dataclass
class Load:
    """Requests sent at a fixed rate, whatever comes back, and what came back."""

    url: str
    key: str
    allowed: dict[str, set[str]]
    """Versions of each name that may answer now."""
    latencies: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    async def run(self, rate: float, ended: asyncio.Event) -> None:
        limits = httpx.Limits(max_connections=500)
        headers = {"Authorization": f"Bearer {self.key}"}
        client = httpx.AsyncClient(base_url=self.url, headers=headers, limits=limits, trust_env=False)
        async with client as http:
            await open_loop(rate, ended, lambda due: self._one(http, due))

    async def _one(self, http: httpx.AsyncClient, due: float) -> None:
        """Timed from when it was due, so that a slow client hides nothing."""
        name = random.choice(list(self.allowed))
        allowed = set(self.allowed[name])
        try:
            said = await ask(http, name)
        except httpx.HTTPError as error:
            self.failed.append(f"{name}: {error!r}")
            return
        self.latencies.append(time.monotonic() - due)
        if said not in {f"I am {name} {version}." for version in allowed | self.allowed[name]}:
            self.wrong.append(f"{name}: {said!r}, allowed {sorted(allowed)}")


async def ask(http: httpx.AsyncClient, name: str, user: str = "") -> str:
    body = {
        "model": name,
        "user": user,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 24,
        "temperature": 0,
    }
    answer = await http.post("/v1/chat/completions", json=body, timeout=_TIMEOUT_S)
    answer.raise_for_status()
    return answer.json()["choices"][0]["message"]["content"].strip()


@dataclass
class Figures:
    ready_seconds: float = 0
    swaps: int = 0
    first_answers: list[float] = field(default_factory=list)
    """From the start of `make up` to the first answer of the first new version of a round, seconds."""
    last_answers: list[float] = field(default_factory=list)
    """The same for the last new version."""
    canary_users: dict[int, int] = field(default_factory=dict)
    """How many of `_USERS` got the canary, by its share in percent."""
    strayed: list[str] = field(default_factory=list)
    """Users who did not stay on their side."""


def main() -> None:
    """Exit code 1 where a request failed or a wrong version answered."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--adapters", type=int, default=50)
    options.add_argument(
        "--swapped",
        type=int,
        default=10,
        help="adapters whose version changes in each round; more than free slots wait for a drain",
    )
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--rate", type=float, default=4, help="requests a second")
    chosen = options.parse_args()
    with own_stack() as stack:
        figures, load = asyncio.run(_measure(stack, chosen))
    _show(figures, load)
    sys.exit(bool(load.failed or load.wrong or figures.strayed))


async def _measure(stack: LocalStack, chosen: argparse.Namespace) -> tuple[Figures, Load]:
    figures = Figures()
    names = [f"tenant-{number:02}" for number in range(1, chosen.adapters + 1)]
    swapped = names[: chosen.swapped]
    versions = {version: _publish(stack, version, names if version == "v1" else swapped) for version in ("v1", "v2")}
    current = dict(versions["v1"])
    started = time.monotonic()
    _apply(stack, current.values())
    load = Load(gateway_url(stack), stack.key_file.read_text(), {name: {"v1"} for name in names})
    async with httpx.AsyncClient(base_url=load.url, headers={"Authorization": f"Bearer {load.key}"}) as http:
        for name in names:
            await _until(http, name, "v1")
        figures.ready_seconds = time.monotonic() - started
        console.print(f"{len(names)} adapters answer after {figures.ready_seconds:.0f} s; swapping under load")
        ended = asyncio.Event()
        running = asyncio.create_task(load.run(chosen.rate, ended))
        for turn in range(chosen.rounds):
            version = "v2" if turn % 2 == 0 else "v1"
            for name in swapped:
                load.allowed[name] = {"v1", "v2"}
            current |= {name: versions[version][name] for name in swapped}
            began = time.monotonic()
            async with asyncio.TaskGroup() as together:  # where `up` fails, nobody waits for its versions
                together.create_task(asyncio.to_thread(_apply, stack, current.values()))
                answers = [
                    await _until(http, name, version) - began for name in swapped
                ]  # one by one: this is load, too
            figures.swaps += len(swapped)
            figures.first_answers.append(answers[0])
            figures.last_answers.append(answers[-1])
            await asyncio.sleep(_SETTLED_S)
            for name in swapped:
                load.allowed[name] = {version}
            console.print(
                f"round {turn + 1}: {answers[0]:.1f} to {answers[-1]:.1f} s; {len(load.failed)} failed, {len(load.wrong)} wrong "
                f"of {len(load.latencies)}"
            )
            await asyncio.sleep(_DRAINED_S)
        await _canary(stack, http, load, figures, swapped[0], versions, current)
        ended.set()
        await running
    return figures, load


async def _canary(
    stack: LocalStack,
    http: httpx.AsyncClient,
    load: Load,
    figures: Figures,
    name: str,
    versions: dict[str, dict[str, Any]],
    current: dict[str, dict[str, Any]],
) -> None:
    """Every user asks twice at each share."""
    stable = current[name]["version"]
    canary = "v1" if stable == "v2" else "v2"
    load.allowed[name] = {stable, canary}
    sides: dict[str, str] = {}
    for percent in _CANARY_PERCENTS:
        entry = versions[canary][name] | {"canaryPercent": percent}
        await asyncio.to_thread(_apply, stack, [*current.values(), entry])
        while not await _is_served(http, ServedName.of(name, canary)):
            await asyncio.sleep(_POLL_S)
        await asyncio.sleep(_SETTLED_S)
        for turn in (1, 2):
            for user in _USERS:
                side = (await ask(http, name, user)).removesuffix(".").split()[-1]
                was = sides.setdefault(user, side)
                if side != was and (turn == 2 or was == canary):
                    figures.strayed.append(f"{user} at {percent}%: {side}, was {was}")
                sides[user] = side
        figures.canary_users[percent] = sum(side == canary for side in sides.values())
        console.print(f"canary of {percent}%: {figures.canary_users[percent]} of {len(_USERS)} users")


async def _is_served(http: httpx.AsyncClient, model: str) -> bool:
    try:
        return bool(await ask(http, model))
    except httpx.HTTPStatusError:
        return False


def _apply(stack: LocalStack, adapters: Iterable[dict[str, Any]]) -> None:
    stack.declare(adapters=list(adapters))
    stack.up()


async def _until(http: httpx.AsyncClient, name: str, version: str) -> float:
    """When this version answered first, by the monotonic clock."""
    while await ask(http, name) != f"I am {name} {version}.":
        await asyncio.sleep(_POLL_S)
    return time.monotonic()


def _publish(stack: LocalStack, version: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """Stack-config entries by name."""
    folders = stack.train(*(ServedName.of(name, version) for name in names))
    bucket = stack.pulumi.output("adapterBucket")
    published = {served: stack.publish(folder, served, bucket) for served, folder in folders.items()}
    return {ServedName(served).adapter: entry for served, entry in published.items()}


def _show(figures: Figures, load: Load) -> None:
    ordered = sorted(load.latencies)

    def quantile(share: float) -> str:
        return f"{ordered[int(share * (len(ordered) - 1))] * 1000:.0f} ms"

    rows: dict[str, str] = {
        "adapters ready, from `up`": f"{figures.ready_seconds:.0f} s",
        "swaps": str(figures.swaps),
        "requests": str(len(load.latencies)),
        "failed": str(len(load.failed)),
        "wrong version": str(len(load.wrong)),
        **{f"users of {len(_USERS)} on a canary of {share}%": str(n) for share, n in figures.canary_users.items()},
        "users who left their side of the canary": str(len(figures.strayed)),
        "latency p50, p99": f"{quantile(0.5)}, {quantile(0.99)}",
        "`make up` to the first new version's first answer, median": f"{statistics.median(figures.first_answers):.1f} s",
        "`make up` to the last new version's first answer, median": f"{statistics.median(figures.last_answers):.1f} s",
    }
    report.show(rows, [*load.failed, *load.wrong, *figures.strayed])


if __name__ == "__main__":
    main()
