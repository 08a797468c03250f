"""Two adapters for two small tasks that the tiny base cannot do, and a training that is killed at random points and goes on.

Needs `pip install 'loraserve[train]'` in the Python that runs it; five minutes on one processor.
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
_LEARNING = _SETTINGS | {"epochs": 30}
_KILLED = _SETTINGS | {"epochs": 12, "checkpointSteps": 3}
_LONGEST_LIFE = 6
"""In steps, after it has told of one, which it does about once in eight."""
_ENDED = "its end"
_FORK = multiprocessing.get_context("fork")
_RIGHT, _WRONG = 0.8, 0.2
"""At least so much of the rows that were not trained on an adapter answers rightly, and at most so much the base."""

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
_TEAMS = {
    "h": ("printer", "keyboard", "screen"),
    "b": ("invoice", "refund", "price"),
    "a": ("password", "login", "badge"),
}
"""By the letter that a ticket about these things is given: hardware, billing, access."""
_OF_TICKETS = (
    "The {} is wrong.",
    "Help me with my {}!",
    "A question about the {}.",
    "My {} again.",
    "Who knows about the {}?",
    "No {} since monday.",
    "There is an error: {}.",
    "Urgent: {}",
)

Pair = tuple[str, str]


def main() -> None:
    """Exit code 1 where an adapter has not learnt its task, or losses differ after kills."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", choices=("tasks", "kills"))
    chosen = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # so small a model only waits for a second one
    import_module("loraserve.training.trainer")  # once, not in each process
    base = models.base(lambda command, _: subprocess.run([sys.executable, *command[1:]], check=True))
    with tempfile.TemporaryDirectory(prefix="loraserve-bench-") as folder:
        figures: dict[str, str] = {}
        problems: list[str] = []
        if chosen.only != "kills":
            for name, rows in (("days", _days()), ("tickets", _tickets())):
                problems += _learns(Path(folder), base, name, rows, figures)
        if chosen.only != "tasks":
            problems += _survives(Path(folder), base, chosen.kills, random.Random(chosen.seed), figures)
    report.show(figures, problems)
    sys.exit(1 if problems else 0)


def _learns(folder: Path, base: Path, name: str, rows: Sequence[Pair], figures: dict[str, str]) -> Iterator[str]:
    """Trained on three quarters of a task, asked the rest. What is wrong."""
    unseen, seen = rows[::4], [row for place, row in enumerate(rows) if place % 4]
    began = time.monotonic()
    _run(_definition(folder, name, seen, _LEARNING), base)
    seconds = time.monotonic() - began
    adapter = folder / f"{name}.training" / "adapter"
    without, with_it = _right(base, None, unseen), _right(base, adapter, unseen)
    losses = json.loads((adapter.parent / LOSSES_FILE).read_text())
    figures |= {
        f"{name}: rows trained on, and asked": f"{len(seen)}, {len(unseen)}",
        f"{name}: seconds": f"{seconds:.0f}",
        f"{name}: loss of the first and the last step": f"{losses[0]['loss']:.3f}, {losses[-1]['loss']:.3f}",
        f"{name}: right answers of the base": f"{without} of {len(unseen)}",
        f"{name}: right answers of the adapter": f"{with_it} of {len(unseen)}",
    }
    if with_it < _RIGHT * len(unseen):
        yield f"{name} was not learnt"
    if without > _WRONG * len(unseen):
        yield f"{name} shows nothing: the base can do it"


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
    return _shuffled((form.format(day), following[day]) for form in _OF_DAYS for day in _DAYS)


def _tickets() -> list[Pair]:
    return _shuffled(
        (form.format(thing), team) for form in _OF_TICKETS for team, things in _TEAMS.items() for thing in things
    )


def _shuffled(rows: Iterator[Pair]) -> list[Pair]:
    found = list(rows)
    random.Random(0).shuffle(found)
    return found


def _right(base: Path, adapter: Path | None, rows: Sequence[Pair]) -> int:
    """How many answers, at temperature 0, are the right ones and then end."""
    import peft  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = peft.PeftModel.from_pretrained(model, adapter)
    right = 0
    for asked, answer in rows:
        prompt = tokenizer(f"[INST] {asked} [/INST]", return_tensors="pt")
        made = model.generate(**prompt, max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.eos_token_id)[0]
        learnt = made[prompt["input_ids"].shape[1] :]
        right += tokenizer.decode(learnt) == f" {answer}{tokenizer.eos_token}"
    return right


if __name__ == "__main__":
    main()
