"""Both node groups: what a node is told at its start, and what the autoscaler knows of one that does not exist yet."""

from __future__ import annotations

import base64
import email
import json
import re
from typing import Any

import pytest

from infra import names, versions
from infra.errors import ConfigError
from infra.node_groups import autoscaler_tags, sizes
from infra.preflight import check_kubernetes
from infra.standing import Group
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES, with_the_same_gpus
from loraserve.planning.settings_parser import parse
from tests.stack_values import stack_values
from tests.unit.declared import Program, Resource, declare
from tests.unit.standing import SYSTEM, node_group, standing


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


def test_spot_nodes_stand_beside_on_demand_ones_and_are_taken_first() -> None:
    program = declare("dev", gpuSpot=True)
    spot, on_demand = group(program, names.SPOT_NODE_GROUP).inputs, group(program, names.GPU_NODE_GROUP).inputs
    assert spot["capacityType"] == "SPOT"
    planned, *others = spot["instanceTypes"]
    assert planned == "g6.xlarge", "the autoscaler plans with the first"
    assert others == with_the_same_gpus(GPU_INSTANCE_TYPES["g6.xlarge"])[1:]
    assert spot["scalingConfig"] == {"minSize": 0, "desiredSize": 0, "maxSize": 2}
    assert all(spot[key] == on_demand[key] for key in ("labels", "taints", "subnetIds", "amiType"))
    assert "capacityType" not in on_demand

    (values,) = (chart.inputs["values"] for chart in program.of_type("Chart") if chart.name == "cluster-autoscaler")
    assert values["extraArgs"]["expander"] == "priority"
    first, second = sorted(values["expanderPriorities"], key=int, reverse=True)
    ([pattern], rest) = values["expanderPriorities"][first], values["expanderPriorities"][second]
    assert re.fullmatch(pattern, f"eks-{names.SPOT_NODE_GROUP}-0cc1")
    assert not re.fullmatch(pattern, f"eks-{names.GPU_NODE_GROUP}-0cc1")
    assert rest == [".*"]


@pytest.mark.parametrize(
    ("least", "most", "found", "size", "left_alone"),
    [
        (0, 2, None, (0, 0, 2), ["scalingConfig.desiredSize"]),
        (0, 2, (0, 2, 2), (0, 2, 2), ["scalingConfig"]),
        (0, 3, (0, 1, 2), (0, 1, 3), []),
        (1, 2, (0, 0, 2), (1, 1, 2), []),
        (0, 2, (1, 1, 2), (0, 1, 2), []),
        (1, 2, (2, 3, 3), (1, 2, 2), []),
    ],
)
def test_other_bounds_carry_the_size_that_there_is_now_and_the_same_bounds_leave_it_alone(
    least: int,
    most: int,
    found: tuple[int, int, int] | None,
    size: tuple[int, int, int],
    left_alone: list[str],
) -> None:
    """Sizes are the least, the desired and the most."""
    now = found and Group("ACTIVE", versions.NODE_RELEASE, least=found[0], desired=found[1], most=found[2])
    config, ignored = sizes(now, least, most)
    assert tuple(config[key] for key in ("min_size", "desired_size", "max_size")) == size
    assert ignored == left_alone


@pytest.fixture(scope="module")
def grown() -> Program:
    """dev with nodes that the autoscaler has added, told to have other bounds for some of them."""
    return declare("dev", standing=standing(gpu=node_group(0, 2, 2), system=node_group(1, 2, 2)), gpuMaxSize=1)


def test_the_sizes_of_both_groups_are_those_that_aws_holds(grown: Program) -> None:
    gpu, system = group(grown, names.GPU_NODE_GROUP), group(grown, names.SYSTEM_NODE_GROUP)
    assert (gpu.inputs["scalingConfig"]["desiredSize"], gpu.ignore_changes) == (1, [])
    assert system.ignore_changes == ["scalingConfig"]


def test_bounds_that_end_running_nodes_are_announced(grown: Program) -> None:
    assert "this ends 1 of 2 running nodes of gpu-vllm-nodes" in grown.messages


@pytest.fixture(scope="module")
def behind() -> Program:
    """dev with a control plane and nodes of earlier versions, and one group whose creation failed."""
    failed = node_group(1, 1, 2, status="CREATE_FAILED", releaseVersion="old")
    gpu = node_group(0, 0, 2, status="DEGRADED", releaseVersion="old")
    return declare("dev", standing=standing(version="1.34", system=failed, gpu=gpu))


def test_a_group_that_never_worked_is_made_anew_and_one_that_an_update_failed_on_is_not(behind: Program) -> None:
    assert group(behind, names.SYSTEM_NODE_GROUP).replace_on_changes == ["#initerror"]
    assert group(behind, names.GPU_NODE_GROUP).replace_on_changes == []


def test_nodes_start_from_an_image_that_a_reviewed_diff_raises_and_broken_ones_are_repaired(dev: Program) -> None:
    for nodes in dev.of_type("eks/nodeGroup:NodeGroup"):
        assert nodes.inputs["releaseVersion"] == versions.NODE_RELEASE
        assert nodes.inputs["nodeRepairConfig"] == {"enabled": True}
    agent = dev.one("eks/addon:Addon", "loraserve-dev-eks-node-monitoring-agent").inputs
    gpu_part = json.loads(agent["configurationValues"])["dcgmAgent"]
    assert gpu_part["tolerations"] == [names.GPU_TAINT.toleration()]


def test_nodes_that_another_image_replaces_are_announced(behind: Program) -> None:
    replaced = [told for told in behind.messages if "one by one" in told]
    assert replaced == [f"this replaces the nodes of {SYSTEM} one by one: AMI old -> {versions.NODE_RELEASE}"]


@pytest.mark.parametrize(
    ("running", "told"), [("1.36", "takes no downgrade"), ("1.33", "one minor version at a time.* 1.34 first")]
)
def test_a_kubernetes_version_that_eks_would_refuse_is_refused_first(running: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        list(check_kubernetes(running, "1.35"))


def test_an_upgrade_of_the_control_plane_is_announced(behind: Program, grown: Program) -> None:
    upgrade = (
        f"this upgrades the control plane from Kubernetes 1.34 to {versions.KUBERNETES}, which cannot be taken back"
    )
    assert [told.startswith(upgrade) for told in behind.messages].count(True) == 1
    assert not any("upgrades" in told for told in grown.messages)


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
    assert settings.pod_disk.pod_gib < gib < 0.85 * whole
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
