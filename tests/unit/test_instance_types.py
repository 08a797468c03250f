"""What a node of a type really has for pods."""

from __future__ import annotations

import pytest

from loraserve.planning.instance_types import (
    GPU_INSTANCE_TYPES,
    SYSTEM_INSTANCE_TYPES,
    GpuInstanceType,
    with_the_same_gpus,
)


def test_allocatable_cpu_is_what_the_eks_ami_leaves() -> None:
    assert GPU_INSTANCE_TYPES["g6.xlarge"].allocatable_cpu_millis == 3920
    assert SYSTEM_INSTANCE_TYPES["t3a.medium"].allocatable_cpu_millis == 1930


@pytest.mark.parametrize("wanted", GPU_INSTANCE_TYPES.values(), ids=lambda wanted: wanted.name)
def test_what_stands_in_for_a_type_has_its_gpus_and_no_less_of_the_rest(wanted: GpuInstanceType) -> None:
    first, *others = (GPU_INSTANCE_TYPES[name] for name in with_the_same_gpus(wanted))
    assert first == wanted
    for other in others:
        assert (other.gpu, other.gpus) == (wanted.gpu, wanted.gpus)
        assert other.vcpus >= wanted.vcpus
        assert other.memory_mib >= wanted.memory_mib
        assert other.nvme_gb >= wanted.nvme_gb


def test_a_smaller_type_stands_in_for_no_larger_one() -> None:
    assert "g6.2xlarge" in with_the_same_gpus(GPU_INSTANCE_TYPES["g6.xlarge"])
    assert "g6.xlarge" not in with_the_same_gpus(GPU_INSTANCE_TYPES["g6.2xlarge"])


def test_types_are_listed_by_their_gpus_memory() -> None:
    listed = [instance.gpus * instance.gpu.memory_mib for instance in GPU_INSTANCE_TYPES.values()]
    assert listed == sorted(listed), "of types that hold a model the first one is suggested"
