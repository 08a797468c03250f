"""The agent's own metrics; vLLM's are re-exported beside them."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from loraserve.agent.state import AgentState, State

FETCH_BUCKETS_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.fetch_seconds = Histogram(
            "loraserve_adapter_fetch_seconds",
            "Time to fetch and verify an adapter; one that is on disk already counts too.",
            registry=self._registry,
            buckets=FETCH_BUCKETS_SECONDS,
        )
        self.reconcile_errors = Counter(
            "loraserve_reconcile_errors",
            "Failed attempts to fetch, load or unload an adapter, and failed passes.",
            registry=self._registry,
        )

    def follow(self, state: Callable[[], AgentState]) -> None:
        """Exports, at every scrape, what `state` then returns."""
        self._registry.register(_StateCollector(state))

    def exposition(self) -> str:
        """All of the agent's metrics in the Prometheus text format."""
        return generate_latest(self._registry).decode()


class _StateCollector(Collector):
    def __init__(self, state: Callable[[], AgentState]) -> None:
        self._state = state

    def collect(self) -> Iterable[GaugeMetricFamily]:
        state = self._state()
        followed = GaugeMetricFamily("loraserve_desired_followed", "1 if the mounted desired state is in force.")
        followed.add_metric([], float(state.base is not None and state.problem is None))
        answers = GaugeMetricFamily("loraserve_vllm_up", "1 if vLLM answered the agent's last question.")
        answers.add_metric([], float(state.loaded is not None))
        adapters = GaugeMetricFamily(
            "loraserve_adapter_state", "1 for the state an adapter is in.", labels=("adapter", "version", "state")
        )
        for adapter in state.adapters:
            for value in State:
                adapters.add_metric([adapter.name, adapter.version, value], float(adapter.state is value))
        return followed, answers, adapters
