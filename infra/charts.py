"""Third-party Helm charts, where they come from, and the values they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi_kubernetes.helm.v4 import Chart, RepositoryOptsArgs

from infra.names import GPU_NODE, GPU_TAINT
from infra.pinned_images import with_digests
from loraserve.planning.pod_resources import Requests
from loraserve.planning.setting_values import OCI


@dataclass(frozen=True)
class HelmChart:
    """A third-party chart at the one version this program was written against."""

    name: str
    version: str
    repository: str

    def install(
        self,
        *,
        mirror: str | None,
        namespace: pulumi.Input[str],
        values: Mapping[str, Any],
        parent: pulumi.Resource,
        depends_on: Sequence[pulumi.Resource] = (),
        transforms: Sequence[pulumi.ResourceTransform] = (),
    ) -> Chart:
        """Installs it under its own name, from the mirror if there is one; `transforms` change what no value does.

        `Chart` runs no Helm hooks: values must switch off what waits for one.
        """
        repository = mirror or self.repository
        in_registry = repository.startswith(OCI)
        return Chart(
            self.name,
            chart=f"{repository}/{self.name}" if in_registry else self.name,
            version=self.version,
            namespace=namespace,
            repository_opts=None if in_registry else RepositoryOptsArgs(repo=repository),
            values=with_digests(self.name, values),
            opts=pulumi.ResourceOptions(parent=parent, depends_on=list(depends_on), transforms=list(transforms)),
        )


CLUSTER_AUTOSCALER = HelmChart("cluster-autoscaler", "9.59.0", "https://kubernetes.github.io/autoscaler")
DEVICE_PLUGIN = HelmChart("nvidia-device-plugin", "0.20.0", "https://nvidia.github.io/k8s-device-plugin")
DCGM_EXPORTER = HelmChart("dcgm-exporter", "4.8.2", "https://nvidia.github.io/dcgm-exporter/helm-charts")
KUBE_PROMETHEUS_STACK = HelmChart(
    "kube-prometheus-stack", "83.7.0", "https://prometheus-community.github.io/helm-charts"
)
KEDA = HelmChart("keda", "2.21.1", "https://kedacore.github.io/charts")
"""From 2.20 on its metrics-api scaler sums over the replicas of a Service."""
ALL = (CLUSTER_AUTOSCALER, DEVICE_PLUGIN, DCGM_EXPORTER, KUBE_PROMETHEUS_STACK, KEDA)


def on_gpu_nodes() -> dict[str, Any]:
    """Values that put a DaemonSet on the GPU nodes and nowhere else."""
    return {"nodeSelector": GPU_NODE, "tolerations": [GPU_TAINT.toleration()]}


def bounded(requests: Requests, memory_limit_mib: int) -> dict[str, Any]:
    """Values of a container's requests, and the memory at which it is ended before it takes that of others."""
    return {"requests": requests.quantities(), "limits": {"memory": f"{memory_limit_mib}Mi"}}


def confined(user_id: int) -> dict[str, Any]:
    """A pod's securityContext as values: this user and nobody else."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user_id,
        "runAsGroup": user_id,
        "fsGroup": user_id,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def hardened() -> dict[str, Any]:
    """A container's securityContext as values."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
