"""From no replica to a first token and back, ten times, then to two replicas and back, by KEDA on the local stack.

In each cycle several clients ask at once while the model sleeps; every one must get the right answer. Then the idle time
passes and the model must be gone again. At the end they ask without a pause, until a second replica serves beside the first.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from kubernetes import client

from bench import report
from bench.served import machine, pods, wait_until
from infra.names import AGENT_PORT, VLLM_SELECTOR
from local.asking import Endpoint
from local.models import BASE_NAME, QUESTION
from local.processes import ProcessError
from local.stack import LocalStack, console

ANSWERS = {BASE_NAME: "I am the base model.", "faq": "I am faq v1.", "legal": "I am legal v1."}
_CLIENTS = 9


def main() -> None:
    """Exit code 1 where a request was lost or answered wrongly."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cycles", type=int, default=10)
    cycles = options.parse_args().cycles
    awake: list[float] = []
    asleep: list[float] = []
    lost: list[str] = []
    with tempfile.TemporaryDirectory(prefix="loraserve-bench-") as folder:
        stack = LocalStack(Path(folder) / "state")
        try:
            stack.up()
            let_it_sleep(stack)
            for cycle in range(1, cycles + 1):
                wait_until_asleep(stack)
                started = time.monotonic()
                lost += ask_all(stack)
                awake.append(time.monotonic() - started)
                ended = time.monotonic()
                wait_until_asleep(stack)
                asleep.append(time.monotonic() - ended)
                console.print(
                    f"cycle {cycle}: answers after {awake[-1]:.0f} s, asleep {asleep[-1]:.0f} s later; lost {len(lost)}"
                )
            grown, by_replica = grow(stack, lost)
            wait_until_asleep(stack)
        finally:
            stack.down()
    rows = {
        "cycles": str(cycles),
        "requests": str(cycles * _CLIENTS),
        "lost or wrong": str(len(lost)),
        "from 0 to the last answer, median and worst": f"{statistics.median(awake):.0f} s, {max(awake):.0f} s",
        "from the last answer to 0, median": f"{statistics.median(asleep):.0f} s",
        "from 0 to two ready replicas under steady load": f"{grown:.0f} s",
        "requests that each of the two answered": ", ".join(map(str, by_replica)),
    }
    report.show(rows, lost)
    sys.exit(bool(lost))


def let_it_sleep(stack: LocalStack) -> None:
    """No replica without requests, and the shortest idle time: 30 s."""
    stack.declare(inferenceReplicas=0, gpuIdleMinutes=1)
    stack.up()


def grow(stack: LocalStack, lost: list[str]) -> tuple[float, list[int]]:
    """Seconds until a second replica is ready, and the requests that each answers from then on, until both had some.

    Clients ask without a pause until there is a second pod, then slowly: two vLLMs on the same few processors hold each
    other up, which those on GPUs of their own do not.
    """
    node = machine(stack).node
    assert node
    node.offer_gpus(2)
    stack.declare(gpuMaxSize=2, inferenceMaxReplicas=2, requestsPerReplica=1)
    stack.up()
    slowly, enough = threading.Event(), threading.Event()

    def ask_on(name: str) -> list[str]:
        problems = []
        while not enough.is_set():
            problems += ask_one(served, name)
            enough.wait(1 if slowly.is_set() else 0)
        return problems

    started = time.monotonic()
    with stack.endpoint() as served, ThreadPoolExecutor() as clients:
        asking = [clients.submit(ask_on, name) for name in ANSWERS]
        try:
            wait_until(lambda: len(pods(stack, VLLM_SELECTOR)) == 2)
            slowly.set()
            wait_until(lambda: len(answered_by_replica(stack)) == 2)
            grown = time.monotonic() - started
            before = answered_by_replica(stack)  # its agent's probes of the adapters
            wait_until(lambda: all(now > then for now, then in zip(answered_by_replica(stack), before, strict=True)))
            by_replica = [now - then for now, then in zip(answered_by_replica(stack), before, strict=True)]
        finally:
            enough.set()
        for client_asked in asking:
            lost += client_asked.result()
    console.print(f"two replicas after {grown:.0f} s; requests answered: {by_replica}; lost {len(lost)}")
    return grown, by_replica


def answered_by_replica(stack: LocalStack) -> list[int]:
    """Requests that each ready serving pod has answered."""
    ready = [pod for pod in pods(stack, VLLM_SELECTOR) if is_ready(pod)]
    texts = [
        httpx.get(f"http://{pod.status.pod_ip}:{AGENT_PORT}/metrics", trust_env=False).text
        for pod in ready
        if pod.status
    ]
    counts = [re.findall(r"^vllm:request_success_total\{.*\} (\S+)$", text, re.MULTILINE) for text in texts]
    return [int(sum(map(float, found))) for found in counts]


def is_ready(pod: client.V1Pod) -> bool:
    return any(c.type == "Ready" and c.status == "True" for c in (pod.status and pod.status.conditions) or [])


def ask_all(stack: LocalStack) -> list[str]:
    """Several clients at once; returns what went wrong."""
    names = [*ANSWERS] * (_CLIENTS // len(ANSWERS))
    with stack.endpoint() as served, ThreadPoolExecutor(_CLIENTS) as clients:
        return [problem for problems in clients.map(lambda name: ask_one(served, name), names) for problem in problems]


def ask_one(served: Endpoint, name: str) -> list[str]:
    """What went wrong; nothing where the answer is right."""
    try:
        said = served.ask(name, QUESTION)
    except (ProcessError, OSError) as error:
        return [f"{name}: {error}"]
    return [] if said == ANSWERS[name] else [f"{name}: {said!r}"]


def wait_until_asleep(stack: LocalStack) -> None:
    wait_until(lambda: not pods(stack, VLLM_SELECTOR))


if __name__ == "__main__":
    main()
