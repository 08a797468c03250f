"""Every metric that a panel or a rule may use, with its labels, by the process that exports it.

Ours and vLLM's are compared with what the running processes export; the others' were read in their source at the
version that the chart installs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SCRAPE_SECONDS = 30
"""Between two looks of Prometheus at a target, and at the rules."""


class Source(StrEnum):
    VLLM = "vLLM 0.32.0, vllm/v1/metrics/loggers.py"
    GATEWAY = "loraserve/gateway/metrics.py"
    AGENT = "loraserve/agent/metrics.py"
    DCGM = "dcgm-exporter 4.8.2"
    KUBE_STATE_METRICS = "kube-state-metrics 2.18.0"
    AUTOSCALER = "cluster-autoscaler 1.35.2"
    KEDA = "KEDA 2.21"
    PROMETHEUS = "Prometheus itself, of each of its targets"


@dataclass(frozen=True)
class Metric:
    """One series family, under the name that PromQL knows it by."""

    name: str
    source: Source
    labels: frozenset[str] = frozenset()
    """Its own; those that Prometheus adds to every target are in TARGET_LABELS."""

    def __str__(self) -> str:
        return self.name


TARGET_LABELS = frozenset(
    {"job", "instance", "namespace", "pod", "service", "endpoint", "container", "exported_pod", "exported_namespace"}
)
"""What the Prometheus operator's scrape configuration adds, and what a target's own label of such a name becomes."""


def _family(source: Source, *names: str, labels: str = "") -> list[Metric]:
    return [Metric(name, source, frozenset(labels.split())) for name in names]


def _histogram(source: Source, name: str, labels: str = "") -> list[Metric]:
    own = frozenset(labels.split())
    return [
        Metric(f"{name}_bucket", source, own | {"le"}),
        Metric(f"{name}_sum", source, own),
        Metric(f"{name}_count", source, own),
    ]


_ENGINE = "model_name engine"
FAILURES = (
    "overloaded",
    "model_starting",
    "adapter_loading",
    "adapter_unavailable",
    "gateway_stopping",
    "gpu_hours_spent",
    "internal_error",
    "upstream_error",
    "upstream_timeout",
    "vllm_500",
)
"""Outcomes of requests that failed through no fault of the caller."""
OK = "ok"
OVER_LIMIT = "rate_limit_exceeded"
"""The outcome of a request beyond what its tenant may ask."""

FIRST_TOKEN = "loraserve_gateway_time_to_first_token_seconds"
INTER_TOKEN = "loraserve_gateway_inter_token_latency_seconds"
DURATION = "loraserve_gateway_request_seconds"
REQUESTS = "loraserve_gateway_requests_total"
SAMPLE_OUTCOMES = ("written", "not written", "too large", "too many")
NO_ADAPTER = ("base", "none", "other")
"""Versions of a request that no declared adapter answered."""
WAIT = "loraserve_gateway_wait_seconds"
LOAD_WAIT = "loraserve_gateway_adapter_load_wait_seconds"
COLD_START_PHASE = "loraserve_gateway_cold_start_phase_seconds"
FETCH = "loraserve_adapter_fetch_seconds"
CANARY = "loraserve_gateway_canary_callers"
CANARY_MOMENTS = (
    "callers",
    "requests",
    "failures",
    "seconds",
    "requests_squared",
    "failures_squared",
    "failures_requests",
    "seconds_squared",
    "seconds_requests",
)
"""Of what is summed over callers: enough for a mean of requests, and for its variance between callers."""
VLLM_FIRST_TOKEN = "vllm:time_to_first_token_seconds"
VLLM_DURATION = "vllm:e2e_request_latency_seconds"
VLLM_INTER_TOKEN = "vllm:inter_token_latency_seconds"
VLLM_QUEUE = "vllm:request_queue_time_seconds"
KV_CACHE_USAGE = "vllm:kv_cache_usage_perc"

ALL = {
    metric.name: metric
    for metric in (
        *_family(Source.VLLM, "vllm:num_requests_running", "vllm:num_requests_waiting", labels=_ENGINE),
        *_family(Source.VLLM, "vllm:num_requests_waiting_by_reason", labels=f"{_ENGINE} reason"),
        *_family(Source.VLLM, KV_CACHE_USAGE, "vllm:num_preemptions_total", labels=_ENGINE),
        *_family(Source.VLLM, "vllm:prompt_tokens_total", "vllm:generation_tokens_total", labels=_ENGINE),
        *_family(Source.VLLM, "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", labels=_ENGINE),
        *_family(Source.VLLM, "vllm:request_success_total", labels=f"{_ENGINE} finished_reason"),
        *_histogram(Source.VLLM, VLLM_FIRST_TOKEN, _ENGINE),
        *_histogram(Source.VLLM, VLLM_INTER_TOKEN, _ENGINE),
        *_histogram(Source.VLLM, VLLM_DURATION, _ENGINE),
        *_histogram(Source.VLLM, VLLM_QUEUE, _ENGINE),
        *_family(Source.GATEWAY, REQUESTS, labels="model version outcome"),
        *_family(Source.GATEWAY, "loraserve_gateway_tenant_requests_total", labels="tenant outcome"),
        *_family(Source.GATEWAY, "loraserve_gateway_tokens_total", labels="tenant model version direction"),
        *_family(Source.GATEWAY, CANARY, labels="model version moment"),
        *_family(Source.GATEWAY, "loraserve_gateway_evaluation_score", labels="model version of"),
        *_family(Source.GATEWAY, "loraserve_gateway_evaluation_failed", labels="model version"),
        *_family(Source.GATEWAY, "loraserve_gateway_evaluation_timestamp_seconds", labels="model version"),
        *_family(Source.GATEWAY, "loraserve_gateway_fallbacks_total", labels="model reason"),
        *_family(Source.GATEWAY, "loraserve_gateway_empty_answers_total", labels="model version"),
        *_family(Source.GATEWAY, "loraserve_gateway_waiting", labels="model"),
        *_family(Source.GATEWAY, "loraserve_gateway_tenant_waiting", labels="tenant"),
        *_family(Source.GATEWAY, "loraserve_gateway_running", "loraserve_gateway_waiting_limit"),
        *_family(Source.GATEWAY, "loraserve_gateway_usage_unwritten"),
        *_family(Source.GATEWAY, "loraserve_gateway_samples_total", labels="outcome"),
        *_family(Source.GATEWAY, "loraserve_gateway_cold_starts_total"),
        *_family(Source.GATEWAY, "loraserve_gateway_document_refused", labels="document"),
        *_family(Source.GATEWAY, "loraserve_gateway_key_expires_timestamp_seconds", labels="tenant key"),
        *_histogram(Source.GATEWAY, FIRST_TOKEN, "model version"),
        *_histogram(Source.GATEWAY, INTER_TOKEN, "model version"),
        *_histogram(Source.GATEWAY, DURATION, "model version"),
        *_histogram(Source.GATEWAY, WAIT, "model"),
        *_histogram(Source.GATEWAY, LOAD_WAIT),
        *_histogram(Source.GATEWAY, COLD_START_PHASE, "phase"),
        *_family(Source.AGENT, "loraserve_desired_followed", "loraserve_vllm_up"),
        *_family(Source.AGENT, "loraserve_slots", "loraserve_slots_used", "loraserve_adapter_swaps_total"),
        *_family(Source.AGENT, "loraserve_adapter_evictions_total"),
        *_family(Source.AGENT, "loraserve_reconcile_errors_total"),
        *_family(Source.AGENT, "loraserve_start_cache", labels="use"),
        *_family(Source.AGENT, "loraserve_adapter_state", labels="adapter version state"),
        *_family(Source.AGENT, "loraserve_adapter_quarantined", labels="adapter version cause"),
        *_family(Source.AGENT, "loraserve_adapter_last_used_timestamp_seconds", labels="adapter version"),
        *_histogram(Source.AGENT, FETCH),
        *_family(
            Source.DCGM,
            *(f"DCGM_FI_DEV_{field}" for field in ("GPU_UTIL", "FB_USED", "FB_FREE", "POWER_USAGE", "GPU_TEMP")),
            "DCGM_FI_DEV_XID_ERRORS",
            "DCGM_FI_DEV_MEM_COPY_UTIL",
            labels="gpu UUID pci_bus_id device modelName Hostname",
        ),
        *_family(Source.KUBE_STATE_METRICS, "kube_node_status_allocatable", labels="node resource unit"),
        *_family(Source.KUBE_STATE_METRICS, "kube_node_created", labels="node"),
        *_family(Source.KUBE_STATE_METRICS, "kube_deployment_spec_replicas", labels="deployment"),
        *_family(Source.KUBE_STATE_METRICS, "kube_pod_status_unschedulable", labels="uid"),
        *_family(Source.AUTOSCALER, "cluster_autoscaler_failed_scale_ups_total", labels="reason"),
        *_family(Source.KEDA, "keda_scaled_object_errors_total", labels="scaledObject"),
        *_family(Source.PROMETHEUS, "up"),
        *_family(Source.PROMETHEUS, "scrape_samples_post_metric_relabeling"),
    )
}
"""By name."""


def quantile(q: float, histogram: str, *by: str, where: str = "", window: str = "$__rate_interval") -> str:
    """PromQL for a quantile over all replicas."""
    grouped = ", ".join(("le", *by))
    return f"histogram_quantile({q}, sum by ({grouped}) (rate({histogram}_bucket{where}[{window}])))"


def mean(histogram: str, *by: str, where: str = "", window: str = "$__rate_interval") -> str:
    """PromQL for a histogram's mean over all replicas."""
    total, count = (f"{_sum(by)} (rate({histogram}_{part}{where}[{window}]))" for part in ("sum", "count"))
    return f"{total} / {count}"


def rate(counter: str, *by: str, where: str = "", window: str = "$__rate_interval") -> str:
    """PromQL for a counter's growth per second over all replicas."""
    return f"{_sum(by)} (rate({counter}{where}[{window}]))"


def increase(counter: str, *by: str, where: str = "", window: str) -> str:
    """PromQL for a counter's growth within a window over all replicas."""
    return f"{_sum(by)} (increase({counter}{where}[{window}]))"


def adapters_at_once(q: float, namespace: str, window: str) -> str:
    """PromQL for how many versions answered a request within one minute: the quantile of the window's minutes with any.

    More than are ever in vLLM's hands at the same moment, as a request takes less than a minute.
    """
    where = f'{{namespace="{namespace}", version!~"{"|".join(NO_ADAPTER)}"}}'
    active = increase(REQUESTS, "model", "version", where=where, window="1m")
    return f"quantile_over_time({q}, count({active} > 0)[{window}:1m])"


def _sum(by: tuple[str, ...]) -> str:
    return f"sum by ({', '.join(by)})" if by else "sum"
