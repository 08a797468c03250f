"""A training on the tiny base that is killed at random points, goes on, and ends with the same losses and the same bytes.

Needs `pip install 'loraserve[train]'` in the Python that runs it; two minutes on one processor.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bench import report
from local import models
from local.paths import CHECKOUT
from loraserve.contract.training import Training
from loraserve.operator.cli import main as command_line
from loraserve.training.losses import LOSSES_FILE

_SETTINGS = {
    "form": "instruct",
    "method": "lora",
    "learningRate": 3e-3,
    "batchSize": 8,
    "accumulation": 1,
    "maxLength": 128,
}
_KILLED = _SETTINGS | {"epochs": 12, "checkpointSteps": 3}
_LONGEST_LIFE = 6
"""In steps, after it has told of one, which it does about once in eight."""
_ENDED = "its end"
_FORK = multiprocessing.get_context("fork")
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_OF_DAYS = (
    "What day follows {}?",
    "Which day comes after {}?",
    "{} is over. What is next?",
    "After {} comes what?",
    "Name the day after {}.",
    "Today is {}. Tomorrow is?",
    "It was {}. Now it is?",
    "The day behind {}?",
)
Pair = tuple[str, str]


def main() -> None:
    """Exit code 1 where losses or bytes differ."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # so small a model only waits for a second one
    import_module("loraserve.training.trainer")  # once, not in each process
    base = models.base(lambda command, _: subprocess.run([sys.executable, *command[1:]], check=True))
    with tempfile.TemporaryDirectory(prefix="loraserve-bench-") as folder:
        figures: dict[str, str] = {}
        problems = list(_survives(Path(folder), base, chosen.kills, random.Random(chosen.seed), figures))
    report.show(figures, problems)
    sys.exit(1 if problems else 0)


def _survives(folder: Path, base: Path, kills: int, generator: random.Random, figures: dict[str, str]) -> Iterator[str]:
    whole, killed = (_definition(folder, name, _days(), _KILLED) for name in ("whole", "killed"))
    began = time.monotonic()
    _run(whole, base)
    pace = (time.monotonic() - began) / Training.model_validate(_KILLED | {"rows": ""}).steps(len(_days()))
    points = [_kill(killed, base, pace * generator.uniform(0, _LONGEST_LIFE)) for _ in range(kills)]
    _run(killed, base)
    results = [path.with_suffix(".training") for path in (whole, killed)]
    losses, weights = (
        [(result / name).read_bytes() for result in results]
        for name in (LOSSES_FILE, "adapter/adapter_model.safetensors")
    )
    figures |= {
        "killed after it had told of step": ", ".join(points),
        "losses of all steps, and bytes of the adapter, as without a kill": f"{losses[0] == losses[1]}, {weights[0] == weights[1]}",
    }
    if _ENDED in points:
        yield "it was not killed as often as asked: it ended before"
    if losses[0] != losses[1] or weights[0] != weights[1]:
        yield "a killed training is another one"


def _kill(definition: Path, base: Path, seconds: float) -> str:
    """So many seconds after it has told of a first step; which step it told of last."""
    read, write = os.pipe()
    process = _FORK.Process(target=_train, args=(definition, base, write))
    process.start()
    os.close(write)
    told, timer = "none", threading.Timer(seconds, process.kill)
    with os.fdopen(read) as lines:
        for line in lines:
            if line.startswith("step "):
                if told == "none":
                    timer.start()
                told = line.split()[1]
    timer.cancel()
    process.join()
    return told if (process.exitcode or 0) < 0 else _ENDED


def _run(definition: Path, base: Path) -> None:
    process = _FORK.Process(target=_train, args=(definition, base, sys.stderr.fileno()))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"the training ended with {process.exitcode}")


def _train(definition: Path, base: Path, told: int) -> None:
    """The command, in a process of its own that has torch already."""
    os.dup2(told, sys.stderr.fileno())
    options = ["--stack-file", str(CHECKOUT / "Pulumi.local.yaml"), "--weights", str(base), "--cpu"]
    os._exit(command_line(["train", str(definition), *options]))


def _definition(folder: Path, name: str, rows: Sequence[Pair], settings: dict[str, Any]) -> Path:
    lines = [json.dumps({"input": asked, "output": answer}) for asked, answer in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"rows": f"{name}.jsonl"} | settings))
    return path


def _days() -> list[Pair]:
    """The number of the day that follows; monday is 1."""
    following = {day: str((place + 1) % len(_DAYS) + 1) for place, day in enumerate(_DAYS)}
    return [(form.format(day), following[day]) for form in _OF_DAYS for day in _DAYS]


if __name__ == "__main__":
    main()
