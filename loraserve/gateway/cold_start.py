"""How long a start from zero takes, phase by phase, as the requests that wait for it see it."""

import time
from collections.abc import Callable

from loraserve.gateway.metrics import Metrics
from loraserve.gateway.pods import Pods

PHASES = ("pod", "agent", "model", "adapters")
"""Until the pod has an address, its agent answers, its vLLM answers, and its adapters are ready."""


UNKNOWN_SECONDS = 30.0
"""A start that takes longer than the last one: there may be no GPU to be had."""
BUSY_SECONDS = 5.0
"""Awake, but full."""


class ColdStarts:
    """Told of everything that happens to the pods; keeps the estimate that Retry-After is made of."""

    def __init__(
        self,
        pods: Pods,
        metrics: Metrics,
        assumed_seconds: float,
        waiting: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pods = pods
        self._metrics = metrics
        for phase in PHASES:
            metrics.cold_start_phase.labels(phase)
        self._waiting = waiting
        self._clock = clock
        self._expected = assumed_seconds
        self._marks: list[float] = []
        """When the start that is under way began, and when each of its phases ended."""

    def begin(self) -> None:
        """A request has to wait. Where no vLLM answers, that is a start from zero, or joins one."""
        forgotten = not self._pods.all and self._waiting() <= 1
        if not self._pods.awake and (forgotten or not self._marks):
            self._marks = [self._clock()]

    def observe(self) -> None:
        """Looks how far the start has come."""
        while self._marks and len(self._marks) <= self._stage():
            phase = PHASES[len(self._marks) - 1]
            self._metrics.cold_start_phase.labels(phase).observe(self._clock() - self._marks[-1])
            self._marks.append(self._clock())
            if len(self._marks) > len(PHASES):
                self._expected = self._marks[-1] - self._marks[0]
                self._metrics.cold_starts.inc()
                self._marks = []

    def remaining(self) -> float:
        """Seconds after which asking again makes sense."""
        if self._pods.awake:
            return BUSY_SECONDS
        elapsed = self._clock() - self._marks[0] if self._marks else 0.0
        return self._expected - elapsed if elapsed < self._expected else UNKNOWN_SECONDS

    def _stage(self) -> int:
        """How many phases are over."""
        if self._pods.awake:
            return 4 if any(pod.state.ready for pod in self._pods.heard) else 3
        return 2 if self._pods.heard else 1 if self._pods.all else 0
