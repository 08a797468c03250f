"""Slots and versions: what stands where other caches have a hit rate."""

from loraserve.monitoring.metrics import FETCH, LOAD_WAIT, quantile, rate
from loraserve.monitoring.panels import Dashboard, Look, Panel, Query, Unit

_DEFERRED = 'sum (vllm:num_requests_waiting_by_reason{reason="deferred"})'

DASHBOARD = Dashboard(
    "loraserve-lora",
    "LoRA adapters",
    (
        Panel(
            "Slots",
            Unit.COUNT,
            (
                Query("sum (loraserve_slots)", "on the GPU"),
                Query("sum (loraserve_slots_used)", "versions registered"),
            ),
            "More versions than slots share them: fine while few are used at once; see the next panel.",
        ),
        Panel(
            "Requests that wait for a slot",
            Unit.SHARE,
            (Query(f"{_DEFERRED} / (sum (vllm:num_requests_running) + {_DEFERRED} > 0)", "deferred"),),
            "Over 0.2 for minutes: more adapters are active at once than there are slots; raise adapterSlots.",
            warn=0.2,
            maximum=1,
        ),
        Panel(
            "Versions by state",
            Unit.COUNT,
            (Query("sum by (state) (loraserve_adapter_state)", "{{state}}"),),
            "`quarantined` stays until its entry changes; `fetching` or `loading` for minutes: the agent's log.",
            look=Look.STACKED,
        ),
        Panel(
            "Quarantined, and why",
            Unit.COUNT,
            (
                Query(
                    "max by (adapter, version, cause) (loraserve_adapter_quarantined)",
                    "{{adapter}} {{version}}: {{cause}}",
                ),
            ),
            "Each has a reason in `loraserve status`; the others keep serving.",
            look=Look.NUMBER,
            warn=1,
        ),
        Panel(
            "Swaps",
            Unit.COUNT,
            (Query("sum (increase(loraserve_adapter_swaps_total[$__range]))", "in this time"),),
            "A swap without a change of the desired state would be a fault.",
            look=Look.NUMBER,
        ),
        Panel(
            "Time to fetch and verify a version",
            Unit.SECONDS,
            (Query(quantile(0.95, FETCH), "P95"),),
            "Slow: the way to S3, or a large adapter. It delays a new version, never the one that serves.",
        ),
        Panel(
            "Wait for an adapter that is loaded on demand",
            Unit.SECONDS,
            (Query(quantile(0.95, LOAD_WAIT), "P95"),),
            "After 60 s it is 503 `adapter_loading`. Slow: more are asked for at once than are held, or the way to S3.",
        ),
        Panel(
            "Evictions",
            Unit.PER_SECOND,
            (Query(rate("loraserve_adapter_evictions_total"), "versions unloaded for others"),),
            "One every second: more adapters are active than vLLM holds; a second replica, or fewer adapters.",
        ),
        Panel(
            "Failed attempts of the agent",
            Unit.PER_SECOND,
            (Query(rate("loraserve_reconcile_errors_total"), "failed"),),
            "A rate that does not end: S3 or vLLM refuses; the agent's log names it.",
            warn=0.05,
        ),
        Panel(
            "Since an adapter was last used",
            Unit.SECONDS,
            (
                Query(
                    "topk (12, time() - max by (adapter, version) (loraserve_adapter_last_used_timestamp_seconds))",
                    "{{adapter}} {{version}}",
                ),
            ),
            "Days without a request: does anybody need it still?",
            look=Look.NUMBER,
        ),
    ),
)
