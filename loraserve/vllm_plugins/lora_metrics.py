"""vLLM's metrics about adapters with an upper bound: a plugin that runs inside vLLM (`vllm.stat_logger_plugins`).

vLLM 0.32 gives `vllm:lora_requests_info` one more series for every ordered set of adapters that was ever in use at once, and
never drops one: 50 adapters make 22 MB of metrics in an hour, which vLLM writes out in the same event loop as its streams.
Being a PrometheusStatLogger, this one takes the place of vLLM's own. It imports nothing of ours.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:

    class PrometheusStatLogger:
        """What is used of vLLM's; vLLM is not installed beside this source."""

        gauge_lora_info: Any

        def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None: ...

        def record(self, scheduler_stats: Any, *others: Any, **named: Any) -> None: ...

else:
    try:
        from vllm.v1.metrics.loggers import PrometheusStatLogger
    except ImportError:  # beside this source; a vLLM that has no such logger refuses the plugin and does not start
        PrometheusStatLogger = object

LAST_USED = "vllm:lora_last_used_timestamp_seconds"
MOST_ADAPTERS = 512
"""Those used last are told; vLLM holds fewer."""


class LoraMetrics(PrometheusStatLogger):
    """vLLM's own metrics; of the sets of adapters in use only the present one, and when each adapter was in use last."""

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        super().__init__(vllm_config, engine_indexes)
        if self.gauge_lora_info is not None:
            self.gauge_lora_info = _Present(self.gauge_lora_info)
        self._last_used = _LastUsed()
        REGISTRY.register(self._last_used)

    def record(self, scheduler_stats: Any, *others: Any, **named: Any) -> None:
        super().record(scheduler_stats, *others, **named)
        if scheduler_stats is not None:
            self._last_used.see(scheduler_stats.running_lora_adapters)
            self._last_used.see(scheduler_stats.waiting_lora_adapters)


class _LastUsed(Collector):
    _name = LAST_USED
    """By its prefix vLLM knows what to drop from the registry before it makes its metrics anew."""

    def __init__(self) -> None:
        self._at: OrderedDict[str, float] = OrderedDict()

    def see(self, adapters: Iterable[str]) -> None:
        now = time.time()
        for adapter in adapters:
            self._at[adapter] = now
            self._at.move_to_end(adapter)
        while len(self._at) > MOST_ADAPTERS:
            self._at.popitem(last=False)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        told = GaugeMetricFamily(LAST_USED, "When a request for the adapter last ran or waited.", labels=["lora_name"])
        for adapter, at in self._at.copy().items():
            told.add_metric([adapter], at)
        yield told


class _Present:
    """A gauge of one series: that of the labels given last."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._labels: dict[str, Any] = {}

    def labels(self, **labels: Any) -> Gauge:
        if labels != self._labels:
            self._gauge.clear()
            self._labels = labels
        return self._gauge.labels(**labels)
