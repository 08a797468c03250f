"""What stands is not replaced by a changed setting."""

from __future__ import annotations

from typing import Any

import pytest

from infra.errors import ConfigError
from tests.unit.declared import Program, run

STANDS = {"cluster": "loraserve-dev", "region": "eu-central-1", "vpcCidr": "10.0.0.0/16"}


@pytest.mark.parametrize(
    ("last", "changes", "told"),
    [
        (STANDS, {"vpcCidr": "10.8.0.0/16"}, "loraserve:vpcCidr 10.8.0.0/16 is another than the 10.0.0.0/16"),
        (STANDS | {"region": "us-east-1"}, {}, "aws:region eu-central-1 is another than the us-east-1"),
    ],
)
def test_a_change_that_would_replace_the_network_is_refused_before_anything_is_declared(
    last: dict[str, str], changes: dict[str, Any], told: str
) -> None:
    program = Program()
    with pytest.raises(ConfigError, match=told) as refused:
        run("dev", last_outputs=last, program=program, **changes)
    assert "pulumi destroy" in str(refused.value)
    assert program.resources == []


def test_a_stack_of_the_first_release_is_refused_before_its_subnets_are_replaced() -> None:
    """With what v0.1.0 put out."""
    names = ["model", "adapterBucket", "catalogGcRole", "baseModel", "servingRole", "cluster"]
    first = dict.fromkeys(names, "x")
    program = Program()
    with pytest.raises(ConfigError, match=r"made by version 0\.1\.0.*pulumi destroy"):
        run("dev", last_outputs=first, program=program)
    assert program.resources == []


def test_another_size_of_a_disk_in_use_is_refused_with_the_way() -> None:
    last = {"prometheusVolumeGib": 50.0}
    with pytest.raises(ConfigError, match=r"of 50 GiB, cannot be resized: set it to 0 .* then to 80"):
        run("prod", last_outputs=last, prometheusVolumeGib=80)
    for gib in (0, 50):
        run("prod", last_outputs=last, prometheusVolumeGib=gib)
    run("prod", last_outputs={"prometheusVolumeGib": 0.0})


_ZONES = {"zones": ["eu-central-1a", "eu-central-1b"]}
_GPU = {"gpuInstanceType": "g6.xlarge", "gpuRootVolumeGib": 100.0, "gpuNvmeRaid0": True}
NODES = {"system": {"systemInstanceType": "t3a.medium"} | _ZONES, "GPU": _GPU | _ZONES}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gpuRootVolumeGib": 120}, ["this replaces the GPU nodes that run: gpuRootVolumeGib 100 -> 120"]),
        ({"systemInstanceType": "t3.medium"}, ["this replaces the system nodes that run: systemInstanceType t3a.medium -> t3.medium"]),
        ({"gpuMaxSize": 3}, []),
    ],
)  # fmt: skip
def test_nodes_that_are_replaced_are_announced_in_preview(changes: dict[str, Any], told: list[str]) -> None:
    program = run("dev", preview=True, last_outputs={"nodes": NODES}, **changes)
    assert [message for message in program.messages if "replaces" in message] == told


def test_before_the_first_up_and_after_destroy_any_network_is_taken() -> None:
    assert run("dev", vpcCidr="10.8.0.0/16").one("ec2/vpc:Vpc").inputs["cidrBlock"] == "10.8.0.0/16"
