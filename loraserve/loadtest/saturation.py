"""How much one stack takes: steps of a rising rate, the knee, and the point to run it at. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loraserve.loadtest.accounting import Outcome, Summary, summarize
from loraserve.loadtest.schedule import NORMAL, Phase
from loraserve.planning.objectives import Objective

OPERATING_SHARE = 0.7
"""Of the knee's rate: room for a spike until another replica is there."""
BACKLOG_SHARE = 0.1
"""Of what arrives in a step's later two thirds, that may be open at its end beyond what was open before."""


@dataclass(frozen=True)
class Step:
    """One rate, held for some time."""

    rate: float
    answered_rate: float
    """Answers a second in the later two thirds."""
    backlog: int
    """By how many calls more were open at the end than after a third."""
    keeps_up: bool
    """The backlog does not grow, and the objectives hold."""
    summary: Summary
    gpu_use: float | None = None
    """Mean, 0 to 1; None: not asked for."""


def phase(rate: float, seconds: float) -> Phase:
    return Phase(f"{rate:g}/s", seconds, rate, NORMAL)


def judge(step: Phase, outcomes: Sequence[Outcome], objectives: Mapping[str, Objective], gpu_use: float | None) -> Step:
    settled = step.seconds / 3
    arrived = sum(settled <= one.call.due for one in outcomes)
    ended = sum(settled <= one.ended < step.seconds for one in outcomes)
    answered = sum(settled <= one.ended < step.seconds and one.error is None for one in outcomes)
    backlog = arrived - ended
    models = {one.call.model for one in outcomes}
    holds = all(_holds(summarize(outcomes, objectives, model=model), objectives.get(model)) for model in models)
    return Step(
        step.rate,
        answered / (step.seconds - settled),
        backlog,
        backlog <= max(BACKLOG_SHARE * arrived, 2) and holds,
        summarize(outcomes, objectives),
        gpu_use,
    )


def _holds(summary: Summary, objective: Objective | None) -> bool:
    wanted = objective or Objective()
    enough = summary.succeeded >= wanted.availability * summary.calls
    return enough and summary.good >= wanted.first_token_share * summary.succeeded


@dataclass(frozen=True)
class Saturation:
    """Rates are those of the whole stack."""

    steps: tuple[Step, ...]
    knee: float
    """The highest rate that every step up to it kept up with."""
    reached: bool
    """A step beyond the knee did not keep up."""
    operating_rate: float
    requests_per_replica: int
    """Requests at once, on one replica, at the operating rate: what KEDA holds."""


def find(steps: Sequence[Step], replicas: int) -> Saturation | None:
    """None where not even the first step kept up."""
    kept = steps[: next((at for at, step in enumerate(steps) if not step.keeps_up), len(steps))]
    if not kept:
        return None
    knee, operating = kept[-1].rate, OPERATING_SHARE * kept[-1].rate
    at_once = operating * _mean_at(operating, kept) / replicas  # Little's law
    return Saturation(tuple(steps), knee, len(kept) < len(steps), operating, max(1, math.floor(at_once)))


def _mean_at(rate: float, steps: Sequence[Step]) -> float:
    """Mean seconds end to end, between the two steps around a rate."""
    points = [(step.rate, step.summary.mean_end_to_end or 0.0) for step in steps]
    below = [point for point in points if point[0] <= rate]
    above = [point for point in points if point[0] > rate]
    if not below or not above:
        return (below or above)[-1 if below else 0][1]
    (left, low), (right, high) = below[-1], above[0]
    return low + (high - low) * (rate - left) / (right - left)
