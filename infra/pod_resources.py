"""What the serving pod and the DaemonSets beside it ask of a node, and whether that fits. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from infra.instance_types import InstanceType
from infra.names import GPU_RESOURCE, PROJECT


@dataclass(frozen=True)
class Requests:
    """A container's or DaemonSet's requests: CPU in thousandths of a core, memory in MiB."""

    cpu_millis: int
    memory_mib: int

    def quantities(self) -> dict[str, str]:
        """In Kubernetes' notation."""
        return {"cpu": f"{self.cpu_millis}m", "memory": f"{self.memory_mib}Mi"}


VLLM_REQUESTS = Requests(3000, 12 * 1024)
VLLM_LIMITS = Requests(4000, 14 * 1024)
"""14 GiB is the most it may use; requested, it would not fit a g6.xlarge beside the DaemonSets."""
AGENT_REQUESTS = Requests(100, 256)
AGENT_LIMITS = Requests(500, 512)
GATEWAY_REQUESTS = Requests(100, 128)
GATEWAY_MEMORY_LIMIT_MIB = 512
"""Much more than it was seen to use: held requests and slow readers are bounded, and a limit that is met kills streams."""
ADAPTER_VOLUME_GIB = 10
NODE_DISK_GIB = 40
"""Ephemeral storage that the pod asks for: base weights, adapters, compile caches."""

DEVICE_PLUGIN = Requests(50, 64)
DCGM_EXPORTER = Requests(100, 256)
NODE_EXPORTER = Requests(20, 32)
AWS_NODE = Requests(50, 0)
KUBE_PROXY = Requests(100, 0)
EBS_CSI_NODE = Requests(30, 120)

GPU_NODE_DAEMONSETS = {
    "aws-node": AWS_NODE,
    "kube-proxy": KUBE_PROXY,
    "ebs-csi-node": EBS_CSI_NODE,
    "nvidia-device-plugin": DEVICE_PLUGIN,
    "dcgm-exporter": DCGM_EXPORTER,
    "node-exporter": NODE_EXPORTER,
}


def with_gpu(requests: Requests) -> dict[str, str]:
    """`requests` and one whole GPU."""
    return requests.quantities() | {GPU_RESOURCE: "1"}


def node_fit_problem(instance: InstanceType) -> str | None:
    """Why the serving pod does not fit a fresh node of this type, and what would; None where it fits."""
    parts = [VLLM_REQUESTS, AGENT_REQUESTS, *GPU_NODE_DAEMONSETS.values()]
    cpu, memory = sum(part.cpu_millis for part in parts), sum(part.memory_mib for part in parts)
    if cpu <= instance.allocatable_cpu_millis and memory <= instance.allocatable_memory_mib:
        return None
    return (
        f"{PROJECT}:gpuInstanceType {instance.name} is too small: the pod and its DaemonSets ask for {cpu}m CPU and "
        f"{memory} MiB, the node has {instance.allocatable_cpu_millis}m and {instance.allocatable_memory_mib} MiB: "
        "choose g6.xlarge or larger"
    )
