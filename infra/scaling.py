"""vLLM's replicas follow the requests at the gateway: from nothing to N and back, by KEDA."""

from __future__ import annotations

from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.charts import KEDA, bounded
from infra.names import GATEWAY, GATEWAY_METRICS_PORT, SYSTEM_NAMESPACE, VLLM
from infra.place import serving_namespace
from loraserve.planning.pod_resources import Requests
from loraserve.planning.stack_settings import Settings

POLLING_SECONDS = 5
"""How long a first request may go unnoticed."""
_PART_OF_IDLE_SECONDS = 30
"""Ending an idle pod, and the autoscaler's own look around."""
_REQUESTS = ("waiting", "running")
_KV_CACHE = "kvCacheUsage"
_KV_CACHE_TARGET = 0.77
"""A Horizontal Pod Autoscaler acts from 1.1 times its target on: at 85%."""


def cooldown_seconds(settings: Settings) -> int:
    """How long pods stay without a request: with the time an empty node is kept, it makes gpuIdleMinutes."""
    return (settings.gpu_idle_minutes - settings.node_idle_minutes) * 60 - _PART_OF_IDLE_SECONDS


def keda_values() -> dict[str, Any]:
    """Chart values. Its webhooks only check what people write by hand.

    It reads no Secret outside its own namespace: not by its own right, nor by that on custom kinds, which covers all kinds.
    """
    return {
        "webhooks": {"enabled": False},
        "permissions": {"operator": {"restrict": {"secret": True}}},
        "rbac": {"enabledCustomScaledRefKinds": False},
        "prometheus": {"operator": {"enabled": True}},
        "resources": {
            "operator": bounded(Requests(50, 128), 512),
            "metricServer": bounded(Requests(30, 96), 512),
        },
    }


def scaled_object_spec(settings: Settings) -> dict[str, Any]:
    """What KEDA does with vLLM's Deployment. Any request, waiting or running, keeps it from going to zero."""
    namespace = serving_namespace(settings)
    return {
        "scaleTargetRef": {"name": VLLM},
        "minReplicaCount": settings.inference_replicas,
        "maxReplicaCount": settings.most_replicas,
        "pollingInterval": POLLING_SECONDS,
        "cooldownPeriod": cooldown_seconds(settings),
        "triggers": [
            *(_trigger(namespace, signal, settings.requests_per_replica) for signal in _REQUESTS),
            # Of all gateways, which see the same pods. It never wakes or keeps awake: usage is no more than 1.
            _trigger(namespace, _KV_CACHE, _KV_CACHE_TARGET, aggregation="max", activation=1, kind="Value"),
        ],
    }


def _trigger(
    namespace: str,
    signal: str,
    target: float,
    *,
    aggregation: str = "sum",
    activation: int = 0,
    kind: str = "AverageValue",
) -> dict[str, Any]:
    """One number of the gateway's, of all its replicas, without Prometheus in between: a trigger that fails while nothing
    runs would keep KEDA from scaling to zero. `kind`: the target is each pod's part of the number, or the number's own."""
    return {
        "type": "metrics-api",
        "metricType": kind,
        "metadata": {
            # The port is the pods' own: KEDA asks each endpoint of the Service that the host names.
            "url": f"http://{GATEWAY}.{namespace}.svc.cluster.local:{GATEWAY_METRICS_PORT}/scale",
            "valueLocation": signal,
            "targetValue": str(target),
            "activationTargetValue": str(activation),
            "aggregateFromKubeServiceEndpoints": "true",
            "aggregationType": aggregation,
        },
    }


class Scaling(pulumi.ComponentResource):
    """KEDA, where add-ons are installed by this program, and the ScaledObject."""

    def __init__(
        self,
        name: str,
        *,
        settings: Settings,
        namespace: pulumi.Input[str],
        deployment: k8s.apps.v1.Deployment,
        gateway: k8s.core.v1.Service,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:Scaling", name, None, opts)
        keda: list[pulumi.Resource] = []
        if settings.addons_enabled and not settings.cluster_stack:
            mirror = settings.chart_repository
            keda = [KEDA.install(mirror=mirror, namespace=SYSTEM_NAMESPACE, values=keda_values(), parent=self)]
        k8s.apiextensions.CustomResource(
            VLLM,
            api_version="keda.sh/v1alpha1",
            kind="ScaledObject",
            metadata={"name": VLLM, "namespace": namespace},
            spec=scaled_object_spec(settings),
            # It has a finalizer that only KEDA takes off: it comes after KEDA, and goes before it.
            opts=pulumi.ResourceOptions(parent=self, depends_on=[*keda, deployment, gateway]),
        )
        self.register_outputs({})
