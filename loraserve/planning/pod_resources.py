"""What the serving pod and the DaemonSets beside it ask of a node, and whether that fits. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loraserve.contract.addresses import GPU_RESOURCE, PROJECT
from loraserve.contract.desired_state import Adapter, Envelope
from loraserve.planning.envelope import SWAP_HEADROOM
from loraserve.planning.instance_types import InstanceType
from loraserve.planning.model_shapes import ModelShape

_GIB = 1024**3


@dataclass(frozen=True)
class Requests:
    """A container's or DaemonSet's requests: CPU in thousandths of a core, memory in MiB."""

    cpu_millis: int
    memory_mib: int

    def quantities(self) -> dict[str, str]:
        """In Kubernetes' notation."""
        return {"cpu": f"{self.cpu_millis}m", "memory": f"{self.memory_mib}Mi"}


@dataclass(frozen=True)
class VllmResources:
    """What vLLM's container asks for, and the most it may take."""

    requests: Requests
    limits: Requests


ON_GPU = VllmResources(requests=Requests(3000, 12 * 1024), limits=Requests(4000, 14 * 1024))
"""14 GiB is the most it may use; requested, it would not fit a g6.xlarge beside the DaemonSets."""
ON_CPU = VllmResources(requests=Requests(500, 3 * 1024), limits=Requests(4000, 8 * 1024))
"""A tiny model on a small machine."""
AGENT_REQUESTS = Requests(100, 256)
AGENT_LIMITS = Requests(2000, 512)
"""Fetching base weights is bound by the processor that checks them."""
GATEWAY_REQUESTS = Requests(100, 128)
GATEWAY_MEMORY_LIMIT_MIB = 512
"""Much more than it was seen to use: held requests and slow readers are bounded, and a limit that is met kills streams."""
EVALUATOR_REQUESTS = Requests(100, 128)
EVALUATOR_MEMORY_LIMIT_MIB = 512
"""It keeps all answers, and draws from them."""
_ADAPTER_MEMORY_GIB = 3
_MOST_ADAPTERS_IN_MEMORY = 512
_ADAPTER_VOLUMES_GIB = (10, 20, 40, 80, 160, 320)
"""Few sizes: another one replaces the pods."""
_FILLED = 0.95
"""What the agent fills of it: a pod whose volume runs over is evicted."""
BASE_VOLUME_GIB = 20
"""Base weights, where they are mirrored."""
CACHE_VOLUME_GIB = 25
"""Compile caches, and base weights from a hub."""
MIRRORED_CACHE_VOLUME_GIB = 5
TMP_VOLUME_GIB = 2
"""Sockets and scratch files of agent and vLLM."""
_OTHER_DISK_GIB = 30
"""Of a pod on a GPU node, beside its adapters: base weights, compile caches, /tmp."""
_CPU_DISK_GIB = 5

USABLE_DISK = 0.8
"""Of a node's disk, for pods: the kubelet evicts them when a tenth is left, and images lie on the same disk."""

DEVICE_PLUGIN = Requests(50, 64)
DCGM_EXPORTER = Requests(100, 256)
NODE_EXPORTER = Requests(20, 32)
AWS_NODE = Requests(50, 0)
KUBE_PROXY = Requests(100, 0)
EBS_CSI_NODE = Requests(30, 120)
NODE_MONITORING_AGENT = Requests(10, 30)
DCGM_SERVER = Requests(50, 256)
"""The node monitoring agent's part that watches the GPU."""

GPU_NODE_DAEMONSETS = {
    "aws-node": AWS_NODE,
    "kube-proxy": KUBE_PROXY,
    "ebs-csi-node": EBS_CSI_NODE,
    "eks-node-monitoring-agent": NODE_MONITORING_AGENT,
    "dcgm-server": DCGM_SERVER,
    "nvidia-device-plugin": DEVICE_PLUGIN,
    "dcgm-exporter": DCGM_EXPORTER,
    "node-exporter": NODE_EXPORTER,
}


