"""The gateway's metrics. Labels are declared models and fixed words only, so their number is bounded."""

from collections import Counter as Counts
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

OTHER = "other"
"""Requests that never got as far as a declared model."""
_FAST = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SLOW = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_WAITS = (0.1, 1, 5, 15, 30, 60, 120, 240, 360, 480, 600)


class Metrics:
    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "loraserve_gateway_requests",
            "Requests by outcome: ok, client_gone, or the code of the error that the client got.",
            ("model", "outcome"),
            registry=registry,
        )
        self.first_token = Histogram(
            "loraserve_gateway_time_to_first_token_seconds",
            "From the request to the first byte of a streamed answer, waiting included.",
            ("model",),
            registry=registry,
            buckets=_SLOW,
        )
        self.inter_token = Histogram(
            "loraserve_gateway_inter_token_latency_seconds",
            "Between two pieces of a streamed answer.",
            ("model",),
            registry=registry,
            buckets=_FAST,
        )
        self.duration = Histogram(
            "loraserve_gateway_request_seconds",
            "From the request to the last byte of its answer, waiting included.",
            ("model",),
            registry=registry,
            buckets=_SLOW,
        )
        self.wait = Histogram(
            "loraserve_gateway_wait_seconds",
            "Time a request was held before it got its place on a pod.",
            ("model",),
            registry=registry,
            buckets=_WAITS,
        )
        self.tokens = Counter(
            "loraserve_gateway_tokens",
            "Tokens read and written; written ones of a stream without usage are its pieces, read ones are unknown.",
            ("model", "direction"),
            registry=registry,
        )
        self.fallbacks = Counter(
            "loraserve_gateway_fallbacks",
            "Requests to an adapter that the base model answered, by the error that the caller was spared.",
            ("model", "reason"),
            registry=registry,
        )
        self.cold_starts = Counter(
            "loraserve_gateway_cold_starts", "Starts from zero that a request waited for.", registry=registry
        )
        self.cold_start_phase = Histogram(
            "loraserve_gateway_cold_start_phase_seconds",
            "Phases of a start from zero: pod, agent, model, adapters.",
            ("phase",),
            registry=registry,
            buckets=_WAITS,
        )

    def follow(self, waiting: Callable[[], Counts[str]], running: Callable[[], int]) -> None:
        """Exports, at every scrape, what these then return."""
        self._registry.register(_LoadCollector(waiting, running))

    def exposition(self) -> bytes:
        """In the Prometheus text format."""
        return generate_latest(self._registry)


class _LoadCollector(Collector):
    def __init__(self, waiting: Callable[[], Counts[str]], running: Callable[[], int]) -> None:
        self._waiting = waiting
        self._running = running

    def collect(self) -> Iterable[GaugeMetricFamily]:
        waiting = GaugeMetricFamily("loraserve_gateway_waiting", "Requests that are held.", labels=("model",))
        for model, count in self._waiting().items():
            waiting.add_metric([model], count)
        running = GaugeMetricFamily("loraserve_gateway_running", "Requests that a pod is answering.")
        running.add_metric([], self._running())
        return waiting, running
