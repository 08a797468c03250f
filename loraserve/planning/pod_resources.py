"""What the serving pod and the DaemonSets beside it ask of a node, and whether that fits. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loraserve.contract.addresses import GPU_RESOURCE, PROJECT
from loraserve.contract.desired_state import Adapter, Envelope
from loraserve.planning.envelope import SWAP_HEADROOM
from loraserve.planning.holding import disk_needed
from loraserve.planning.instance_types import GpuInstanceType
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


LEAST_ON_GPU = Requests(3000, 12 * 1024)
"""What vLLM starts with in reasonable time; a g6.xlarge has it beside the DaemonSets."""
_REQUEST_STEPS = Requests(500, 4 * 1024)
"""Requests are multiples of these: what a node has is known no better."""
ON_CPU = VllmResources(requests=Requests(500, 3 * 1024), limits=Requests(4000, 8 * 1024))
"""A tiny model on a small machine."""
AGENT_REQUESTS = Requests(100, 256)
AGENT_LIMITS = Requests(2000, 512)
"""Fetching base weights is bound by the processor that checks them."""
TRAINING_REQUESTS = Requests(3000, 9 * 1024)
TRAINING_LIMITS = Requests(4000, 13 * 1024)
"""Weights are read through the page cache, which counts as the pod's and is given back."""
TRAINING_VOLUME_GIB = 60
"""The base's files in 16 bits (14.5 GB for 7B), checkpoints, caches."""
TRAINING_NODE_DISK_GIB = 120
GATEWAY_REQUESTS = Requests(100, 128)
GATEWAY_MEMORY_LIMIT_MIB = 512
"""Much more than it was seen to use: held requests and slow readers are bounded, and a limit that is met kills streams."""
EVALUATOR_REQUESTS = Requests(100, 128)
EVALUATOR_MEMORY_LIMIT_MIB = 512
"""It keeps all answers, and draws from them."""
LOAD_TEST_REQUESTS = Requests(500, 256)
LOAD_TEST_MEMORY_LIMIT_MIB = 1024
"""It keeps what it saw of each call, and a sweep makes some hundred thousand."""
_VLLM_MEMORY_GIB, _WORKER_MEMORY_GIB = 11, 6
"""Of the host, for vLLM with one GPU and for the process of each further one, which keeps adapters of its own. Modelled."""
_MOST_ADAPTERS_IN_MEMORY = 512
_ADAPTER_VOLUMES_GIB = (10, 20, 40, 80, 160, 320)
"""Few sizes: another one replaces the pods."""
_FILLED = 0.95
"""What the agent fills of it: a pod whose volume runs over is evicted."""
_BASE_VOLUMES_GIB = (20, 40, 80, 160, 320, 640)
"""For base weights."""
COMPILE_CACHE_GIB = 5
TMP_VOLUME_GIB = 2
"""Sockets and scratch files of agent and vLLM."""
_OTHER_DISK_GIB = 10
"""Of a pod on a GPU node, beside its adapters and the base weights: compile caches, /tmp."""
_SHARED_MEMORY_GIB = 2
"""/dev/shm for each of several GPUs, whose processes speak through it; what vLLM's guide to Kubernetes gives them."""
CPU_DISK_GIB = 5

USABLE_DISK = 0.8
"""Of a node's disk, for pods: the kubelet evicts them when a tenth is left, and images lie on the same disk."""

DEVICE_PLUGIN = Requests(50, 64)
DCGM_EXPORTER = Requests(100, 256)
NODE_EXPORTER = Requests(20, 32)
POD_LOGS = Requests(20, 64)
POD_LOGS_MEMORY_LIMIT_MIB = 192
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
    "pod-logs": POD_LOGS,
}
"""Those that a setting switches off too: a change of it must not make another pod of vLLM's."""


