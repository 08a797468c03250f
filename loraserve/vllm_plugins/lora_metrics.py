"""vLLM's metrics about adapters with an upper bound: a plugin that runs inside vLLM (`vllm.stat_logger_plugins`).

vLLM 0.32 gives `vllm:lora_requests_info` one more series for every ordered set of adapters that was ever in use at once, and
never drops one: 50 adapters make 22 MB of metrics in an hour, which vLLM writes out in the same event loop as its streams.
Being a PrometheusStatLogger, this one takes the place of vLLM's own. It imports nothing of ours.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from prometheus_client import Gauge

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
        # The prefix is vLLM's, which drops every metric that has it from its registry before it makes them anew.
        self._last_used = Gauge(LAST_USED, "When a request for the adapter last ran or waited.", ["lora_name"])
        self._recent: OrderedDict[str, None] = OrderedDict()

    def record(self, scheduler_stats: Any, *others: Any, **named: Any) -> None:
        super().record(scheduler_stats, *others, **named)
        if scheduler_stats is not None:
            for name in scheduler_stats.running_lora_adapters.keys() | scheduler_stats.waiting_lora_adapters.keys():
                self._see(name)

    def _see(self, adapter: str) -> None:
        self._recent[adapter] = None
        self._recent.move_to_end(adapter)
        if len(self._recent) > MOST_ADAPTERS:
            self._last_used.remove(self._recent.popitem(last=False)[0])
        self._last_used.labels(adapter).set_to_current_time()


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
