"""How long the local stack takes on this machine: `make up` with what is cached, pod scheduled to ready, `make down`.

Prints, too, the answers that it got, and what memory and disk were used.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.program import Result, timed
from bench.served import pods
from infra.names import VLLM_SELECTOR
from local import models
from local.paths import cache_dir
from local.stack import LocalStack

_GB = 1e9


def main() -> None:
    """Exit code 1 where a target is missed."""
    with tempfile.TemporaryDirectory(prefix="loraserve-bench-") as folder:
        stack = LocalStack(Path(folder) / "state")
        free_before = available_memory_gb()
        try:
            results = [Result("make up, warm, to the first answer", timed(lambda: first_answer(stack)), 240)]
            results.append(Result("pod scheduled to ready", scheduled_to_ready(stack)))
            with stack.endpoint() as served:
                answers = {model: served.ask(model, models.QUESTION) for model in served.models()}
            figures = {
                "memory used, GB": free_before - available_memory_gb(),
                "disk of the state, links not counted, GB": own_disk_gb(stack.state, cache_dir()),
                "disk of the cache, GB": disk_gb(cache_dir()),
            }
            results.append(Result("make up again, nothing changed", timed(stack.up)))
        except BaseException:
            stack.down()
            raise
        left: list[str] = []
        results.append(Result("make down", timed(lambda: left.extend(stack.down())), 60))
    table = Table("figure", "value", "target")
    for result in results:
        table.add_row(result.name, f"{result.seconds:.1f} s", f"<= {result.target:g} s" if result.target else "-")
    for name, value in figures.items():
        table.add_row(name, f"{value:.1f}", "-")
    for model, answer in answers.items():
        table.add_row(f"{model} answers", answer, "-")
    table.add_row("left behind", ", ".join(left) or "nothing", "nothing")
    Console().print(table)
    print(json.dumps({result.name: round(result.seconds, 1) for result in results} | figures))
    sys.exit(bool(left) or any(result.target and result.seconds > result.target for result in results))


def first_answer(stack: LocalStack) -> None:
    stack.up()
    with stack.endpoint() as served:
        served.ask(models.BASE_NAME, models.QUESTION)


def scheduled_to_ready(stack: LocalStack) -> float:
    """Seconds between the two conditions of the serving pod; waits for the second."""
    while True:
        (pod,) = pods(stack, VLLM_SELECTOR)
        conditions = (pod.status.conditions if pod.status else None) or []
        true_since = {found.type: found.last_transition_time for found in conditions if found.status == "True"}
        scheduled, ready = true_since.get("PodScheduled"), true_since.get("Ready")
        if scheduled and ready:
            return (ready - scheduled).total_seconds()
        time.sleep(1)


def available_memory_gb() -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 / _GB


def disk_gb(*folders: Path) -> float:
    """Each file once, however many links it has."""
    command = ["du", "--summarize", "--total", "--bytes", "--one-file-system", *map(str, folders)]
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return int(listing.splitlines()[-1].split()[0]) / _GB


def own_disk_gb(folder: Path, beside: Path) -> float:
    """What a folder adds to another one that it shares files with."""
    return disk_gb(beside, folder) - disk_gb(beside)


if __name__ == "__main__":
    main()
