"""What Prometheus scrapes of ours."""

from __future__ import annotations

from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.charts import CLUSTER_AUTOSCALER, KEDA
from infra.names import AUTOSCALER_SERVICE_ACCOUNT, KEDA_OPERATOR, METRICS_PORT_NAME, SYSTEM_NAMESPACE
from loraserve.monitoring.metrics import SCRAPE_SECONDS

_TIMEOUT_SECONDS = 10


# What a target says of itself (`namespace` of a ScaledObject, `pod` on a GPU) keeps its name: Prometheus would call it
# `exported_…`, after labels of the exporter's own pod.
KEEP_TARGETS_LABELS: dict[str, Any] = {
    "honorLabels": True,
    "relabelings": [{"action": "labeldrop", "regex": "namespace|pod|container"}],
}


def monitor_autoscaling(keda: bool, opts: pulumi.ResourceOptions) -> None:
    """Scrapes the autoscaler, and KEDA where it is.

    Not by their charts' own monitors: those need the Prometheus operator's kinds first, and the autoscaler's is made in a
    namespace that does not exist.
    """
    autoscaler = {"app.kubernetes.io/instance": CLUSTER_AUTOSCALER.name}
    service_monitor(AUTOSCALER_SERVICE_ACCOUNT, autoscaler, SYSTEM_NAMESPACE, opts, port="http")
    if keda:
        operator = {"app.kubernetes.io/name": KEDA_OPERATOR, "app.kubernetes.io/instance": KEDA.name}
        service_monitor(KEDA_OPERATOR, operator, SYSTEM_NAMESPACE, opts, **KEEP_TARGETS_LABELS)


def service_monitor(
    name: str,
    selector: dict[str, str],
    namespace: pulumi.Input[str],
    opts: pulumi.ResourceOptions,
    *,
    port: str = METRICS_PORT_NAME,
    **endpoint: Any,
) -> k8s.apiextensions.CustomResource:
    """Scrapes a port of a Service: vLLM's metrics where the agent re-exports them, the gateway's, those of operators."""
    return k8s.apiextensions.CustomResource(
        name,
        api_version="monitoring.coreos.com/v1",
        kind="ServiceMonitor",
        metadata={"name": name, "namespace": namespace},
        spec={
            "selector": {"matchLabels": selector},
            "endpoints": [
                {
                    "port": port,
                    "path": "/metrics",
                    "interval": f"{SCRAPE_SECONDS}s",
                    "scrapeTimeout": f"{_TIMEOUT_SECONDS}s",
                    **endpoint,
                }
            ],
        },
        opts=opts,
    )
