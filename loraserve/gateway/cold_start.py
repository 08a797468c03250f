"""How long a start from zero takes, phase by phase, as the requests that wait for it see it."""

import time
from collections.abc import Callable

from loraserve.gateway.metrics import Metrics
from loraserve.gateway.pods import Pods

PHASES = ("pod", "agent", "model", "adapters")
"""Until the pod has an address, its agent answers, its vLLM answers, and its adapters are ready."""


class ColdStarts:
    """Told of everything that happens to the pods; keeps the estimate that Retry-After is made of."""

    def __init__(
        self, pods: Pods, metrics: Metrics, assumed_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pods = pods
        self._metrics = metrics
        self._clock = clock
        self._expected = assumed_seconds
        self._marks: list[float] = []
        """When the start that is under way began, and when each of its phases ended."""

    def begin(self) -> None:
        """A request has to wait. Where no vLLM answers, that is a start from zero."""
        if not self._marks and not self._pods.awake:
            self._marks = [self._clock()]

    def observe(self, someone_waits: bool) -> None:
        """Looks how far the start has come."""
        if not self._marks:
            return
        if not self._pods.all and not someone_waits:
            self._marks = []  # nobody wants it any more
            return
        while len(self._marks) <= self._stage():
            phase = PHASES[len(self._marks) - 1]
            self._metrics.cold_start_phase.labels(phase).observe(self._clock() - self._marks[-1])
            self._marks.append(self._clock())
        if len(self._marks) > len(PHASES):
            self._expected = self._marks[-1] - self._marks[0]
            self._metrics.cold_starts.inc()
            self._marks = []

    def remaining(self) -> float:
        """Seconds until the model is expected to answer."""
        elapsed = self._clock() - self._marks[0] if self._marks else 0.0
        return max(1.0, self._expected - elapsed)

    def _stage(self) -> int:
        """How many phases are over."""
        if self._pods.awake:
            return 4 if any(pod.state.ready for pod in self._pods.heard) else 3
        return 2 if self._pods.heard else 1 if self._pods.all else 0
