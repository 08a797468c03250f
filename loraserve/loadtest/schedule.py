"""Which calls are made, and when: all of it follows from the scenario and a seed, before anything is sent. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from loraserve.loadtest.prompts import RETRIEVED_WORDS, Kind, prompt

BASE_SHARE = 0.3
"""Of the calls that go to the base model; the adapters share the rest."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Phase:
    """`rate` calls a second for so many seconds. `kinds` are shares."""

    name: str
    seconds: float
    rate: float
    kinds: Mapping[Kind, float]
    judged: bool = True
    """Whether objectives hold in it."""


@dataclass(frozen=True)
class Call:
    """One request. `due` is in seconds from the start of the run."""

    due: float
    phase: str
    model: str
    kind: Kind
    prompt: str


NORMAL = {Kind.SHORT: 0.5, Kind.MEDIUM: 0.3, Kind.RAG: 0.2}
FIVE_PHASES = (
    Phase("warm-up", 120, 2, {Kind.SHORT: 0.7, Kind.MEDIUM: 0.3}, judged=False),
    Phase("normal", 240, 5, NORMAL),
    Phase("spike", 180, 12, {Kind.SHORT: 0.3, Kind.MEDIUM: 0.4, Kind.RAG: 0.3}),
    Phase("recovery", 180, 5, NORMAL),
    Phase("cool-down", 120, 2, {Kind.SHORT: 0.8, Kind.MEDIUM: 0.2}),
)
OVERLOAD = (
    Phase("before", 30, 2, NORMAL),
    Phase("overload", 60, 400, NORMAL, judged=False),
    Phase("after", 60, 2, NORMAL),
)


def tenants(rate: float, seconds: float) -> tuple[Phase, ...]:
    """One phase, after a minute at its rate that warms up the adapters' slots."""
    warm_up = Phase("warm-up", 60, rate, NORMAL, judged=False)
    return warm_up, Phase("tenants", seconds, rate, NORMAL)


def shortened(phases: Sequence[Phase], factor: float) -> tuple[Phase, ...]:
    """The same rates for another time."""
    return tuple(replace(phase, seconds=phase.seconds * factor) for phase in phases)


def base_and_adapters(base: str, adapters: Sequence[str]) -> dict[str, float]:
    """Shares by model: 30% to the base model, 70% over the adapters evenly."""
    if not adapters:
        return {base: 1.0}
    return {base: BASE_SHARE} | {name: (1 - BASE_SHARE) / len(adapters) for name in adapters}


def zipf(models: Sequence[str], exponent: float) -> dict[str, float]:
    """Shares by model, the first one most: the k-th has 1 / k^exponent of its."""
    return {name: 1 / rank**exponent for rank, name in enumerate(models, 1)}


def schedule(
    phases: Sequence[Phase], models: Mapping[str, float], seed: int, retrieved_words: int = RETRIEVED_WORDS
) -> tuple[Call, ...]:
    """All calls in order.

    Arrivals of a phase are a Poisson process given its count: `rate x seconds` independent uniform times. So rate and
    shares are exact in every run, and only order and gaps follow from the seed.
    """
    rng, begin, calls = random.Random(seed), 0.0, list[Call]()
    for phase in phases:
        count = round(phase.rate * phase.seconds)
        dues = sorted(begin + rng.random() * phase.seconds for _ in range(count))
        kinds, names = _dealt(phase.kinds, count, rng), _dealt(models, count, rng)
        calls += [
            Call(due, phase.name, name, kind, prompt(kind, rng, retrieved_words))
            for due, kind, name in zip(dues, kinds, names, strict=True)
        ]
        begin += phase.seconds
    return tuple(calls)


def portions(shares: Mapping[_T, float], count: int) -> dict[_T, int]:
    """`count` in whole parts after `shares`, by largest remainder."""
    total = sum(shares.values())
    exact = {key: count * share / total for key, share in shares.items()}
    whole = {key: int(part) for key, part in exact.items()}
    for key in sorted(exact, key=lambda key: whole[key] - exact[key])[: count - sum(whole.values())]:
        whole[key] += 1
    return whole


def _dealt(shares: Mapping[_T, float], count: int, rng: random.Random) -> list[_T]:
    dealt = [key for key, part in portions(shares, count).items() for _ in range(part)]
    rng.shuffle(dealt)
    return dealt
