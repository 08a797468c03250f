"""The node groups: a small one for everything but vLLM, and the GPU group that costs nothing while it is empty."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pulumi
import pulumi_aws as aws

from infra import versions
from infra.iam import service_trust
from infra.names import (
    GPU_NODE_GROUP,
    GPU_PURPOSE_TAG,
    GPU_RESOURCE,
    GPU_TAINT,
    SPOT_NODE_GROUP,
    SYSTEM_NODE_GROUP,
    TRAINING_NODE_GROUP,
    TRAINING_PURPOSE_TAG,
    TRAINING_SELECTOR,
    gpu_node_labels,
)
from infra.place import Place
from infra.standing import Group, Standing
from infra.tags import stack_tag
from loraserve.planning.instance_types import SYSTEM_VOLUME_GIB, with_the_same_gpus
from loraserve.planning.pod_resources import TRAINING_NODE_DISK_GIB, USABLE_DISK
from loraserve.planning.setting_sections import TrainingGroup
from loraserve.planning.stack_settings import EMPTY_NODE_MINUTES, Settings

SYSTEM_MAX_PODS = 110
"""With prefix delegation; without it a t3-class node holds 17 pods, about what the system pods alone need."""
_GPU_VOLUME_MIBPS = 600
"""Fast image pull wants it; gp3's own 3,000 IOPS carry up to 750 MiB/s."""
_NODE_POLICIES = ("AmazonEKSWorkerNodePolicy", "AmazonEKS_CNI_Policy", "AmazonEC2ContainerRegistryPullOnly")
_AUTOSCALER = "k8s.io/cluster-autoscaler/node-template"


def node_user_data(spec: dict[str, Any]) -> str:
    """A NodeConfig for the EKS AMI, as base64 MIME; EKS appends its own part to it."""
    config = {"apiVersion": "node.eks.aws/v1alpha1", "kind": "NodeConfig", "spec": spec}
    mime = "\n".join(
        [
            "MIME-Version: 1.0",
            'Content-Type: multipart/mixed; boundary="//"',
            "",
            "--//",
            "Content-Type: application/node.eks.aws",
            "",
            json.dumps(config, indent=2, sort_keys=True),
            "--//--",
            "",
        ]
    )
    return base64.b64encode(mime.encode()).decode()


def gpu_node_spec(*, nvme_raid0: bool) -> dict[str, Any]:
    """NodeConfig of a GPU node: parallel image pull, and images and scratch on NVMe where asked for."""
    spec: dict[str, Any] = {"featureGates": {"FastImagePull": True}}
    if nvme_raid0:
        spec["instance"] = {"localStorage": {"strategy": "RAID0"}}
    return spec


def autoscaler_tags(settings: Settings, suffix: str = "") -> dict[str, str]:
    """Tags by which Cluster Autoscaler knows an empty group's nodes, and how long an idle one is kept."""
    labels = gpu_node_labels(settings.gpu_instance.gpu.product, suffix)
    return _autoscaler_tags(labels, settings.gpu_instance.gpus, settings.gpu_node_disk_gib, settings.node_idle_minutes)


def _autoscaler_tags(labels: Mapping[str, str], gpus: int, disk_gib: int, idle_minutes: int) -> dict[str, str]:
    return {
        **{f"{_AUTOSCALER}/label/{key}": value for key, value in labels.items()},
        f"{_AUTOSCALER}/taint/{GPU_TAINT.key}": GPU_TAINT.autoscaler_value,
        f"{_AUTOSCALER}/resources/{GPU_RESOURCE}": str(gpus),
        f"{_AUTOSCALER}/resources/ephemeral-storage": f"{int(disk_gib * USABLE_DISK)}Gi",
        f"{_AUTOSCALER}/autoscaling-options/scaledownunneededtime": f"{idle_minutes}m0s",
        f"{_AUTOSCALER}/autoscaling-options/scaledownunreadytime": f"{idle_minutes}m0s",
    }


def _volume(gib: int, mibps: int | None = None) -> aws.ec2.LaunchTemplateBlockDeviceMappingEbsArgsDict:
    return {
        "volume_type": "gp3",
        "volume_size": gib,
        "throughput": mibps,
        "encrypted": "true",
        "delete_on_termination": "true",
    }


def sizes(group: Group | None, least: int, most: int) -> tuple[aws.eks.NodeGroupScalingConfigArgsDict, list[str]]:
    """A node group's size, and what of it to leave alone: the autoscaler changes the desired size, and EKS takes that one
    only together with its bounds. Other bounds carry the size that there is now."""
    if group is None:
        return {"min_size": least, "desired_size": least, "max_size": most}, ["scalingConfig.desiredSize"]
    desired = min(max(group.desired, least), most)
    unchanged = (group.least, group.most) == (least, most)
    return {"min_size": least, "desired_size": desired, "max_size": most}, ["scalingConfig"] if unchanged else []


