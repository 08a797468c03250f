"""What came of a run's calls: latencies from when each was due, quantiles with their intervals, goodput, verdicts. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from loraserve.contract.served_name import ServedName
from loraserve.loadtest.schedule import Call
from loraserve.planning.objectives import Objective

LATE_SECONDS = 0.01
"""A call that leaves later than this after it was due is the client's fault, and counted."""
LATE_SHARE = 0.01
"""With more of them a run says as much of the client as of the server."""
QUANTILES = (0.5, 0.95, 0.99)
REFUSALS = ("overloaded", "rate_limit_exceeded", "model_starting")
"""What a server under too much load may say."""
NOBODY = "none"
_Z95 = 1.96


@dataclass(slots=True)
class Outcome:
    """One call. Times are in seconds from the start of the run."""

    call: Call
    sent: float
    pieces: list[float] = field(default_factory=list)
    """When each piece of the text came."""
    ended: float = 0.0
    tokens: int = 0
    """Written, as vLLM counts; the pieces, where it did not say."""
    served: str | None = None
    """Who answered, as `name@version`; a base model has no version."""
    error: str | None = None

    @property
    def first_token(self) -> float:
        """From when it was due: what it waited in this client counts too. Seconds."""
        return (self.pieces[0] if self.pieces else self.ended) - self.call.due

    @property
    def end_to_end(self) -> float:
        return self.ended - self.call.due

    @property
    def between(self) -> Iterator[float]:
        return (later - earlier for earlier, later in pairwise(self.pieces))

    @property
    def version(self) -> str:
        if self.served is None:
            return NOBODY
        return ServedName(self.served).version or "base"

    def meets(self, objective: Objective) -> bool:
        return self.error is None and self.first_token <= objective.first_token_seconds


@dataclass(frozen=True)
class Quantile:
    """Of a sample, with the 95% interval that its order statistics give; None: the sample is too small for that side."""

    q: float
    value: float
    low: float | None
    high: float | None


def quantiles(values: Iterable[float], wanted: Sequence[float] = QUANTILES) -> tuple[Quantile, ...]:
    """By nearest rank. The interval holds for independent values; those that queue together are not, and vary more."""
    ordered = sorted(values)
    return tuple(_quantile(ordered, q) for q in wanted) if ordered else ()


def _quantile(ordered: Sequence[float], q: float) -> Quantile:
    """Ranks of the interval: the normal approximation of the binomial count of values below the quantile."""
    count = len(ordered)
    spread = _Z95 * math.sqrt(count * q * (1 - q))
    low, high = math.floor(count * q - spread), math.ceil(count * q + spread) + 1
    return Quantile(
        q,
        ordered[max(math.ceil(count * q), 1) - 1],
        ordered[low - 1] if low >= 1 else None,
        ordered[high - 1] if high <= count else None,
    )


@dataclass(frozen=True)
class Summary:
    """Of some of a run's calls. Rates are a second, times are in seconds."""

    phase: str | None
    model: str | None
    version: str | None
    """None: over all of them."""
    calls: int
    succeeded: int
    good: int
    """Succeeded, with the first token within its model's objective."""
    late: int
    errors: Mapping[str, int]
    tokens: int
    first_token: tuple[Quantile, ...]
    between_tokens: tuple[Quantile, ...]
    end_to_end: tuple[Quantile, ...]
    mean_end_to_end: float | None
    """Of those that succeeded, as are the quantiles."""

    @property
    def goodput(self) -> float:
        """Share."""
        return self.good / self.calls if self.calls else 0.0


def summarize(
    outcomes: Sequence[Outcome],
    objectives: Mapping[str, Objective],
    *,
    phase: str | None = None,
    model: str | None = None,
    version: str | None = None,
) -> Summary:
    """Over those that have this phase, model and version."""
    chosen = [
        one
        for one in outcomes
        if phase in (None, one.call.phase) and model in (None, one.call.model) and version in (None, one.version)
    ]
    answered = [one for one in chosen if one.error is None]
    whole = [one.end_to_end for one in answered]
    return Summary(
        phase,
        model,
        version,
        calls=len(chosen),
        succeeded=len(answered),
        good=sum(one.meets(objectives.get(one.call.model, Objective())) for one in chosen),
        late=sum(is_late(one) for one in chosen),
        errors=dict(Counter(one.error for one in chosen if one.error)),
        tokens=sum(one.tokens for one in chosen),
        first_token=quantiles(one.first_token for one in answered),
        between_tokens=quantiles(gap for one in answered for gap in one.between),
        end_to_end=quantiles(whole),
        mean_end_to_end=sum(whole) / len(whole) if whole else None,
    )


def summaries(outcomes: Sequence[Outcome], objectives: Mapping[str, Objective]) -> tuple[Summary, ...]:
    """The whole, then by phase, by model and version, and by all three."""
    versions = dict.fromkeys((one.call.model, one.version) for one in outcomes)
    phases = dict.fromkeys(one.call.phase for one in outcomes)
    rows = [summarize(outcomes, objectives)]
    rows += [summarize(outcomes, objectives, phase=phase) for phase in phases]
    for phase in (None, *phases):
        rows += [
            summarize(outcomes, objectives, phase=phase, model=model, version=version)
            for model, version in sorted(versions)
        ]
    return tuple(row for row in rows if row.calls)


def is_late(outcome: Outcome) -> bool:
    return outcome.sent - outcome.call.due > LATE_SECONDS


def lateness(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Where the client was too slow for its figures to be the server's."""
    late = sum(map(is_late, outcomes))
    if late > LATE_SHARE * len(outcomes):
        yield (
            f"{late} of {len(outcomes)} calls left more than {LATE_SECONDS * 1000:.0f} ms late: this client could not keep up, "
            "and its figures are its own; run it on a quieter machine or nearer to the gateway"
        )


def problems(outcomes: Sequence[Outcome], objectives: Mapping[str, Objective], judged: Iterable[str]) -> list[str]:
    """What a threshold forbids: objectives missed in the judged phases, by model, and whatever is no answer in any."""
    found, wanted = [*lateness(outcomes)], set(judged)
    broken = Counter(
        one.error for one in outcomes if one.error and one.error not in REFUSALS and one.call.phase not in wanted
    )
    found += [f"{count} calls ended in {error} in a phase without objectives" for error, count in broken.items()]
    for model in sorted({one.call.model for one in outcomes}):
        mine = [one for one in outcomes if one.call.model == model and one.call.phase in wanted]
        if mine:
            found += _missed(summarize(mine, objectives), model, objectives.get(model, Objective()))
    return found


def _missed(summary: Summary, model: str, objective: Objective) -> Iterator[str]:
    available = summary.succeeded / summary.calls
    if available < objective.availability:
        said = ", ".join(f"{count} x {error}" for error, count in summary.errors.items())
        yield f"{model}: {available:.2%} of the calls succeeded, {objective.availability:.2%} is its objective ({said})"
    in_time = summary.good / summary.succeeded if summary.succeeded else 1.0
    if in_time < objective.first_token_share:
        yield (
            f"{model}: {in_time:.1%} of the answers began within {objective.first_token_seconds:g} s, "
            f"{objective.first_token_share:.1%} is its objective"
        )
