"""What somebody has to look at: rules on metrics that exist, each with what to do."""

from __future__ import annotations

from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.monitoring import metrics
from infra.names import GATEWAY


def gateway_rules() -> list[dict[str, Any]]:
    """Requests that were not answered as asked."""
    return [
        _rule(
            "AdapterAnsweredByBase",
            f"sum by (model) (increase({metrics.GATEWAY_FALLBACKS}[10m])) > 0",
            "The base model answers for {{ $labels.model }}.",
            "`loraserve status` says why the adapter does not.",
        ),
        _rule(
            "GatewayRefusesRequests",
            f'sum by (outcome) (increase({metrics.GATEWAY_REQUESTS}{{outcome=~"overloaded|model_starting|upstream_.*"}}[10m])) > 0',
            "Clients get {{ $labels.outcome }}.",
            "The model does not start in time, or breaks; the gateway's access log names the requests.",
        ),
    ]


def gateway_alerts(namespace: pulumi.Input[str], opts: pulumi.ResourceOptions) -> k8s.apiextensions.CustomResource:
    """The rules as the Prometheus operator reads them."""
    return k8s.apiextensions.CustomResource(
        f"{GATEWAY}-alerts",
        api_version="monitoring.coreos.com/v1",
        kind="PrometheusRule",
        metadata={"name": GATEWAY, "namespace": namespace},
        spec={"groups": [{"name": GATEWAY, "rules": gateway_rules()}]},
        opts=opts,
    )


def _rule(name: str, expression: str, summary: str, action: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "labels": {"severity": "warning"},
        "annotations": {"summary": summary, "description": action},
    }
