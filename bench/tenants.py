"""What one tenant can do to another on a real vLLM: through the gateway, and to vLLM alone, as if nothing stood before it.

Brings a local stack of its own up. *Many sequences*: a neighbour asks for four tokens once a second while somebody asks for as many
sequences as are taken. *Prefix cache*: of sixteen long prompts one tenant sends eight; another one sends all, and guesses by the time to
the first token which were sent before.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx

from bench import report
from bench.load import open_loop
from bench.served import core, gateway_url, own_stack, pods
from infra.names import PROJECT, SERVING_NAMESPACE, VLLM_API_KEY, VLLM_PORT, VLLM_SELECTOR
from local.models import BASE_NAME, QUESTION
from local.stack import LocalStack
from loraserve.contract.keys import EVERY_MODEL, create_key

_SECONDS = 20.0
_PROMPTS = 16
_TOKENS = 700
_ALONE, _GATEWAY = "vLLM alone", "the gateway"


@dataclass(frozen=True)
class Door:
    """A way to vLLM, for two tenants; vLLM alone knows none, so there they are one."""

    url: str
    keys: tuple[str, str]
    most_sequences: int

    def client(self, tenant: int) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.keys[tenant]}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=300, trust_env=False)


def main() -> None:
    """Exit code 1 where the gateway lets one through to the other."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with own_stack() as stack:
        figures = {name: asyncio.run(_figures(door)) for name, door in _doors(stack).items()}
    rows = [
        [name, *(f"{value:.2f}" for value in waits), f"{right} of {_PROMPTS}"]
        for name, (waits, right) in figures.items()
    ]
    columns = (
        "through",
        "neighbour's four tokens, alone: median s",
        "beside many sequences: median s",
        "slowest s",
        "told apart",
    )
    report.markdown(columns, rows)
    (_, _, slowest), right = figures[_GATEWAY]
    sys.exit(slowest > 10 or right > 0.8 * _PROMPTS)


def _doors(stack: LocalStack) -> dict[str, Door]:
    second, entry = create_key("second", (EVERY_MODEL,), requests_per_minute=None)
    first = stack.declared[f"{PROJECT}:gatewayKeys"]
    stack.declare(gatewayKeys=[*first, entry.model_dump(mode="json", by_alias=True, exclude_none=True)])
    stack.up()
    with stack.endpoint() as served:
        served.ask(BASE_NAME, QUESTION)
    pod, *_ = pods(stack, VLLM_SELECTOR)
    assert pod.status
    found = [each.data or {} for each in core(stack).list_namespaced_secret(SERVING_NAMESPACE).items or []]
    key = next(base64.b64decode(data[VLLM_API_KEY]).decode() for data in found if VLLM_API_KEY in data)
    keys = (stack.key_file.read_text(), second)
    return {
        _ALONE: Door(f"http://{pod.status.pod_ip}:{VLLM_PORT}", (key, key), 2048),
        _GATEWAY: Door(gateway_url(stack), keys, 64),
    }


async def _figures(door: Door) -> tuple[tuple[float, float, float], int]:
    async with door.client(0) as attacker, door.client(1) as neighbour:
        await _until_known(neighbour)
        right = await _told_apart(attacker, neighbour)
        quiet = await _neighbour(neighbour)
        async with _many_sequences(attacker, door.most_sequences):
            beside = await _neighbour(neighbour)
    return (statistics.median(quiet), statistics.median(beside), max(beside)), right


async def _until_known(client: httpx.AsyncClient) -> None:
    """The gateway follows new keys within the kubelet's 90 s."""
    async with asyncio.timeout(180):
        while (await client.get("/v1/models")).status_code != 200:
            await asyncio.sleep(1)


async def _neighbour(client: httpx.AsyncClient) -> list[float]:
    """Seconds of each request, from when it was due."""
    took, ended = list[float](), asyncio.Event()

    async def one(due: float) -> None:
        await _ask(client, [7, 8, 9], max_tokens=4)
        took.append(time.monotonic() - due)

    running = asyncio.create_task(open_loop(1, ended, one))
    await asyncio.sleep(_SECONDS)
    ended.set()
    await running
    return took


@contextlib.asynccontextmanager
async def _many_sequences(client: httpx.AsyncClient, most: int) -> AsyncIterator[None]:
    """One caller, again and again with so many at a time."""

    async def ask() -> None:
        while True:
            await _ask(client, [11, 12, 13], max_tokens=32, n=most, temperature=1, ignore_eos=True)

    caller = asyncio.create_task(ask())
    await asyncio.sleep(2)
    try:
        yield
    finally:
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)


async def _told_apart(first: httpx.AsyncClient, second: httpx.AsyncClient) -> int:
    """How many of the second tenant's guesses are right; chance has half of them right."""
    rng = random.Random(7)
    prompts = [[rng.randrange(5, 100) for _ in range(_TOKENS)] for _ in range(_PROMPTS + 2)]
    for prompt in prompts[_PROMPTS:]:  # whose first requests are slower for other reasons
        await _ask(second, prompt, max_tokens=1)
    sent = set(rng.sample(range(_PROMPTS), _PROMPTS // 2))
    for index in sent:
        await _ask(first, prompts[index], max_tokens=1)
    seconds = {index: await _ask(second, prompts[index], max_tokens=1) for index in range(_PROMPTS)}
    faster = sorted(seconds, key=lambda index: seconds[index])[: _PROMPTS // 2]
    return sum((index in sent) == (index in faster) for index in range(_PROMPTS))


async def _ask(client: httpx.AsyncClient, prompt: list[int], **more: object) -> float:
    """Seconds it took. Raises AssertionError where it was not answered."""
    body = {"model": BASE_NAME, "prompt": prompt, "temperature": 0} | more
    began = time.monotonic()
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text[:300]
    return time.monotonic() - began


if __name__ == "__main__":
    main()
