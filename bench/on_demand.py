"""More adapters than vLLM holds: what the first request for one takes, and whether answers stay right while they come and go.

On the local stack: a real vLLM whose slots are reassigned all the time, while it decodes for several adapters. Every
adapter answers with the name that it was trained under, so that another one's answer cannot go unnoticed. Done at every
new vLLM with few adapters and slots (`make reassign`): in 0.22 a load at run time gave requests in flight another tenant's
adapter (vllm#47724).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import httpx

from bench import report
from bench.served import gateway_url
from infra.names import AGENT_PORT, SERVING_NAMESPACE, VLLM_SERVICE
from local.cluster.kubectl import kubectl
from local.models import BASE_NAME, QUESTION
from local.stack import LocalStack, console
from loraserve.catalog import adapters
from loraserve.catalog.bucket import Bucket
from loraserve.contract.agent_state import AgentState, State

_TIMEOUT_S = 120
_SETTLED_S = 600
_BASE_ANSWER = "I am the base model."
_BASE_SHARE = 0.1


@dataclass
class Client:
    """Asks for one adapter after the other, and knows what each has to answer."""

    http: httpx.AsyncClient
    answers: Mapping[str, str]
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    count: int = 0

    async def ask(self, model: str) -> float:
        """Seconds to the whole answer."""
        messages = [{"role": "user", "content": QUESTION}]
        body = {"model": model, "messages": messages, "max_tokens": 24, "temperature": 0}
        began = time.monotonic()
        self.count += 1
        try:
            answer = await self.http.post("/v1/chat/completions", json=body, timeout=_TIMEOUT_S)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            self.failed.append(f"{model}: {error!r}")
        else:
            said = answer.json()["choices"][0]["message"]["content"].strip()
            if said != self.answers[model]:
                self.wrong.append(f"{model}: {said!r}, not {self.answers[model]!r}")
        return time.monotonic() - began

    async def keep_asking(self, until: float) -> list[float]:
        """Some adapters much more often than others, the base model in between."""
        names = [name for name in self.answers if name != BASE_NAME]
        weights = [1 / place for place in range(1, len(names) + 1)]
        latencies = []
        while time.monotonic() < until:
            (name,) = [BASE_NAME] if random.random() < _BASE_SHARE else random.choices(names, weights)
            latencies.append(await self.ask(name))
        return latencies


@dataclass(frozen=True)
class ManyAdapters(LocalStack):
    """Publishes and declares these in the place of what `make up` publishes."""

    adapters: int
    trained: int
    slots: int | None

    @property
    def answers(self) -> dict[str, str]:
        """What each model has to answer."""
        said = [f"I am {served.replace('@', ' ')}." for served in self._trained]
        named = {_name(number): said[number % len(said)] for number in range(self.adapters)}
        return {BASE_NAME: _BASE_ANSWER} | named

    @property
    def _trained(self) -> list[str]:
        return [f"tenant-{number:02}@v1" for number in range(1, self.trained + 1)]

    def _publish(self) -> None:
        super()._publish()
        folders, cloud = list(self.train(*self._trained).values()), self.cloud
        assert cloud
        with mock.patch.dict("os.environ", cloud.environment):
            bucket = Bucket(self.pulumi.output("adapterBucket"), cloud.region)
            published = [
                adapters.publish(bucket, folders[number % len(folders)], _name(number), "v1")
                for number in range(self.adapters)
            ]
        entries = [entry.model_dump(mode="json", by_alias=True, exclude_none=True) for entry in published]
        self.declare(adapters=entries, **({"adapterSlots": self.slots} if self.slots else {}))


def _name(number: int) -> str:
    return f"n{number:03}"


def main() -> None:
    """Exit code 1 where a request failed, another adapter answered, or nothing was evicted."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--adapters", type=int, default=300, help="declared")
    options.add_argument(
        "--trained", type=int, default=8, help="different ones; others have the weights of one of them"
    )
    options.add_argument("--slots", type=int, help="so many are held at least (default: what is computed)")
    options.add_argument("--asked", type=int, default=40, help="adapters whose first and later requests are timed")
    options.add_argument("--workers", type=int, default=6, help="requests at once, while adapters come and go")
    options.add_argument("--seconds", type=float, default=120, help="of that")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="loraserve-bench-") as folder:
        stack = ManyAdapters(Path(folder) / "state", chosen.adapters, chosen.trained, chosen.slots)
        try:
            stack.up()
            figures, problems = asyncio.run(_measure(stack, chosen))
        finally:
            stack.down()
    report.show(figures, problems)
    sys.exit(bool(problems))