def on_gpu(instance: GpuInstanceType) -> VllmResources:
    """All that a node of this type has for vLLM, which no other pod shares with it."""
    beside = [AGENT_REQUESTS, *GPU_NODE_DAEMONSETS.values()]
    cpu = instance.allocatable_cpu_millis - sum(part.cpu_millis for part in beside)
    memory = instance.allocatable_memory_mib - sum(part.memory_mib for part in beside)
    steps = _REQUEST_STEPS
    return VllmResources(
        requests=Requests(cpu // steps.cpu_millis * steps.cpu_millis, memory // steps.memory_mib * steps.memory_mib),
        # More than it asks for: DaemonSets seldom take all that they do.
        limits=Requests(instance.vcpus * 1000, instance.allocatable_memory_mib // 1024 * 1024),
    )


def with_gpus(requests: Requests, count: int) -> dict[str, str]:
    """`requests` and so many whole GPUs."""
    return requests.quantities() | {GPU_RESOURCE: str(count)}


def shared_memory_gib(gpus: int) -> int:
    """Most that /dev/shm may take of the pod's memory."""
    return _SHARED_MEMORY_GIB * gpus if gpus > 1 else 1


def node_fit_problem(instance: GpuInstanceType) -> str | None:
    """Why the serving pod does not fit a fresh node of this type, and what would; None where it fits."""
    room, least = on_gpu(instance).requests, LEAST_ON_GPU
    if room.cpu_millis >= least.cpu_millis and room.memory_mib >= least.memory_mib:
        return None
    parts = [least, AGENT_REQUESTS, *GPU_NODE_DAEMONSETS.values()]
    cpu, memory = sum(part.cpu_millis for part in parts), sum(part.memory_mib for part in parts)
    return (
        f"{PROJECT}:gpuInstanceType {instance.name} is too small: the pod and its DaemonSets ask for {cpu}m CPU and "
        f"{memory} MiB, the node has {instance.allocatable_cpu_millis}m and {instance.allocatable_memory_mib} MiB: "
        "choose g6.xlarge or larger"
    )


def base_volume_gib(weights_bytes: float) -> int:
    """Size of the volume that holds base weights, mirrored or of a hub."""
    return next((gib for gib in _BASE_VOLUMES_GIB if weights_bytes <= gib * _GIB), _BASE_VOLUMES_GIB[-1])


def adapters_in_memory(shape: ModelShape, envelope: Envelope, instance: GpuInstanceType) -> int:
    """How many adapters vLLM may keep in the pod's memory: as many as fit if each is as large as the envelope allows.

    The process of each GPU keeps each of them whole.
    """
    of_one = sum(shape.lora_tensors(envelope.model_copy(update={"slots": 1})))
    taken = _VLLM_MEMORY_GIB + (instance.gpus - 1) * _WORKER_MEMORY_GIB
    of_each = (on_gpu(instance).limits.memory_mib // 1024 - taken) * _GIB // instance.gpus
    return min(of_each // of_one, _MOST_ADAPTERS_IN_MEMORY)


@dataclass(frozen=True)
class PodDisk:
    """The serving pod's disk: adapters, base weights, caches; `node_gib` is what pods and images share on a node.

    Where not all adapters fit, the least used are fetched when a request asks for them.
    """

    adapters: Sequence[Adapter]
    weights_bytes: float
    node_gib: int

    @property
    def adapter_volume_gib(self) -> int:
        """Size of the volume that holds them: the smallest for all, with both versions of some during a swap, or the largest
        that the node has room for."""
        room = int(self.node_gib * USABLE_DISK) - _OTHER_DISK_GIB - base_volume_gib(self.weights_bytes)
        possible = [gib for gib in _ADAPTER_VOLUMES_GIB if gib <= room] or [_ADAPTER_VOLUMES_GIB[0]]
        needed = disk_needed(self.adapters)
        return next((gib for gib in possible if needed <= _FILLED * gib * _GIB), possible[-1])

    @property
    def adapter_bytes(self) -> int:
        """What the agent may fill of that volume."""
        return int(_FILLED * self.adapter_volume_gib * _GIB)

    @property
    def pod_gib(self) -> int:
        """Ephemeral storage that the pod asks for on a GPU node."""
        return _OTHER_DISK_GIB + base_volume_gib(self.weights_bytes) + self.adapter_volume_gib

    def problem(self) -> str | None:
        """Why a pod cannot work on this disk, and what would; None where it can."""
        if self.weights_bytes > _BASE_VOLUMES_GIB[-1] * _GIB:
            return (
                f"{PROJECT}:baseModel has {self.weights_bytes / _GIB:.1f} GiB of weights, and a pod has {_BASE_VOLUMES_GIB[-1]} "
                "GiB of disk for them: take a smaller or a quantised model"
            )
        largest = max((adapter.size_bytes for adapter in self.adapters), default=0)
        least = (1 + SWAP_HEADROOM) * largest
        if self.pod_gib <= self.node_gib * USABLE_DISK and least <= self.adapter_bytes:
            return None
        volume = next((gib for gib in _ADAPTER_VOLUMES_GIB if least <= _FILLED * gib * _GIB), None)
        if volume is None:
            return (
                f"{PROJECT}:adapters: the largest has {largest / _GIB:.0f} GiB, and a pod has no disk for three of it"
            )
        pod = _OTHER_DISK_GIB + base_volume_gib(self.weights_bytes) + volume
        return (
            f"{PROJECT}:gpuRootVolumeGib: base weights, caches and three adapters (one in use, one new, one old) need {pod} GiB, "
            f"and pods may use {int(self.node_gib * USABLE_DISK)} GiB of a node: set it to {int(pod / USABLE_DISK) + 1}, or "
            "gpuNvmeRaid0 to true on a type with larger disks"
        )
