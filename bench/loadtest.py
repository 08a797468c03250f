"""How exact `loraserve loadtest` is against a model of known latency, and how many requests it makes on one core."""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvloop

from bench import report
from bench.known_latency import ADAPTER, BASE
from local.processes import Process, free_port
from loraserve.loadtest import schedule
from loraserve.loadtest.accounting import LATE_SHARE, Outcome, is_late, quantiles
from loraserve.loadtest.client import Target, run
from loraserve.loadtest.prompts import Kind
from loraserve.loadtest.schedule import Phase

RATE, SECONDS = 50.0, 60.0
WARM_UP = Phase("warm-up", 2, RATE, schedule.NORMAL, judged=False)
EXACT = Phase("exact", SECONDS, RATE, schedule.NORMAL)
CEILING_RATES, CEILING_SECONDS = (400, 800, 1600), 4.0
MOST_RATE_ERROR, MOST_QUANTILE_ERROR, FEWEST_A_CORE = 0.01, 0.02, 500


@contextmanager
def known_latency(folder: Path, *flags: str) -> Iterator[Target]:
    port = free_port()
    command = (sys.executable, "-m", "bench.known_latency", str(port), *flags)
    process = Process.start("model", command, folder, die_with_parent=True)
    try:
        process.wait_until(lambda: _answers(port))
        yield Target(f"http://127.0.0.1:{port}/v1", "none")
    finally:
        process.stop()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def exactness(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Percentiles as the tool has them, against the model's own clock."""
    models = schedule.base_and_adapters(BASE, [ADAPTER])
    with known_latency(folder) as target:
        outcomes = uvloop.run(run(target, schedule.schedule([WARM_UP, EXACT], models, seed=1)))
        took = httpx.get(target.url.replace("/v1", "/took"), trust_env=False).json()
    sent = sum(WARM_UP.seconds <= one.sent < WARM_UP.seconds + SECONDS for one in outcomes)
    off = sent / (RATE * SECONDS) - 1
    figures = {
        "calls": str(len(outcomes)),
        "failed": str(sum(one.error is not None for one in outcomes)),
        "offered rate": f"{sent / SECONDS:.2f}/s for {RATE:g}/s ({off:+.2%})",
        "late": f"{sum(map(is_late, outcomes))}; p99 {quantiles((one.sent - one.call.due for one in outcomes), [0.99])[0].value * 1000:.2f} ms",
    }
    problems = [f"the rate is {off:+.2%} off"] if abs(off) > MOST_RATE_ERROR else []
    problems += [f"a call ended in {one.error}" for one in outcomes if one.error]
    seen = {"first token": [one.first_token for one in outcomes], "end to end": [one.end_to_end for one in outcomes]}
    for (name, values), true in zip(seen.items(), zip(*took, strict=True), strict=True):
        for mine, known in zip(quantiles(values), quantiles(true), strict=True):
            error = mine.value / known.value - 1
            figures[f"{name} p{mine.q * 100:g}"] = (
                f"{mine.value * 1000:.1f} ms, known {known.value * 1000:.1f} ({error:+.2%})"
            )
            if abs(error) > MOST_QUANTILE_ERROR:
                problems.append(f"{name} p{mine.q * 100:g} is {error:+.2%} off")
    return figures, problems


def ceiling(folder: Path) -> tuple[dict[str, str], list[str]]:
    """The highest rate that leaves in time, and what a call takes of this process's CPU."""
    best, per_core = 0, 0.0
    with known_latency(folder, "--fast") as target:
        for rate in CEILING_RATES:
            calls = schedule.schedule([Phase("fast", CEILING_SECONDS, rate, {Kind.SHORT: 1})], {BASE: 1}, seed=1)
            before = _cpu_seconds()
            outcomes = uvloop.run(run(target, calls))
            per_core = len(outcomes) / (_cpu_seconds() - before)
            best = rate if _in_time(outcomes) else best
    figures = {"highest rate in time": f"{best}/s", "requests a CPU second": f"{per_core:.0f}"}
    slow = f"{per_core:.0f} requests a CPU second leave no room for the overload of 400/s beside what it reads"
    return figures, [slow] if per_core < FEWEST_A_CORE else []


def _in_time(outcomes: list[Outcome]) -> bool:
    return sum(map(is_late, outcomes)) <= LATE_SHARE * len(outcomes) and not any(one.error for one in outcomes)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Exit code 1 where it is less exact, or slower, than promised."""
    with tempfile.TemporaryDirectory(prefix="loraserve-bench-") as folder:
        figures, problems = exactness(Path(folder))
        more, slower = ceiling(Path(folder))
    report.show(figures | more, problems + slower)
    sys.exit(bool(problems + slower))


if __name__ == "__main__":
    main()
