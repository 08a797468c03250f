"""What it costs now. Prices come from the program, as the series that `rules` records."""

from loraserve.monitoring.metrics import rate
from loraserve.monitoring.panels import Dashboard, Look, Panel, Query, Unit

_NODES = '(count (kube_node_status_allocatable{resource="nvidia_com_gpu"} > 0) or vector(0))'
_TOKENS = rate("loraserve_gateway_tokens_total", window="1h")
_WEIGHTED = "sum by (tenant) (loraserve:weighted_tokens:increase1h)"

DASHBOARD = Dashboard(
    "loraserve-cost",
    "Cost",
    (
        Panel(
            "An hour, now",
            Unit.DOLLARS,
            (Query(f"max (loraserve:idle_dollars_per_hour) + {_NODES} * max (loraserve:gpu_dollars_per_hour)", "now"),),
            "List prices, traffic and logs excluded.",
            look=Look.NUMBER,
        ),
        Panel(
            "An hour, asleep",
            Unit.DOLLARS,
            (Query("max (loraserve:idle_dollars_per_hour)", "idle"),),
            "What stays on while nobody asks; `pulumi destroy` saves it too.",
            look=Look.NUMBER,
        ),
        Panel(
            "GPU hours, last day",
            Unit.COUNT,
            (Query(f"sum_over_time({_NODES}[1d:1m]) / 60", "hours"),),
            "Near 24: something keeps the GPU awake; the tenants page says who asks.",
            look=Look.NUMBER,
            warn=20,
        ),
        Panel(
            "A million tokens at the present rate",
            Unit.DOLLARS,
            (
                Query(
                    f"{_NODES} * max (loraserve:gpu_dollars_per_hour) / ({_TOKENS} * 3600 > 0) * 1e6",
                    "GPU time",
                ),
            ),
            "High at low traffic: the GPU waits. Always-on pays only above the rate where this meets an API's price.",
        ),
        Panel(
            "Share of the GPU by tenant",
            Unit.SHARE,
            (Query(f"{_WEIGHTED} / ignoring (tenant) group_left () (sum ({_WEIGHTED}) > 0)", "{{tenant}}"),),
            "Read and written tokens weighted by what each takes (rules.WRITTEN_TOKEN_WEIGHT), not requests.",
            look=Look.STACKED,
            maximum=1,
        ),
    ),
)
