"""What a node of a type really has for pods."""

from __future__ import annotations

from loraserve.planning.instance_types import GPU_INSTANCE_TYPES, SYSTEM_INSTANCE_TYPES


def test_allocatable_cpu_is_what_the_eks_ami_leaves() -> None:
    assert GPU_INSTANCE_TYPES["g6.xlarge"].allocatable_cpu_millis == 3920
    assert SYSTEM_INSTANCE_TYPES["t3a.medium"].allocatable_cpu_millis == 1930
