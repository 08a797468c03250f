"""From no replica to the first token, phase by phase."""

from loraserve.contract.addresses import VLLM
from loraserve.monitoring.metrics import COLD_START_PHASE, WAIT, mean, quantile
from loraserve.monitoring.panels import Dashboard, Look, Panel, Query, Unit
from loraserve.planning.cold_start import FROM_ZERO, ON_WARM_NODE

DASHBOARD = Dashboard(
    "loraserve-cold-start",
    "Cold start",
    (
        Panel(
            "Phases of a start, mean",
            Unit.SECONDS,
            (Query(mean(COLD_START_PHASE, "phase", window="$__range"), "{{phase}}"),),
            "`pod`: the node. `model`: vLLM's image, weights, compilation. docs/cold-start.md has what each should take.",
            warn=FROM_ZERO.high,
            look=Look.STACKED,
        ),
        Panel(
            "Starts from zero",
            Unit.COUNT,
            (Query("sum (increase(loraserve_gateway_cold_starts_total[$__range]))", "in this time"),),
            "Many a day: gpuIdleMinutes is shorter than the pauses between requests.",
            look=Look.NUMBER,
        ),
        Panel(
            "How long requests were held, P95",
            Unit.SECONDS,
            (Query(quantile(0.95, WAIT), "held"),),
            "Above: slower than on a node that is there. At the gateway's limit, callers get 503 model_starting.",
            warn=ON_WARM_NODE.high,
        ),
        Panel(
            "What became of the start cache",
            Unit.COUNT,
            (Query("sum by (use) (loraserve_start_cache)", "{{use}}"),),
            "Pods by how their vLLM started. `hit`: with what an earlier one compiled. `none`: the stack has none.",
            look=Look.STACKED,
        ),
        Panel(
            "GPU nodes",
            Unit.COUNT,
            (
                Query('count (kube_node_status_allocatable{resource="nvidia_com_gpu"} > 0) or vector(0)', "there"),
                Query(f'sum (kube_deployment_spec_replicas{{deployment="{VLLM}"}})', "replicas asked for"),
            ),
            "Replicas without a node: runbook, GpuNodeDoesNotArrive. A node without replicas: GpuNodeIdle.",
        ),
    ),
)