def never_worked(group: Group | None) -> list[str]:
    """What makes the engine replace a group whose creation failed. After a failed update it would end nodes that run."""
    return ["#initerror"] if group and group.status == "CREATE_FAILED" else []


def autoscaling_group_name(resources: Sequence[aws.eks.outputs.NodeGroupResource]) -> str:
    """The group that EKS made; it knows its name only once the node group exists."""
    groups = resources[0].autoscaling_groups or [] if resources else []
    if not groups or not groups[0].name:
        raise ValueError(
            "EKS did not name the Auto Scaling group of a node group; run `pulumi refresh`, then `pulumi up`"
        )
    return groups[0].name


class GpuNodes(pulumi.ComponentResource):
    """The GPU groups of one stack, their role and launch template."""

    def __init__(
        self,
        name: str,
        *,
        settings: Settings,
        place: Place,
        standing: Standing | None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:NodeGroups", name, None, opts)
        self._child = pulumi.ResourceOptions(parent=self)
        self._place = place
        self._standing = standing
        self._role = aws.iam.Role(
            f"{name}-node", assume_role_policy=service_trust("ec2.amazonaws.com"), opts=self._child
        )
        attached = [self._attach(policy) for policy in _NODE_POLICIES]
        # Nodes leave before their role's policies, the CNI and the way out do: else network interfaces stay behind.
        self._node_opts = pulumi.ResourceOptions(parent=self, depends_on=[*attached, *place.needs])
        template, zones = self._create_gpu_template(settings), place.zones
        self.gpu = self._create_gpu_group(GPU_NODE_GROUP, settings, template, zones.cluster, settings.gpu_min_size)
        if settings.gpu_spot:
            spot = {"capacity_type": "SPOT", "instance_types": with_the_same_gpus(settings.gpu_instance)}
            self._create_gpu_group(SPOT_NODE_GROUP, settings, template, zones.cluster, 0, spot)
        for zone in zones.added:
            self._create_gpu_group(f"{GPU_NODE_GROUP}-{zone[-1]}", settings, template, [zone], 0)
        if settings.training:
            self._create_training_group(settings.training, zones.cluster)
        self.register_outputs({"gpu": self.gpu.node_group_name})

    def _attach(self, policy: str) -> aws.iam.RolePolicyAttachment:
        return aws.iam.RolePolicyAttachment(
            f"node-{policy}", role=self._role.name, policy_arn=f"arn:aws:iam::aws:policy/{policy}", opts=self._child
        )

    def _create_gpu_template(self, settings: Settings) -> aws.ec2.LaunchTemplate:
        return self._create_template(
            GPU_NODE_GROUP,
            # With RAID0 images lie on NVMe, and the root volume needs no speed.
            volume=_volume(settings.gpu_root_volume_gib, None if settings.gpu_nvme_raid0 else _GPU_VOLUME_MIBPS),
            user_data=node_user_data(gpu_node_spec(nvme_raid0=settings.gpu_nvme_raid0)),
            tags=GPU_PURPOSE_TAG,
        )

    def _create_gpu_group(
        self,
        name: str,
        settings: Settings,
        template: aws.ec2.LaunchTemplate,
        zones: Sequence[str],
        least: int,
        capacity: Mapping[str, Any] | None = None,
    ) -> aws.eks.NodeGroup:
        """On demand, of the one type, where no other `capacity` is given; EKS keeps no warm pool of spot instances."""
        name, suffix = f"{name}{self._place.suffix}", self._place.suffix
        on_demand = {
            "instance_types": [settings.gpu_instance_type],
            "warm_pool_config": {"max_group_prepared_capacity": 1} if settings.gpu_warm_pool else None,
        }
        group = self._create_group(
            name,
            template,
            zones=zones,
            least=least,
            most=settings.gpu_max_size,
            node_group_name=name,
            ami_type="AL2023_x86_64_NVIDIA",
            **(capacity or on_demand),
            labels=gpu_node_labels(settings.gpu_instance.gpu.product, suffix),
            taints=[{"key": GPU_TAINT.key, "value": GPU_TAINT.value, "effect": GPU_TAINT.eks_effect}],
            tags=GPU_PURPOSE_TAG,
        )
        self._tag_for_autoscaler(name, group, autoscaler_tags(settings, suffix))
        return group

    def _create_training_group(self, training: TrainingGroup, zones: Sequence[str]) -> None:
        """At most one node, and none while nothing is trained."""
        name, suffix = f"{TRAINING_NODE_GROUP}{self._place.suffix}", self._place.suffix
        labels = gpu_node_labels(training.instance.gpu.product, suffix, TRAINING_SELECTOR)
        template = self._create_template(
            TRAINING_NODE_GROUP,
            volume=_volume(TRAINING_NODE_DISK_GIB, _GPU_VOLUME_MIBPS),
            user_data=node_user_data(gpu_node_spec(nvme_raid0=False)),
            tags=TRAINING_PURPOSE_TAG,
        )
        group = self._create_group(
            name,
            template,
            zones=zones,
            least=0,
            most=1,
            node_group_name=name,
            ami_type="AL2023_x86_64_NVIDIA",
            instance_types=[training.instance_type],
            labels=labels,
            taints=[{"key": GPU_TAINT.key, "value": GPU_TAINT.value, "effect": GPU_TAINT.eks_effect}],
            tags=TRAINING_PURPOSE_TAG,
        )
        tags = _autoscaler_tags(labels, training.instance.gpus, TRAINING_NODE_DISK_GIB, EMPTY_NODE_MINUTES)
        self._tag_for_autoscaler(name, group, tags)

    def _create_group(
        self,
        name: str,
        template: aws.ec2.LaunchTemplate,
        *,
        zones: Sequence[str],
        least: int,
        most: int,
        **properties: Any,
    ) -> aws.eks.NodeGroup:
        group = self._standing.group(name) if self._standing else None
        size, left_alone = sizes(group, least, most)
        own = pulumi.ResourceOptions(
            ignore_changes=left_alone,
            replace_on_changes=never_worked(group),
            # Two groups cannot share a name.
            delete_before_replace="node_group_name" in properties,
        )
        return aws.eks.NodeGroup(
            name,
            cluster_name=self._place.cluster,
            node_role_arn=self._role.arn,
            # Those of its creation: EKS gives a group no others later.
            subnet_ids=[self._place.private_subnets[zone] for zone in zones],
            version=versions.KUBERNETES,
            release_version=versions.NODE_RELEASE,
            launch_template={"id": template.id, "version": template.latest_version.apply(str)},
            scaling_config=size,
            update_config={"max_unavailable": 1},
            node_repair_config={"enabled": True},
            **properties,
            opts=pulumi.ResourceOptions.merge(self._node_opts, own),
        )

    def _create_template(
        self,
        name: str,
        *,
        volume: aws.ec2.LaunchTemplateBlockDeviceMappingEbsArgsDict,
        user_data: str,
        tags: dict[str, str],
    ) -> aws.ec2.LaunchTemplate:
        instance_tags = {"Name": f"{self._place.cluster}-{name}"} | stack_tag() | tags
        return aws.ec2.LaunchTemplate(
            name,
            block_device_mappings=[{"device_name": "/dev/xvda", "ebs": volume}],
            metadata_options={"http_endpoint": "enabled", "http_tokens": "required", "http_put_response_hop_limit": 1},
            tag_specifications=[
                {"resource_type": kind, "tags": instance_tags} for kind in ("instance", "volume", "network-interface")
            ],
            user_data=user_data,
            update_default_version=True,
            opts=self._child,
        )

    def _tag_for_autoscaler(self, group_name: str, group: aws.eks.NodeGroup, tags: dict[str, str]) -> None:
        """EKS does not hand a node group's tags on to its Auto Scaling group, where the autoscaler reads them."""
        name = group.resources.apply(autoscaling_group_name)
        for key, value in tags.items():
            aws.autoscaling.Tag(
                f"{group_name}-{key.removeprefix(_AUTOSCALER + '/')}",
                autoscaling_group_name=name,
                tag={"key": key, "value": value, "propagate_at_launch": False},
                opts=self._child,
            )


class NodeGroups(GpuNodes):
    """And the system group, of the stack whose cluster it is."""

    def __init__(self, name: str, *, settings: Settings, place: Place, standing: Standing | None) -> None:
        super().__init__(name, settings=settings, place=place, standing=standing)
        template = self._create_template(
            SYSTEM_NODE_GROUP,
            volume=_volume(SYSTEM_VOLUME_GIB),
            user_data=node_user_data({"kubelet": {"config": {"maxPods": SYSTEM_MAX_PODS}}}),
            tags={},
        )
        self.system = self._create_group(
            SYSTEM_NODE_GROUP,
            template,
            zones=place.zones.cluster,
            least=settings.system_node_count,
            most=settings.most_system_nodes,
            ami_type="AL2023_x86_64_STANDARD",
            instance_types=[settings.system_instance_type],
        )
