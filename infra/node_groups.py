"""The node groups: a small one for everything but vLLM, and the GPU group that costs nothing while it is empty."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import pulumi
import pulumi_aws as aws

from infra import versions
from infra.cluster import Cluster
from infra.iam import service_trust
from infra.names import GPU_NODE_GROUP, GPU_PURPOSE_TAG, GPU_RESOURCE, GPU_TAINT, SYSTEM_NODE_GROUP, gpu_node_labels
from infra.network import Network
from infra.tags import stack_tag
from loraserve.planning.instance_types import SYSTEM_VOLUME_GIB
from loraserve.planning.pod_resources import USABLE_DISK
from loraserve.planning.stack_settings import Settings

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


def autoscaler_tags(settings: Settings) -> dict[str, str]:
    """Tags by which Cluster Autoscaler knows an empty group's nodes, and how long an idle one is kept."""
    instance = settings.gpu_instance
    labels = gpu_node_labels(instance.gpu.product)
    return {
        **{f"{_AUTOSCALER}/label/{key}": value for key, value in labels.items()},
        f"{_AUTOSCALER}/taint/{GPU_TAINT.key}": GPU_TAINT.autoscaler_value,
        f"{_AUTOSCALER}/resources/{GPU_RESOURCE}": "1",
        f"{_AUTOSCALER}/resources/ephemeral-storage": f"{int(settings.gpu_node_disk_gib * USABLE_DISK)}Gi",
        f"{_AUTOSCALER}/autoscaling-options/scaledownunneededtime": f"{settings.node_idle_minutes}m0s",
        f"{_AUTOSCALER}/autoscaling-options/scaledownunreadytime": f"{settings.node_idle_minutes}m0s",
    }


def _volume(gib: int, mibps: int | None = None) -> aws.ec2.LaunchTemplateBlockDeviceMappingEbsArgsDict:
    return {
        "volume_type": "gp3",
        "volume_size": gib,
        "throughput": mibps,
        "encrypted": "true",
        "delete_on_termination": "true",
    }


def autoscaling_group_name(resources: Sequence[aws.eks.outputs.NodeGroupResource]) -> str:
    """The group that EKS made; it knows its name only once the node group exists."""
    groups = resources[0].autoscaling_groups or [] if resources else []
    if not groups or not groups[0].name:
        raise ValueError(
            "EKS did not name the Auto Scaling group of a node group; run `pulumi refresh`, then `pulumi up`"
        )
    return groups[0].name


class NodeGroups(pulumi.ComponentResource):
    """Both managed node groups, their role and launch templates."""

    def __init__(
        self,
        name: str,
        *,
        settings: Settings,
        cluster: Cluster,
        network: Network,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:NodeGroups", name, None, opts)
        self._child = pulumi.ResourceOptions(parent=self)
        self._cluster = cluster
        self._subnet_ids = network.private_subnet_ids
        self._role = aws.iam.Role(
            f"{name}-node", assume_role_policy=service_trust("ec2.amazonaws.com"), opts=self._child
        )
        attached = [self._attach(policy) for policy in _NODE_POLICIES]
        # Nodes leave before their role's policies, the CNI and the way out do: else network interfaces stay behind.
        self._node_opts = pulumi.ResourceOptions(parent=self, depends_on=[*attached, cluster.eks, network])
        self.system = self._create_system_group(settings)
        self.gpu = self._create_gpu_group(settings)
        self.register_outputs({"gpu": self.gpu.node_group_name})

    def _attach(self, policy: str) -> aws.iam.RolePolicyAttachment:
        return aws.iam.RolePolicyAttachment(
            f"node-{policy}", role=self._role.name, policy_arn=f"arn:aws:iam::aws:policy/{policy}", opts=self._child
        )

    def _create_system_group(self, settings: Settings) -> aws.eks.NodeGroup:
        count = settings.system_node_count
        template = self._create_template(
            SYSTEM_NODE_GROUP,
            volume=_volume(SYSTEM_VOLUME_GIB),
            user_data=node_user_data({"kubelet": {"config": {"maxPods": SYSTEM_MAX_PODS}}}),
            tags={},
        )
        return aws.eks.NodeGroup(
            SYSTEM_NODE_GROUP,
            **self._common(template),
            ami_type="AL2023_x86_64_STANDARD",
            instance_types=[settings.system_instance_type],
            scaling_config={"min_size": count, "desired_size": count, "max_size": count + 1},
            opts=self._node_opts,
        )

    def _create_gpu_group(self, settings: Settings) -> aws.eks.NodeGroup:
        template = self._create_template(
            GPU_NODE_GROUP,
            # With RAID0 images lie on NVMe, and the root volume needs no speed.
            volume=_volume(settings.gpu_root_volume_gib, None if settings.gpu_nvme_raid0 else _GPU_VOLUME_MIBPS),
            user_data=node_user_data(gpu_node_spec(nvme_raid0=settings.gpu_nvme_raid0)),
            tags=GPU_PURPOSE_TAG,
        )
        group = aws.eks.NodeGroup(
            GPU_NODE_GROUP,
            **self._common(template),
            node_group_name=GPU_NODE_GROUP,
            ami_type="AL2023_x86_64_NVIDIA",
            instance_types=[settings.gpu_instance_type],
            scaling_config={
                "min_size": settings.gpu_min_size,
                "desired_size": settings.gpu_min_size,
                "max_size": settings.gpu_max_size,
            },
            labels=gpu_node_labels(settings.gpu_instance.gpu.product),
            taints=[{"key": GPU_TAINT.key, "value": GPU_TAINT.value, "effect": GPU_TAINT.eks_effect}],
            warm_pool_config={"max_group_prepared_capacity": 1} if settings.gpu_warm_pool else None,
            tags=GPU_PURPOSE_TAG,
            opts=pulumi.ResourceOptions.merge(
                self._node_opts,
                pulumi.ResourceOptions(
                    # The autoscaler owns the desired size.
                    ignore_changes=["scalingConfig.desiredSize"],
                    # Two groups cannot share the name.
                    delete_before_replace=True,
                ),
            ),
        )
        self._tag_for_autoscaler(group, autoscaler_tags(settings))
        return group

    def _common(self, template: aws.ec2.LaunchTemplate) -> dict[str, Any]:
        return {
            "cluster_name": self._cluster.name,
            "node_role_arn": self._role.arn,
            "subnet_ids": self._subnet_ids,
            "version": versions.KUBERNETES,
            "launch_template": {
                "id": template.id,
                "version": template.latest_version.apply(str),
            },
            "update_config": {"max_unavailable": 1},
        }

    def _create_template(
        self,
        name: str,
        *,
        volume: aws.ec2.LaunchTemplateBlockDeviceMappingEbsArgsDict,
        user_data: str,
        tags: dict[str, str],
    ) -> aws.ec2.LaunchTemplate:
        instance_tags = {"Name": f"{self._cluster.name}-{name}"} | stack_tag() | tags
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

    def _tag_for_autoscaler(self, group: aws.eks.NodeGroup, tags: dict[str, str]) -> None:
        """EKS does not hand a node group's tags on to its Auto Scaling group, where the autoscaler reads them."""
        name = group.resources.apply(autoscaling_group_name)
        for key, value in tags.items():
            aws.autoscaling.Tag(
                f"{GPU_NODE_GROUP}-{key.removeprefix(_AUTOSCALER + '/')}",
                autoscaling_group_name=name,
                tag={"key": key, "value": value, "propagate_at_launch": False},
                opts=self._child,
            )
