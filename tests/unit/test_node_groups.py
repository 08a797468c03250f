"""Both node groups: what a node is told at its start, and what the autoscaler knows of one that does not exist yet."""

from __future__ import annotations

import base64
import email
import json
from typing import Any

import pytest

from infra import names
from infra.node_groups import autoscaler_tags
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES
from loraserve.planning.pod_resources import pod_disk_gib
from loraserve.planning.settings_parser import parse
from tests.stack_values import stack_values
from tests.unit.declared import Program, Resource, declare


@pytest.fixture(scope="module")
def dev() -> Program:
    return declare("dev")


def group(program: Program, name: str) -> Resource:
    return program.one("eks/nodeGroup:NodeGroup", name)


def node_spec(program: Program, name: str) -> dict[str, Any]:
    """The NodeConfig's spec out of a launch template's user data."""
    user_data = program.one("ec2/launchTemplate:LaunchTemplate", name).inputs["userData"]
    _, part = email.message_from_bytes(base64.b64decode(user_data)).walk()
    return json.loads(str(part.get_payload()))["spec"]


def test_the_gpu_group_has_the_specified_values(dev: Program) -> None:
    inputs = group(dev, names.GPU_NODE_GROUP).inputs
    assert inputs["nodeGroupName"] == "gpu-vllm-nodes"
    assert inputs["instanceTypes"] == ["g6.xlarge"]
    assert inputs["scalingConfig"] == {"minSize": 0, "desiredSize": 0, "maxSize": 2}
    assert inputs["labels"]["workload"] == "gpu-vllm"
    assert inputs["labels"]["k8s.amazonaws.com/accelerator"] == "nvidia-l4"
    assert inputs["taints"] == [{"key": "nvidia.com/gpu", "value": "true", "effect": "NO_SCHEDULE"}]
    assert inputs["tags"]["Purpose"] == "LLM Inference"


def test_the_autoscaler_owns_the_desired_size(dev: Program) -> None:
    assert group(dev, names.GPU_NODE_GROUP).ignore_changes == ["scalingConfig.desiredSize"]


def test_the_autoscaler_knows_an_empty_groups_nodes_from_its_tags(dev: Program) -> None:
    tags = {r.inputs["tag"]["key"]: r.inputs["tag"]["value"] for r in dev.of_type("autoscaling/tag:Tag")}
    template = "k8s.io/cluster-autoscaler/node-template"
    for key, value in group(dev, names.GPU_NODE_GROUP).inputs["labels"].items():
        assert tags[f"{template}/label/{key}"] == value
    assert tags[f"{template}/taint/nvidia.com/gpu"] == "true:NoSchedule"
    assert tags[f"{template}/resources/nvidia.com/gpu"] == "1"
    assert tags[f"{template}/autoscaling-options/scaledownunneededtime"] == "2m0s"


@pytest.mark.parametrize("instance_type", GPU_INSTANCE_TYPES)
@pytest.mark.parametrize("on_nvme", [True, False])
def test_the_autoscaler_is_told_of_disk_that_the_pod_fits_on_and_a_node_really_has(
    instance_type: str, on_nvme: bool
) -> None:
    """The kubelet evicts pods when a tenth is left, and images lie on the same disk."""
    settings = parse(stack_values("dev", gpuInstanceType=instance_type, gpuNvmeRaid0=on_nvme))
    told = autoscaler_tags(settings)["k8s.io/cluster-autoscaler/node-template/resources/ephemeral-storage"]
    gib = int(told.removesuffix("Gi"))
    whole = settings.gpu_instance.nvme_gb * 1e9 / 1024**3 if on_nvme else settings.gpu_root_volume_gib
    assert pod_disk_gib([]) < gib < 0.85 * whole
    assert gib > 0.7 * whole


def test_a_gpu_node_keeps_images_on_its_nvme_disk_and_pulls_them_in_parallel(dev: Program) -> None:
    assert node_spec(dev, names.GPU_NODE_GROUP) == {
        "featureGates": {"FastImagePull": True},
        "instance": {"localStorage": {"strategy": "RAID0"}},
    }


def test_a_node_from_the_warm_pool_keeps_its_images_on_a_disk_that_outlives_a_stop() -> None:
    program = declare("dev", gpuWarmPool=True, gpuNvmeRaid0=False)
    assert node_spec(program, names.GPU_NODE_GROUP) == {"featureGates": {"FastImagePull": True}}
    assert group(program, names.GPU_NODE_GROUP).inputs["warmPoolConfig"] == {"maxGroupPreparedCapacity": 1}


def test_a_system_node_holds_more_than_the_17_pods_of_its_network_interfaces(dev: Program) -> None:
    assert node_spec(dev, names.SYSTEM_NODE_GROUP) == {"kubelet": {"config": {"maxPods": 110}}}


def test_nodes_leave_before_what_they_need_to_leave_cleanly(dev: Program) -> None:
    for nodes in dev.of_type("eks/nodeGroup:NodeGroup"):
        needs = " ".join(nodes.depends_on)
        assert needs.count("RolePolicyAttachment") == 3
        assert "eks:index:Cluster" in needs
        assert needs.count("ec2/route:Route::") >= 3


@pytest.mark.parametrize("stack", ["dev", "prod", "local"])
def test_nodes_refuse_the_first_metadata_service_and_pods(stack: str) -> None:
    templates = declare(stack).of_type("ec2/launchTemplate:LaunchTemplate")
    assert len(templates) == 2
    for template in templates:
        options = template.inputs["metadataOptions"]
        assert options["httpTokens"] == "required"
        assert options["httpPutResponseHopLimit"] == 1
        assert "imageId" not in template.inputs
        assert "instanceType" not in template.inputs
