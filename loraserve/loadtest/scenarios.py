"""What a load test does from beginning to end: the model is woken, calls are made, what came of them is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp

from loraserve.loadtest import saturation
from loraserve.loadtest.accounting import Outcome, lateness, problems, summaries
from loraserve.loadtest.client import CannotTest, Progress, Target, run, wake
from loraserve.loadtest.prompts import RETRIEVED_WORDS, Kind
from loraserve.loadtest.report import Result, timeline
from loraserve.loadtest.saturation import Step
from loraserve.loadtest.schedule import Call, Phase, schedule
from loraserve.planning.objectives import Objective

Seen = Callable[[Progress], None]


@dataclass(frozen=True)
class Load:
    """What all scenarios need. `models` are shares by name."""

    target: Target
    models: Mapping[str, float]
    objectives: Mapping[str, Objective]
    seed: int
    retrieved_words: int = RETRIEVED_WORDS

    def schedule(self, phases: Sequence[Phase], run: int = 0) -> tuple[Call, ...]:
        """`run` tells apart the runs of one test."""
        return schedule(phases, self.models, self.seed + run, self.retrieved_words)


@dataclass(frozen=True)
class Sweep:
    """Rates rise from `first_rate` by `factor` until one is too much."""

    first_rate: float
    factor: float
    step_seconds: float
    most_rate: float
    replicas: int
    prometheus: str | None


async def run_phases(scenario: str, load: Load, phases: Sequence[Phase], seen: Seen) -> Result:
    """Raises CannotTest."""
    began, woken = _now(), await _wake(load)
    outcomes = await run(load.target, load.schedule(phases), seen)
    judged = [phase.name for phase in phases if phase.judged]
    return Result(
        scenario,
        load.target.url,
        began,
        load.seed,
        tuple(phases),
        woken,
        summaries(outcomes, load.objectives),
        timeline(outcomes),
        None,
        tuple(problems(outcomes, load.objectives, judged)),
    )


async def run_sweep(load: Load, sweep: Sweep, seen: Seen) -> Result:
    """Ends with the first rate that is too much. Raises CannotTest, also where not even the first one is bearable."""
    began, woken = _now(), await _wake(load)
    steps, phases, rate = list[Step](), list[Phase](), sweep.first_rate
    outcomes: list[Outcome] = []
    while rate <= sweep.most_rate and (not steps or steps[-1].keeps_up):
        phases.append(saturation.phase(rate, sweep.step_seconds))
        made = await run(load.target, load.schedule(phases[-1:], len(steps)), seen)
        use = await _gpu_use(sweep.prometheus, sweep.step_seconds) if sweep.prometheus else None
        steps.append(saturation.judge(phases[-1], made, load.objectives, use))
        outcomes += made
        rate *= sweep.factor
    found = saturation.find(steps, sweep.replicas)
    if found is None:
        raise CannotTest(
            f"{sweep.first_rate:g} requests/s are too much already (errors: {dict(steps[0].summary.errors)}, "
            f"{steps[0].backlog} more open at the end): begin lower with --first-rate"
        )
    return Result(
        "sweep to saturation",
        load.target.url,
        began,
        load.seed,
        tuple(phases),
        woken,
        summaries(outcomes, load.objectives),
        (),
        found,
        tuple(lateness(outcomes)),
    )


async def _wake(load: Load) -> dict[str, float]:
    return {
        model: await wake(load.target, Call(0, "wake", model, Kind.SHORT, f"[INST] {model}? [/INST]"))
        for model in load.models
    }


async def _gpu_use(prometheus: str, seconds: float) -> float | None:
    """Mean over the GPUs, by DCGM; None where Prometheus has no such series."""
    query = f"avg(avg_over_time(DCGM_FI_DEV_GPU_UTIL[{max(30, round(seconds))}s])) / 100"
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.get(
                f"{prometheus.rstrip('/')}/api/v1/query", params={"query": query}, raise_for_status=True
            ) as answer,
        ):
            found = (await answer.json())["data"]["result"]
    except (aiohttp.ClientError, OSError, ValueError, KeyError) as error:
        raise CannotTest(f"{prometheus} does not answer as Prometheus does: {error}") from None
    return float(found[0]["value"][1]) if found else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
