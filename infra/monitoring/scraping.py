"""What Prometheus scrapes of ours."""

from __future__ import annotations

import pulumi
import pulumi_kubernetes as k8s

from infra.names import METRICS_PORT_NAME, VLLM, VLLM_SELECTOR

SCRAPE_SECONDS = 30
_TIMEOUT_SECONDS = 10


def vllm_service_monitor(
    namespace: pulumi.Input[str], opts: pulumi.ResourceOptions
) -> k8s.apiextensions.CustomResource:
    """Scrapes vLLM's metrics where the agent re-exports them."""
    return k8s.apiextensions.CustomResource(
        VLLM,
        api_version="monitoring.coreos.com/v1",
        kind="ServiceMonitor",
        metadata={"name": VLLM, "namespace": namespace},
        spec={
            "selector": {"matchLabels": VLLM_SELECTOR},
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
