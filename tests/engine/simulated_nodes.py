"""Nodes that kwok simulates, in the shape in which EKS would leave them, and the DaemonSets that run on each.

A simulated node runs nothing: its pods are declared Running. What the scheduler decides about it is real, because it
offers what an AL2023 node offers (allocatable, not capacity) and the DaemonSets take their part of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from kubernetes.client import AppsV1Api, CoreV1Api, V1Node
from kubernetes.client.exceptions import ApiException

from infra import names
from local.cluster.control_plane import ControlPlane
from local.processes import Process, free_port
from local.tools import toolchain
from local.tools.toolchain import Tool
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES, SYSTEM_INSTANCE_TYPES, GpuInstanceType, InstanceType
from loraserve.planning.pod_resources import GPU_NODE_DAEMONSETS, Requests

SYSTEM = SYSTEM_INSTANCE_TYPES["t3a.medium"]
GPU = GPU_INSTANCE_TYPES["g6.xlarge"]

SIMULATED = {"kwok.x-k8s.io/node": "fake"}
"""The annotation by which kwok knows its nodes; a real node beside them is left alone."""

_MAX_PODS = 110  # with prefix delegation, below 30 vCPUs
_ROOT_DISK_GB = 20
_GB = 10**9
_GIB = 2**30
_REGION, _ZONE = "eu-central-1", "eu-central-1a"
_ON_GPU_NODES_ONLY = {"nvidia-device-plugin", "dcgm-exporter", "dcgm-server"}
_APPLY: dict[str, Any] = {"field_manager": "local", "force": True, "_content_type": "application/apply-patch+yaml"}


def capacity(instance: InstanceType) -> dict[str, str]:
    """What EC2 publishes about the instance type, as a node's resources."""
    return _resources(instance, instance.vcpus * 1000, instance.memory_mib, _disk_bytes(instance))


def allocatable(instance: InstanceType) -> dict[str, str]:
    """What pods can ask for. The kubelet keeps 1 GiB of the disk for itself and evicts pods from 10% free on."""
    disk_bytes = _disk_bytes(instance) * 9 // 10 - _GIB
    return _resources(instance, instance.allocatable_cpu_millis, instance.allocatable_memory_mib, disk_bytes)


def node_manifest(instance: InstanceType, name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    """A simulated Node. One with a GPU has the GPU node group's labels and taint; `labels` come on top."""
    group_labels, taints = {}, []
    if isinstance(instance, GpuInstanceType):
        group_labels = names.gpu_node_labels(instance.gpu.product)
        taints = [{"key": names.GPU_TAINT.key, "value": names.GPU_TAINT.value, "effect": names.GPU_TAINT.effect}]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": SIMULATED,
            "labels": _eks_labels(instance, name) | group_labels | (labels or {}),
        },
        "spec": {"taints": taints},
        "status": {"capacity": capacity(instance), "allocatable": allocatable(instance)},
    }


@contextmanager
def kwok(control_plane: ControlPlane) -> Iterator[None]:
    """Brings simulated nodes and their pods to life. It would take over a real node."""
    address = f"127.0.0.1:{free_port()}"
    flags = {
        "kubeconfig": control_plane.kubeconfig,
        "config": ",".join(map(str, toolchain.kwok_stages())),
        "manage-nodes-with-annotation-selector": ",".join(f"{key}={value}" for key, value in SIMULATED.items()),
        # Without leases the nodes count as lost after 50 s. For so long a new kwok leaves them to the one before it.
        "node-lease-duration-seconds": 5,
        "server-address": address,
    }
    command = [toolchain.ensure(Tool.KWOK)[Tool.KWOK], *(f"--{name}={value}" for name, value in flags.items())]
    process = Process.start(Tool.KWOK, command, control_plane.state / "kwok", die_with_parent=True)
    try:
        process.wait_until(lambda: _answers(f"http://{address}/healthz"))
        yield
    finally:
        process.stop()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


def register(core: CoreV1Api, instance: InstanceType, name: str, labels: dict[str, str] | None = None) -> None:
    """Add a simulated node to the cluster; kwok makes it Ready. Does nothing where the node exists."""
    try:
        core.create_node(V1Node.model_validate(node_manifest(instance, name, labels)))
    except ApiException as error:
        if error.status != 409:
            raise


def apply_daemon_sets(apps: AppsV1Api) -> None:
    """The DaemonSets of an EKS node, as real ones: the scheduler counts what they ask for."""
    for name, requests in GPU_NODE_DAEMONSETS.items():
        apps.patch_namespaced_daemon_set(name, names.SYSTEM_NAMESPACE, daemon_set_manifest(name, requests), **_APPLY)


def daemon_set_manifest(name: str, requests: Requests) -> dict[str, Any]:
    """A DaemonSet that tolerates every taint; those for GPUs run on GPU nodes only."""
    labels = {"app.kubernetes.io/name": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": names.SYSTEM_NAMESPACE, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "priorityClassName": "system-node-critical",
                    "nodeSelector": names.GPU_SELECTOR if name in _ON_GPU_NODES_ONLY else {},
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [
                        {"name": name, "image": "simulated", "resources": {"requests": requests.quantities()}}
                    ],
                },
            },
        },
    }


def _resources(instance: InstanceType, cpu_millis: int, memory_mib: int, disk_bytes: int) -> dict[str, str]:
    resources = {
        "cpu": f"{cpu_millis}m",
        "memory": f"{memory_mib}Mi",
        "ephemeral-storage": str(disk_bytes),
        "pods": str(_MAX_PODS),
    }
    return resources | ({names.GPU_RESOURCE: "1"} if isinstance(instance, GpuInstanceType) else {})


def _disk_bytes(instance: InstanceType) -> int:
    """The NVMe instance store where there is one (RAID0 puts the kubelet's folder there), else the root volume."""
    disk_gb = instance.nvme_gb if isinstance(instance, GpuInstanceType) else _ROOT_DISK_GB
    return disk_gb * _GB


def _eks_labels(instance: InstanceType, name: str) -> dict[str, str]:
    return {
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux",
        "kubernetes.io/hostname": name,
        "node.kubernetes.io/instance-type": instance.name,
        "topology.kubernetes.io/region": _REGION,
        "topology.kubernetes.io/zone": _ZONE,
    }
