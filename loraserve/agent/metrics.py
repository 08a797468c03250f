"""The agent's own metrics; vLLM's are re-exported beside them."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from loraserve.agent.start_cache import CacheUse
from loraserve.agent.vllm import Vllm, VllmRefused, VllmUnreachable
from loraserve.contract.agent_state import AdapterStatus, AgentState, State

disable_created_metrics()  # a second series for each counter, which nothing reads
VLLM_METRICS_SECONDS = 10.0
"""vLLM writes them out between two tokens of its streams."""
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
        self.swaps = Counter(
            "loraserve_adapter_swaps",
            "Versions that began to drain because their successor was ready.",
            registry=self._registry,
        )
        self.evictions = Counter(
            "loraserve_adapter_evictions",
            "Versions that were unloaded because others were asked for later.",
            registry=self._registry,
        )
        self.reconcile_errors = Counter(
            "loraserve_reconcile_errors",
            "Failed attempts to fetch, load or unload an adapter, and failed passes.",
            registry=self._registry,
        )

    def follow(self, state: Callable[[], AgentState], start_cache: Callable[[], CacheUse]) -> None:
        """Exports, at every scrape, what these then return."""
        self._registry.register(_StateCollector(state, start_cache))

    def exposition(self) -> str:
        """All of the agent's metrics in the Prometheus text format."""
        return generate_latest(self._registry).decode()


class VllmMetrics:
    """vLLM's metrics as they were at most VLLM_METRICS_SECONDS ago; asked for no oftener, whoever scrapes how often.

    Left out is what concerns sets of adapters, which Prometheus would keep one series each of; the agent's own metrics say
    when each adapter was used.
    """

    def __init__(self, vllm: Vllm, clock: Callable[[], float] = time.monotonic) -> None:
        self._vllm = vllm
        self._clock = clock
        self._lock = threading.Lock()
        self._asked_at: float | None = None
        self._text = ""

    def text(self) -> str:
        """In the Prometheus text format; empty where vLLM did not answer. Only one caller waits for vLLM."""
        if self._lock.acquire(blocking=False):
            try:
                if self._asked_at is None or self._clock() - self._asked_at >= VLLM_METRICS_SECONDS:
                    self._asked_at, self._text = self._clock(), self._ask()
            finally:
                self._lock.release()
        return self._text

    def _ask(self) -> str:
        try:
            lines = self._vllm.metrics().splitlines(keepends=True)
        except (VllmUnreachable, VllmRefused):
            return ""
        return "".join(line for line in lines if not line.startswith("vllm:lora_"))


class _StateCollector(Collector):
    def __init__(self, state: Callable[[], AgentState], start_cache: Callable[[], CacheUse]) -> None:
        self._state = state
        self._start_cache = start_cache

    def collect(self) -> Iterable[GaugeMetricFamily]:
        state = self._state()
        followed = state.base is not None and state.problem is None
        yield _gauge("loraserve_desired_followed", "1 if the newest desired state is in force.", followed)
        yield _gauge("loraserve_vllm_up", "1 if vLLM answered the agent's last question.", state.loaded is not None)
        uses = GaugeMetricFamily("loraserve_start_cache", "1 for what became of the start cache.", labels=("use",))
        for use in CacheUse:
            uses.add_metric([use], float(use is self._start_cache()))
        yield uses
        if state.slots:
            yield _gauge("loraserve_slots", "Adapters that vLLM holds on the GPU at once.", state.slots.total)
            yield _gauge("loraserve_slots_used", "Adapter versions that vLLM holds.", state.slots.used)
        yield from _adapter_gauges(state.adapters)


def _adapter_gauges(adapters: Sequence[AdapterStatus]) -> Iterable[GaugeMetricFamily]:
    version = ("adapter", "version")
    states = GaugeMetricFamily("loraserve_adapter_state", "1 for the state it is in.", labels=(*version, "state"))
    causes = GaugeMetricFamily("loraserve_adapter_quarantined", "1, with the cause.", labels=(*version, "cause"))
    uses = GaugeMetricFamily(
        "loraserve_adapter_last_used_timestamp_seconds", "When vLLM last had a request for it.", labels=version
    )
    for adapter in adapters:
        for value in State:
            states.add_metric([adapter.name, adapter.version, value], float(adapter.state is value))
        if adapter.cause:
            causes.add_metric([adapter.name, adapter.version, adapter.cause], 1.0)
        if adapter.last_used:
            uses.add_metric([adapter.name, adapter.version], adapter.last_used)
    return states, causes, uses


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=float(value))
