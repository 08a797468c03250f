"""How long a start from zero may take, phase by phase: the one budget that the gateway's hold, the alert and documents use. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Phase:
    """Seconds, from the shortest to the longest to be expected on a g6.xlarge."""

    name: str
    low: float
    high: float
    kind: Literal["measured", "modelled"]
    source: str
    seen_as: Literal["pod", "agent", "model", "adapters"]
    """The phase of `loraserve_gateway_cold_start_phase_seconds` that it is part of."""
    needs_no_node: bool = False
    """Spared where the node and its images are there."""


_VLLM = "vLLM, nothing cached"
BUDGET = (
    Phase(
        "KEDA and the autoscaler notice",
        2,
        15,
        "modelled",
        "their intervals, 5 and 10 s",
        "pod",
    ),
    Phase(
        "a node is Ready",
        60,
        120,
        "modelled",
        "about 90 s in a published run on a g6.xlarge",
        "pod",
        needs_no_node=True,
    ),
    Phase(
        "vLLM's image",
        60,
        150,
        "modelled",
        "about 120 s in the same run, of an older and smaller image; ours is pulled in parallel (SOCI)",
        "model",
        needs_no_node=True,
    ),
    Phase(
        "base weights",
        5,
        30,
        "modelled",
        "19 s in the same run, 4 GiB from a hub; faster from the bucket",
        "model",
    ),
    Phase(
        _VLLM,
        136,
        165,
        "measured",
        "0.32.0 on an H200, pinned to 4 cores: 136 s; a g6.xlarge's 4 vCPUs are two cores, so a fifth more",
        "model",
    ),
    Phase(
        "adapters and readiness",
        5,
        15,
        "measured",
        "2 s for 50 adapters in the same runs; the readiness probe's period is 10 s",
        "adapters",
    ),
    Phase(
        "what such a list misses",
        0,
        60,
        "modelled",
        "the published run's parts leave 92 to 152 s of it unexplained; imports are in vLLM's line here, real weights on their way to the GPU are not",
        "model",
    ),
)


WITH_START_CACHE = Phase(
    "vLLM, with a start cache",
    24,
    36,
    "measured",
    "the same machine: 24, 24, 26 s, 29 s with the system's file cache emptied; a fifth more, and 1 s for 180 MB from the bucket",
    "model",
)
"""In the place of the line without one; what follows from the budget allows for a start without."""


@dataclass(frozen=True)
class Range:
    """Seconds."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    @property
    def minutes(self) -> str:
        """For people."""
        return f"{math.floor(self.low / 60)} to {math.ceil(self.high / 60)} minutes"


def _sum(phases: Iterable[Phase]) -> Range:
    chosen = tuple(phases)
    return Range(sum(phase.low for phase in chosen), sum(phase.high for phase in chosen))


FROM_ZERO = _sum(BUDGET)
ON_WARM_NODE = _sum(phase for phase in BUDGET if not phase.needs_no_node)
_KEPT = tuple(WITH_START_CACHE if phase.name == _VLLM else phase for phase in BUDGET)
CACHED_FROM_ZERO = _sum(_KEPT)
CACHED_ON_WARM_NODE = _sum(phase for phase in _KEPT if not phase.needs_no_node)
HOLD_SECONDS = math.ceil(FROM_ZERO.high / 60) * 60
"""The gateway holds a request for as long as a start may take, in whole minutes."""
PATIENCE_SECONDS = HOLD_SECONDS + 180
"""Of a client that waits for a whole answer without a byte: it is held, then generated."""
