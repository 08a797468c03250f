"""EC2 instance types this program can place: what EC2 publishes, and what a pod can really ask for on them.

Those with several GPUs, and all of their numbers but a GPU's memory: Karpenter's generated tables
(`zz_generated.vpclimits.go`, `instance-types.md` at aws/karpenter-provider-aws 1d92708, of 2026-07-20), read 2026-11-28.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

_Shape = TypeVar("_Shape", bound="InstanceType")
_EVICTION_MIB = 100
_OS_SHARE = 0.06
"""Memory that the hypervisor and the kernel keep of an instance's nominal size."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi reports it. `product` is the accelerator label's value."""

    product: str
    memory_mib: int


@dataclass(frozen=True)
class InstanceType:
    """Shape of an x86-64 EC2 instance type: vCPUs, nominal memory, network interfaces (of its first network card)."""

    name: str
    vcpus: int
    memory_mib: int
    enis: int
    addresses_per_eni: int

    @property
    def classic_max_pods(self) -> int:
        """Pods without prefix delegation; the AMI's memory reservation is computed from it even where more are allowed."""
        return self.enis * (self.addresses_per_eni - 1) + 2

    @property
    def allocatable_cpu_millis(self) -> int:
        """vCPUs less the AMI's reservation: 6% of the first core, 1% of the second, 0.5% of two more, 0.25% of the rest."""
        shares = [60, 10, 5, 5] + [2.5] * max(0, self.vcpus - 4)
        return int(self.vcpus * 1000 - sum(shares[: self.vcpus]))

    @property
    def allocatable_memory_mib(self) -> int:
        """Memory left for pods: what the kernel sees, less 255 MiB + 11 MiB per classic pod, less the eviction threshold."""
        visible = int(self.memory_mib * (1 - _OS_SHARE))
        return visible - (255 + 11 * self.classic_max_pods) - _EVICTION_MIB


@dataclass(frozen=True)
class GpuInstanceType(InstanceType):
    """One with GPUs, all alike, and with NVMe instance store. vLLM spreads one base model over all of them."""

    gpu: Gpu
    nvme_gb: int
    gpus: int = 1

    @property
    def quota(self) -> str:
        """EC2's name for the limit that its vCPUs count against."""
        return "P" if self.name.startswith("p") else "G and VT"


NAT_INSTANCE_TYPE = "t4g.nano"
NAT_VOLUME_GIB = 20
"""The size of its image, the EKS AMI."""
SYSTEM_VOLUME_GIB = 20

L4 = Gpu("nvidia-l4", 23_034)
A10G = Gpu("nvidia-a10g", 23_028)
L40S = Gpu("nvidia-l40s", 46_068)
T4 = Gpu("nvidia-t4", 15_360)
A100_40GB = Gpu("nvidia-a100", 40_960)
H100_80GB = Gpu("nvidia-h100", 81_559)

_GIB = 1024


def _by_name(*shapes: _Shape) -> dict[str, _Shape]:
    return {shape.name: shape for shape in shapes}


SYSTEM_INSTANCE_TYPES = _by_name(
    InstanceType("t3a.medium", 2, 4 * _GIB, 3, 6),
    InstanceType("t3a.large", 2, 8 * _GIB, 3, 12),
    InstanceType("t3.medium", 2, 4 * _GIB, 3, 6),
    InstanceType("t3.large", 2, 8 * _GIB, 3, 12),
    InstanceType("m7i.large", 2, 8 * _GIB, 3, 10),
)

# Smallest GPU memory first: the order in which a larger one is suggested.
GPU_INSTANCE_TYPES = _by_name(
    GpuInstanceType("g4dn.xlarge", 4, 16 * _GIB, 3, 10, T4, 125),
    GpuInstanceType("g5.xlarge", 4, 16 * _GIB, 4, 15, A10G, 250),
    GpuInstanceType("g5.2xlarge", 8, 32 * _GIB, 4, 15, A10G, 450),
    GpuInstanceType("g6.xlarge", 4, 16 * _GIB, 4, 15, L4, 250),
    GpuInstanceType("g6.2xlarge", 8, 32 * _GIB, 4, 15, L4, 450),
    GpuInstanceType("g6.4xlarge", 16, 64 * _GIB, 8, 30, L4, 600),
    GpuInstanceType("g6e.xlarge", 4, 32 * _GIB, 4, 15, L40S, 250),
    GpuInstanceType("g6e.2xlarge", 8, 64 * _GIB, 4, 15, L40S, 450),
    GpuInstanceType("g6.12xlarge", 48, 192 * _GIB, 8, 30, L4, 3760, gpus=4),
    GpuInstanceType("g6e.12xlarge", 48, 384 * _GIB, 10, 30, L40S, 3800, gpus=4),
    GpuInstanceType("p4d.24xlarge", 96, 1152 * _GIB, 15, 50, A100_40GB, 8000, gpus=8),
    GpuInstanceType("p5.48xlarge", 192, 2048 * _GIB, 2, 50, H100_80GB, 30_400, gpus=8),
)


def with_the_same_gpus(wanted: GpuInstanceType) -> list[str]:
    """Types that may stand in for one: the same GPUs, and no less of the rest. The type itself, the smallest, comes first."""
    return [
        other.name
        for other in GPU_INSTANCE_TYPES.values()
        if (other.gpu, other.gpus) == (wanted.gpu, wanted.gpus)
        and other.vcpus >= wanted.vcpus
        and other.memory_mib >= wanted.memory_mib
        and other.nvme_gb >= wanted.nvme_gb
    ]
