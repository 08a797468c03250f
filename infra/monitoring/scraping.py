"""What Prometheus scrapes of ours."""

from __future__ import annotations

import pulumi
import pulumi_kubernetes as k8s

from infra.names import METRICS_PORT_NAME

SCRAPE_SECONDS = 30
_TIMEOUT_SECONDS = 10


def service_monitor(
    name: str, selector: dict[str, str], namespace: pulumi.Input[str], opts: pulumi.ResourceOptions
) -> k8s.apiextensions.CustomResource:
    """Scrapes a Service's metrics port: vLLM's metrics where the agent re-exports them, and the gateway's."""
    return k8s.apiextensions.CustomResource(
        name,
        api_version="monitoring.coreos.com/v1",
        kind="ServiceMonitor",
        metadata={"name": name, "namespace": namespace},
        spec={
            "selector": {"matchLabels": selector},
            "endpoints": [
                {
                    "port": METRICS_PORT_NAME,
                    "path": "/metrics",
                    "interval": f"{SCRAPE_SECONDS}s",
                    "scrapeTimeout": f"{_TIMEOUT_SECONDS}s",
                }
            ],
        },
        opts=opts,
    )
