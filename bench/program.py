"""How long the program takes on this machine: import, unit tests, first `up`, second `up`, `destroy`, and how much it makes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from local.engine.workspace import CHECKOUT
from tests.engine.deployed import Changes, Deployment, World


@dataclass(frozen=True)
class Result:
    """One figure; `target` is None where nothing was promised."""

    name: str
    seconds: float
    target: float | None = None


def timed(action: Callable[[], object]) -> float:
    """Wall-clock seconds."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def python(*arguments: str) -> None:
    """Runs Python in the checkout."""
    subprocess.run([sys.executable, *arguments], cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def world() -> Iterator[World]:
    """An emulated AWS and a cluster, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="loraserve-bench-") as folder, World.run(Path(folder)) as started:
        yield started


def measure_stack(stack: str, **config: object) -> tuple[list[Result], Counter[str]]:
    """A stack as shipped, from nothing and back."""
    with world() as place:
        deployment = Deployment(place, stack, **config)
        runs: dict[str, Changes] = {}

        def run(name: str, action: Callable[[], Changes]) -> float:
            return timed(lambda: runs.update({name: action()}))

        results = [
            Result(f"{stack}: first up", run("up", deployment.up)),
            Result(f"{stack}: second up, no change", run("again", deployment.up), 15),
            Result(f"{stack}: destroy", run("destroy", deployment.destroy)),
        ]
        return results, Counter(
            {
                f"{stack}: created": runs["up"].counts.get("create", 0),
                f"{stack}: changed by the second up": len(runs["again"].touched),
                f"{stack}: destroyed": runs["destroy"].counts.get("delete", 0),
            }
        )


def main() -> None:
    """Prints a table for people and a line of JSON for machines; exit code 1 where a target is missed."""
    results = [
        Result("import of the program", timed(lambda: python("-c", "import infra.program")), 3),
        Result("unit tests", timed(lambda: python("-m", "pytest", "-q", "tests/unit")), 60),
    ]
    measured, counts = measure_stack("dev", inferenceReplicas=1)
    results += measured
    table = Table("figure", "seconds", "target")
    for result in results:
        table.add_row(result.name, f"{result.seconds:.1f}", f"<= {result.target:g}" if result.target else "-")
    for name, count in counts.items():
        table.add_row(name, str(count), "resources")
    Console().print(table)
    print(json.dumps({result.name: round(result.seconds, 2) for result in results} | counts))
    sys.exit(any(result.target and result.seconds > result.target for result in results))


if __name__ == "__main__":
    main()
