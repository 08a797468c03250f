"""Load over HTTP by vegeta: at a fixed rate whatever comes back, or by so many callers without a pause."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local import commands
from local.tools.toolchain import Tool, ensure


@dataclass(frozen=True)
class Answers:
    """What became of the requests of one run. Latencies are in ms, to the last byte of an answer or a stream."""

    p50: float
    p99: float
    rate: float
    """Answers a second."""
    count: int
    failed: int
    """Answers with another status than 2xx or 3xx, broken ones, and those that did not come."""
    statuses: dict[str, int]
    """How often each; "0" where none came."""


@dataclass(frozen=True)
class Request:
    """The one request that a run repeats."""

    url: str
    key: str
    body: dict[str, Any]

    def write(self, folder: Path) -> Path:
        """As vegeta reads it."""
        (folder / "body.json").write_text(json.dumps(self.body))
        head = f"POST {self.url}\nAuthorization: Bearer {self.key}\nContent-Type: application/json\n"
        target = folder / "target"
        target.write_text(f"{head}@{folder / 'body.json'}\n")
        return target


def at_rate(per_second: int) -> list[str]:
    """Requests come at a steady rate, whether answers do or not."""
    return [f"-rate={per_second}/s"]


def by_callers(count: int) -> list[str]:
    """Every caller asks as soon as it has its answer."""
    return ["-rate=0", f"-max-workers={count}"]


def attack(request: Request, load: Sequence[str], folder: Path, seconds: float = 0) -> list[str | Path]:
    """The command that makes this load, for ever where no `seconds` are given, and writes its results to `folder`."""
    files = [f"-targets={request.write(folder)}", f"-output={folder / 'results'}"]
    return [ensure(Tool.VEGETA)[Tool.VEGETA], "attack", *load, f"-duration={seconds}s", *files]


def answers(request: Request, load: Sequence[str], folder: Path, seconds: float) -> Answers:
    """Makes this load for so long."""
    command = attack(request, load, folder, seconds)
    commands.output(command)
    report = json.loads(commands.output([command[0], "report", "-type=json", folder / "results"]))
    latencies, count = report["latencies"], report["requests"]
    succeeded = round(report["success"] * count)
    return Answers(
        p50=latencies["50th"] / 1e6,
        p99=latencies["99th"] / 1e6,
        rate=report["throughput"],
        count=succeeded,
        failed=count - succeeded,
        statuses=report["status_codes"],
    )