def with_gpu(requests: Requests) -> dict[str, str]:
    """`requests` and one whole GPU."""
    return requests.quantities() | {GPU_RESOURCE: "1"}


def node_fit_problem(instance: InstanceType) -> str | None:
    """Why the serving pod does not fit a fresh node of this type, and what would; None where it fits."""
    parts = [ON_GPU.requests, AGENT_REQUESTS, *GPU_NODE_DAEMONSETS.values()]
    cpu, memory = sum(part.cpu_millis for part in parts), sum(part.memory_mib for part in parts)
    if cpu <= instance.allocatable_cpu_millis and memory <= instance.allocatable_memory_mib:
        return None
    return (
        f"{PROJECT}:gpuInstanceType {instance.name} is too small: the pod and its DaemonSets ask for {cpu}m CPU and "
        f"{memory} MiB, the node has {instance.allocatable_cpu_millis}m and {instance.allocatable_memory_mib} MiB: "
        "choose g6.xlarge or larger"
    )


def base_disk_problem(weights_bytes: int) -> str | None:
    """Why the pod's disk does not hold mirrored base weights of this size; None where it does."""
    if weights_bytes <= BASE_VOLUME_GIB * _GIB:
        return None
    return (
        f"{PROJECT}:baseModelMirror has {weights_bytes / _GIB:.1f} GiB of weights, and the pod has {BASE_VOLUME_GIB} GiB "
        "of disk for them: mirror a smaller or a quantised model"
    )


def adapters_in_memory(shape: ModelShape, envelope: Envelope) -> int:
    """How many adapters vLLM may keep in the pod's memory: as many as fit if each is as large as the envelope allows."""
    of_one = sum(shape.lora_tensors(envelope.model_copy(update={"slots": 1})))
    return min(_ADAPTER_MEMORY_GIB * _GIB // of_one, _MOST_ADAPTERS_IN_MEMORY)


def adapter_volume_gib(adapters: Sequence[Adapter]) -> int:
    """Size of the volume that holds them, with both versions of some during a swap."""
    needed = _disk_needed(adapters)
    return next((gib for gib in _ADAPTER_VOLUMES_GIB if needed <= _FILLED * gib * _GIB), _ADAPTER_VOLUMES_GIB[-1])


def adapter_disk_bytes(adapters: Sequence[Adapter]) -> int:
    """What the agent may fill of that volume."""
    return int(_FILLED * adapter_volume_gib(adapters) * _GIB)


def pod_disk_gib(adapters: Sequence[Adapter], *, on_cpu: bool = False) -> int:
    """Ephemeral storage that the pod asks for."""
    return _CPU_DISK_GIB if on_cpu else _OTHER_DISK_GIB + adapter_volume_gib(adapters)


def disk_problem(adapters: Sequence[Adapter], node_disk_gib: int) -> str | None:
    """Why the adapters do not fit a node's disk, with both versions of some during a swap; None where they do."""
    needed, volume = _disk_needed(adapters), adapter_volume_gib(adapters)
    if needed <= adapter_disk_bytes(adapters) and pod_disk_gib(adapters) <= node_disk_gib * USABLE_DISK:
        return None
    told = f"{PROJECT}:adapters need {needed / _GIB:.1f} GiB of disk, new versions beside old ones included"
    if needed > adapter_disk_bytes(adapters):
        return f"{told}, and a pod has {volume} GiB at most: split them over two stacks"
    whole = int(pod_disk_gib(adapters) / USABLE_DISK) + 1
    return (
        f"{told}, with base weights and caches {pod_disk_gib(adapters)} GiB, and pods may use "
        f"{int(node_disk_gib * USABLE_DISK)} GiB of a node: set gpuRootVolumeGib to {whole}, or gpuNvmeRaid0 to true on a "
        "type with larger disks"
    )


def _disk_needed(adapters: Sequence[Adapter]) -> int:
    sizes = sorted((adapter.size_bytes for adapter in adapters), reverse=True)
    return sum(sizes) + sum(sizes[:SWAP_HEADROOM])