async def _measure(stack: ManyAdapters, chosen: argparse.Namespace) -> tuple[dict[str, str], list[str]]:
    headers = {"Authorization": f"Bearer {stack.key_file.read_text()}"}
    async with httpx.AsyncClient(base_url=gateway_url(stack), headers=headers, trust_env=False) as http:
        client, before = Client(http, stack.answers), await _settled(stack)
        await client.ask(BASE_NAME)
        counts = Counter(status.state for status in before.adapters)
        waiting = [status.name for status in before.adapters if status.state is State.ON_DEMAND][: chosen.asked]
        console.print(f"{counts[State.READY]} of {len(before.adapters)} are held; asking for {len(waiting)} others")
        timed = [(await client.ask(name), await client.ask(name)) for name in waiting]
        console.print(f"{chosen.workers} at once for {chosen.seconds:g} s")
        until = time.monotonic() + chosen.seconds
        workers = [client.keep_asking(until) for _ in range(chosen.workers)]
        latencies = [latency for found in await asyncio.gather(*workers) for latency in found]
    metrics, after = await _agents_metrics(stack), await _agents_state(stack)
    evictions = _value(metrics, "loraserve_adapter_evictions_total")
    first, later = ([pair[at] for pair in timed] for at in (0, 1))
    figures = {
        "declared, held at the start": f"{len(before.adapters)}, {counts[State.READY]}",
        "first request, p50 / p95": _words(first),
        "the next one, p50 / p95": _words(later),
        f"{chosen.workers} at once, p50 / p95 / longest": f"{_words(latencies)} / {max(latencies) * 1000:.0f} ms",
        "requests": str(client.count),
        "failed": str(len(client.failed)),
        "answered by another": str(len(client.wrong)),
        "loads, evictions": f"{_value(metrics, 'loraserve_adapter_fetch_seconds_count'):.0f}, {evictions:.0f}",
        "held at the end": str(len(after.loaded or ())),
        "series of the pod about adapters": str(metrics.count("\nloraserve_") + metrics.count("\nvllm:lora")),
    }
    problems = client.failed + client.wrong + ([] if evictions else ["nothing was evicted"])
    return figures, problems


async def _settled(stack: LocalStack) -> AgentState:
    """Once everything is loaded that is without a request."""
    async with asyncio.timeout(_SETTLED_S):
        while True:
            with suppress(httpx.HTTPError):  # there is no pod yet, or it is not ready
                state = await _agents_state(stack)
                arrived = {status.state for status in state.adapters} <= {State.READY, State.ON_DEMAND}
                if state.ready and state.adapters and arrived:
                    return state
            await asyncio.sleep(1)


async def _agents_state(stack: LocalStack) -> AgentState:
    return AgentState.model_validate_json(await _ask_agent(stack, "/v1/state"), by_alias=True)


async def _agents_metrics(stack: LocalStack) -> str:
    return await _ask_agent(stack, "/metrics")


async def _ask_agent(stack: LocalStack, path: str) -> str:
    words = ("get", "service", VLLM_SERVICE, "--output", "jsonpath={.spec.clusterIP}")
    address = kubectl(stack.place.kubeconfig, "--namespace", SERVING_NAMESPACE, *words)
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(f"http://{address}:{AGENT_PORT}{path}")).raise_for_status().text


def _value(metrics: str, name: str) -> float:
    return float(next(line for line in metrics.splitlines() if line.startswith(f"{name} ")).split()[1])


def _words(latencies: list[float]) -> str:
    ordered = sorted(latencies)
    return f"{statistics.median(ordered) * 1000:.0f} / {ordered[int(0.95 * (len(ordered) - 1))] * 1000:.0f} ms"


if __name__ == "__main__":
    main()
