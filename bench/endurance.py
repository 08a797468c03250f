"""Steady load with swaps of versions, for as long as is said, on the local stack: what of gateway, agent and vLLM grows.

Anonymous memory, open files, threads and latency, each as the median of the first, the middle and the last third of the time
(after the first two minutes, in which caches fill), and the slope of a straight line through the last two thirds.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import cycle
from pathlib import Path

from bench import report
from bench.cold_start import ANSWERS
from bench.served import (
    cgroup,
    containers,
    desired,
    gateway_url,
    own_stack,
    pods,
    publish_versions,
    put_desired,
    swapped,
)
from bench.steady import OK, Steady
from infra.names import GATEWAY, GATEWAY_SELECTOR, VLLM, VLLM_SELECTOR
from local.models import BASE_NAME, QUESTION
from local.stack import LocalStack, console

_WARM_S = 120
_SAMPLE_S = 10
_SWAP_S = 40
_MEMORY, _FILES, _THREADS, _LATENCY = "memory, MB", "open files", "threads", "latency p50, ms"
_GROWTH = {_MEMORY: (1.1, 10), _FILES: (1.0, 8), _THREADS: (1.0, 4), _LATENCY: (1.5, 100)}
"""From the first third to the last: no more than this factor, and this much on top."""
Series = dict[str, list[tuple[float, float]]]
"""By what was measured: minutes since the start, and the value."""


def main() -> None:
    """Exit code 1 where something grew, or a request failed."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=60)
    options.add_argument("--rate", type=float, default=3, help="requests a second")
    chosen = options.parse_args()
    with own_stack() as stack:
        with stack.endpoint() as served:
            served.ask(BASE_NAME, QUESTION)  # held until vLLM has started
        series, swaps, load = _measure(stack, chosen.minutes, chosen.rate)
    grown = _show(series, chosen.minutes)
    failed = [one for one in load.sent if one.ended and one.outcome != OK]
    print(
        f"{len(load.sent)} requests, {len(failed)} failed; {swaps} swaps of a version; grown: {', '.join(grown) or 'nothing'}"
    )
    sys.exit(bool(grown or failed))


def _measure(stack: LocalStack, minutes: float, rate: float) -> tuple[Series, int, Steady]:
    versions = cycle(publish_versions(stack, ["faq@v2", "faq@v3", "faq@v1"]))
    processes = dict(_processes(stack))
    series: Series = {}
    swaps = 0
    with Steady(gateway_url(stack), stack.key_file.read_text(), list(ANSWERS), rate) as load:
        began = time.monotonic()
        next_swap = began + _WARM_S
        while (now := time.monotonic()) < began + minutes * 60:
            if now >= next_swap:
                put_desired(stack, swapped(desired(stack), next(versions)))
                swaps, next_swap = swaps + 1, next_swap + _SWAP_S
            for name, found in (_sample(processes) | _latency(load, now)).items():
                series.setdefault(name, []).append(((now - began) / 60, found))
            if len(series[f"gateway: {_FILES}"]) % 30 == 0:
                console.print(f"{(now - began) / 60:.0f} min: {swaps} swaps, {len(load.sent)} requests")
            time.sleep(_SAMPLE_S)
    return series, swaps, load


def _processes(stack: LocalStack) -> Iterator[tuple[str, list[Path]]]:
    """Control groups by part; the gateways are taken together."""
    of_gateways = [containers(pod)[GATEWAY] for pod in pods(stack, GATEWAY_SELECTOR)]
    (serving,) = [containers(pod) for pod in pods(stack, VLLM_SELECTOR)]
    for part, found in ((GATEWAY, of_gateways), ("agent", [serving["agent"]]), (VLLM, [serving[VLLM]])):
        yield part, [cgroup(stack, container) for container in found]


def _sample(parts: Mapping[str, Sequence[Path]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for part, groups in parts.items():
        for pid in [pid for group in groups for pid in (group / "cgroup.procs").read_text().split()]:
            process = Path("/proc") / pid
            with suppress(FileNotFoundError, ProcessLookupError):  # a short-lived child
                status = (process / "status").read_text()
                for what, value in (
                    (_MEMORY, _number("RssAnon", status) / 1e3),
                    (_FILES, len(list((process / "fd").iterdir()))),
                    (_THREADS, _number("Threads", status)),
                ):
                    found[f"{part}: {what}"] = found.get(f"{part}: {what}", 0) + value
    return found


def _number(name: str, status: str) -> float:
    line = re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)
    return float(line[1]) if line else 0


def _latency(load: Steady, now: float) -> dict[str, float]:
    took = [one.ended - one.at for one in load.sent[-200:] if one.ended and one.ended > now - 60]
    return {f"clients: {_LATENCY}": statistics.median(took) * 1000} if took else {}


def _show(series: Series, minutes: float) -> list[str]:
    """Prints the table; returns what grew."""
    rows, grown = [], []
    for name, points in sorted(series.items()):
        warm = [point for point in points if point[0] >= min(_WARM_S / 60, minutes / 3)]
        third = len(warm) // 3
        first, middle, last = (
            statistics.median(value for _, value in part)
            for part in (warm[:third], warm[third : 2 * third], warm[2 * third :])
        )
        slope = statistics.linear_regression(*zip(*warm[third:], strict=True)).slope * 60
        rows.append((name, f"{first:.0f}", f"{middle:.0f}", f"{last:.0f}", f"{slope:+.1f}"))
        factor, more = _GROWTH[name.partition(": ")[2]]
        if last > first * factor + more:
            grown.append(name)
    report.markdown(("what", "first third", "middle", "last third", "slope of the last two thirds, an hour"), rows)
    return grown


if __name__ == "__main__":
    main()
