"""From no replica to a first token and back, ten times, on the local stack with KEDA's real operator: nothing is lost.

In each cycle several clients ask at once while the model sleeps; every one must get the right answer. Then the idle time
passes and the model must be gone again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kubernetes import client, config

from bench import report
from infra.names import SERVING_NAMESPACE
from local.models import BASE_NAME, QUESTION
from local.processes import ProcessError
from local.stack import LocalStack, console

ANSWERS = {BASE_NAME: "I am the base model.", "faq": "I am faq v1.", "legal": "I am legal v1."}
_CLIENTS = 9
_LIMIT_S = 300


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
                wait_until(lambda: replicas(stack) == 0)
                started = time.monotonic()
                lost += ask_all(stack)
                awake.append(time.monotonic() - started)
                ended = time.monotonic()
                wait_until(lambda: replicas(stack) == 0)
                asleep.append(time.monotonic() - ended)
                console.print(
                    f"cycle {cycle}: answers after {awake[-1]:.0f} s, asleep {asleep[-1]:.0f} s later; lost {len(lost)}"
                )
        finally:
            stack.down()
    rows = {
        "cycles": str(cycles),
        "requests": str(cycles * _CLIENTS),
        "lost or wrong": str(len(lost)),
        "from 0 to the last answer, median and worst": f"{statistics.median(awake):.0f} s, {max(awake):.0f} s",
        "from the last answer to 0, median": f"{statistics.median(asleep):.0f} s",
    }
    report.show(rows, lost)
    sys.exit(bool(lost))


def let_it_sleep(stack: LocalStack) -> None:
    """No replica without requests, and the shortest idle time: 30 s."""
    stack.declare(inferenceReplicas=0, gpuIdleMinutes=1)
    stack.up()


def ask_all(stack: LocalStack) -> list[str]:
    """Several clients at once; returns what went wrong."""
    names = [*ANSWERS] * (_CLIENTS // len(ANSWERS))

    def ask(name: str) -> str | None:
        try:
            said = served.ask(name, QUESTION)
        except (ProcessError, OSError) as error:
            return f"{name}: {error}"
        return None if said == ANSWERS[name] else f"{name}: {said!r}"

    with stack.endpoint() as served, ThreadPoolExecutor(_CLIENTS) as clients:
        return [problem for problem in clients.map(ask, names) if problem]


def replicas(stack: LocalStack) -> int:
    """Serving pods, those on their way out included."""
    core = client.CoreV1Api(config.new_client_from_config(str(stack.place.kubeconfig)))
    return len(core.list_namespaced_pod(SERVING_NAMESPACE, label_selector="app=vllm").items or [])


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_LIMIT_S} s")
        time.sleep(1)


if __name__ == "__main__":
    main()
