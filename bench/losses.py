"""What is lost when a part is replaced or dies under load, on the local stack: gateways, vLLM, its pod, KEDA.

Official OpenAI clients with their default settings ask at a fixed rate, every second request a long stream. One part after
the other is rolled out anew, which may cost nothing, or killed without warning. A stream that had begun in what was killed
cannot be saved; nothing else may be lost.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import openai

from bench import report
from bench.cold_start import ANSWERS
from bench.load import open_loop
from bench.served import core, gateway_url, machine, pods
from infra.names import GATEWAY, GATEWAY_SELECTOR, SERVING_NAMESPACE, VLLM, VLLM_SELECTOR
from local.cluster import containerd, keda
from local.cluster.kubectl import kubectl
from local.models import BASE_NAME, QUESTION
from local.processes import Process
from local.stack import LocalStack, console

_BEFORE_S, _AFTER_S = 15, 45
_STREAM_TOKENS = 100
_ROLLED = "rolled out"


@dataclass
class Load:
    """What became of the requests of one scenario."""

    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    broken_streams: list[str] = field(default_factory=list)
    """Their first token had come."""
    lost: list[str] = field(default_factory=list)
    slowest_s: float = 0

    async def one(self, client: openai.AsyncOpenAI, model: str, streams: bool) -> None:
        started, said, begun = time.monotonic(), "", False
        try:
            if streams:
                answer = await client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": QUESTION}],
                    max_tokens=_STREAM_TOKENS,
                    temperature=0,
                    stream=True,
                    extra_body={"ignore_eos": True},
                )
                async for piece in answer:
                    begun = True
                    said += (piece.choices[0].delta.content or "") if piece.choices else ""
            else:
                whole = await client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=24, temperature=0
                )
                said = whole.choices[0].message.content or ""
        except Exception as error:
            (self.broken_streams if begun else self.lost).append(f"{model}: {error!r}")
            return
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        self.answered += 1
        if not said.strip().startswith(ANSWERS[model]):
            self.wrong.append(f"{model}: {said!r}")


def main() -> None:
    """Exit code 1 where anything was lost but streams that had begun, or an answer was wrong."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rate", type=float, default=4, help="requests a second")
    rate = options.parse_args().rate
    with tempfile.TemporaryDirectory(prefix="loraserve-bench-") as folder:
        stack = LocalStack(Path(folder) / "state")
        try:
            stack.up()
            with stack.endpoint() as served:
                served.ask(BASE_NAME, QUESTION)  # held until vLLM has started
            events: dict[str, Callable[[LocalStack], None]] = {
                f"gateways {_ROLLED}": lambda stack: roll_out(stack, GATEWAY),
                f"vLLM {_ROLLED}": lambda stack: roll_out(stack, VLLM),
                "a gateway killed": lambda stack: kill_container(stack, GATEWAY_SELECTOR),
                "vLLM killed": lambda stack: kill_container(stack, VLLM_SELECTOR),
                "vLLM's pod killed": delete_pod,
                "KEDA killed": kill_keda,
            }
            loads = {}
            for what, happen in events.items():
                loads[what] = asyncio.run(_under_load(stack, rate, happen))
                console.print(f"{what}: {_described(loads[what])}")
                for problem in (loads[what].lost + loads[what].wrong + loads[what].broken_streams)[:10]:
                    console.print(f"    {problem}", markup=False)
        finally:
            stack.down()
    report.show({what: _described(load) for what, load in loads.items()}, [])
    sys.exit(any(load.lost or load.wrong or (_ROLLED in what and load.broken_streams) for what, load in loads.items()))


async def _under_load(stack: LocalStack, rate: float, happen: Callable[[LocalStack], None]) -> Load:
    load, ended, turns = Load(), asyncio.Event(), itertools.count()
    models = list(ANSWERS)
    url, key = gateway_url(stack), stack.key_file.read_text()
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client:

        async def one(_: float) -> None:
            turn = next(turns)
            await load.one(client, models[turn % len(models)], streams=turn % 2 == 0)

        running = asyncio.create_task(open_loop(rate, ended, one))
        await asyncio.sleep(_BEFORE_S)
        await asyncio.to_thread(happen, stack)
        await asyncio.sleep(_AFTER_S)
        ended.set()
        await running  # with every answer that is still to come
    return load


def roll_out(stack: LocalStack, deployment: str) -> None:
    """Every pod is replaced, as by a new image."""
    namespace = ("--namespace", SERVING_NAMESPACE)
    kubectl(stack.place.kubeconfig, *namespace, "rollout", "restart", f"deployment/{deployment}")
    kubectl(stack.place.kubeconfig, *namespace, "rollout", "status", f"deployment/{deployment}")


def delete_pod(stack: LocalStack) -> None:
    """Without its grace period."""
    pod, *_ = pods(stack, VLLM_SELECTOR)
    assert pod.metadata
    core(stack).delete_namespaced_pod(str(pod.metadata.name), SERVING_NAMESPACE, grace_period_seconds=0)


def kill_keda(stack: LocalStack) -> None:
    """Operator and adapter; they stay away for half of the time that is left."""
    place = machine(stack)
    for tool in keda.PARTS:
        process = Process.load(tool, place.keda_state)
        assert process
        process.signal(signal.SIGKILL)
    time.sleep(_AFTER_S / 2)
    assert place.control_plane
    keda.start(place.keda_state, place.control_plane)


def kill_container(stack: LocalStack, labels: dict[str, str]) -> None:
    """SIGKILL to a pod's first container, by its process id."""
    pod, *_ = pods(stack, labels)
    node = machine(stack).node
    assert node
    assert pod.status
    assert pod.status.container_statuses
    container = str(pod.status.container_statuses[0].container_id).removeprefix("containerd://")
    node.run(*containerd.kill_command(container))


def _described(load: Load) -> str:
    return (
        f"{load.answered} answered, {len(load.broken_streams)} begun streams broken, {len(load.lost)} lost, "
        f"{len(load.wrong)} wrong; slowest {load.slowest_s:.0f} s"
    )


if __name__ == "__main__":
    main()
