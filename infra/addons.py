"""Third-party parts of the cluster as pinned Helm charts: the Cluster Autoscaler and the NVIDIA device plugin."""

from __future__ import annotations

from typing import Any

import pulumi

from infra import versions
from infra.charts import CLUSTER_AUTOSCALER, DEVICE_PLUGIN, bounded, confined, hardened, on_gpu_nodes
from infra.cluster import Cluster
from infra.iam import (
    AUDIENCE,
    TOKEN_DIR,
    TOKEN_FILE,
    TOKEN_SECONDS,
    TOKEN_VOLUME,
    WorkloadRole,
    policy,
    web_identity,
)
from infra.names import AUTOSCALER_SERVICE_ACCOUNT, SPOT_NODE_GROUP, SYSTEM_NAMESPACE
from loraserve.planning import pod_resources
from loraserve.planning.pod_resources import Requests

_AUTOSCALER_USER = 65534
_AUTOSCALER_STEADY_SECONDS = 30
"""Without a role or a right it ends within seconds of its start, again and again."""


def autoscaler_policy(cluster_name: str) -> str:
    """What the autoscaler may do: look at everything it needs to see, resize the groups of this cluster alone."""
    owned = {
        "aws:ResourceTag/k8s.io/cluster-autoscaler/enabled": "true",
        f"aws:ResourceTag/k8s.io/cluster-autoscaler/{cluster_name}": "owned",
    }
    return policy(
        {
            "Sid": "Observe",
            "Effect": "Allow",
            "Action": [
                "autoscaling:DescribeAutoScalingGroups",
                "autoscaling:DescribeAutoScalingInstances",
                "autoscaling:DescribeLaunchConfigurations",
                "autoscaling:DescribeScalingActivities",
                "autoscaling:DescribeTags",
                "ec2:DescribeImages",
                "ec2:DescribeInstanceTypes",
                "ec2:DescribeLaunchTemplateVersions",
                "ec2:GetInstanceTypesFromInstanceRequirements",
                "eks:DescribeNodegroup",
            ],
            "Resource": "*",
        },
        {
            "Sid": "ResizeOwnGroups",
            "Effect": "Allow",
            "Action": ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"],
            "Resource": "*",
            "Condition": {"StringEquals": owned},
        },
    )


_SPOT_FIRST = {"20": [f".*{SPOT_NODE_GROUP}.*"], "10": [".*"]}
"""Auto Scaling groups by priority, the highest first. One without capacity is left alone for a while, and the next is taken."""


def autoscaler_values(
    cluster_name: str, region: str, idle_minutes: int, role_arn: pulumi.Input[str], *, spot: bool
) -> dict[str, Any]:
    """Chart values of the Cluster Autoscaler.

    It finds its role without EKS's webhook, which leaves a pod alone that comes before its annotated service account.
    """
    token = {"audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": TOKEN_FILE}
    return {
        "autoDiscovery": {"clusterName": cluster_name},
        "awsRegion": region,
        "extraEnv": web_identity(role_arn),
        "extraVolumes": [{"name": TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}}],
        "extraVolumeMounts": [{"name": TOKEN_VOLUME, "mountPath": TOKEN_DIR, "readOnly": True}],
        "rbac": {"serviceAccount": {"name": AUTOSCALER_SERVICE_ACCOUNT}},
        "fullnameOverride": AUTOSCALER_SERVICE_ACCOUNT,
        "image": {"tag": versions.CLUSTER_AUTOSCALER_IMAGE},
        "resources": bounded(Requests(50, 128), 512),
        "securityContext": confined(_AUTOSCALER_USER),
        "containerSecurityContext": hardened(),
        "extraArgs": {
            # An emptyDir must not keep an idle GPU node alive.
            "skip-nodes-with-local-storage": False,
            # A template learnt from a node whose GPU was not registered yet would last ten years.
            "node-info-cache-expire-time": "10m",
            "scale-down-unneeded-time": f"{idle_minutes}m",
            "scale-down-delay-after-add": f"{idle_minutes}m",
            "max-node-provision-time": "15m",
            **({"expander": "priority"} if spot else {}),
        },
        **({"expanderPriorities": _SPOT_FIRST} if spot else {}),
    }


def awaited_while_it_works(resource: pulumi.ResourceTransformArgs) -> pulumi.ResourceTransformResult | None:
    """Its chart has no readiness probe, so `up` would take the moment before each crash for success."""
    if resource.type_ != "kubernetes:apps/v1:Deployment":
        return None
    spec: Any = resource.props["spec"]
    steady = spec | {"minReadySeconds": _AUTOSCALER_STEADY_SECONDS}
    return pulumi.ResourceTransformResult({**resource.props, "spec": steady}, resource.opts)


class Addons(pulumi.ComponentResource):
    """The autoscaler with its least-privilege role, and the plugin that registers GPUs."""

    def __init__(
        self,
        name: str,
        *,
        cluster: Cluster,
        region: str,
        gpu_idle_minutes: int,
        gpu_spot: bool,
        chart_mirror: str | None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:Addons", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        role = WorkloadRole(
            f"{cluster.name}-autoscaler",
            tokens=cluster.tokens,
            namespace=SYSTEM_NAMESPACE,
            service_account=AUTOSCALER_SERVICE_ACCOUNT,
            inline_policy=autoscaler_policy(cluster.name),
            opts=child,
        )
        CLUSTER_AUTOSCALER.install(
            mirror=chart_mirror,
            namespace=SYSTEM_NAMESPACE,
            values=autoscaler_values(cluster.name, region, gpu_idle_minutes, role.arn, spot=gpu_spot),
            parent=self,
            depends_on=[role],
            transforms=[awaited_while_it_works],
        )
        DEVICE_PLUGIN.install(
            mirror=chart_mirror,
            namespace=SYSTEM_NAMESPACE,
            values=on_gpu_nodes() | {"resources": bounded(pod_resources.DEVICE_PLUGIN, 256)},
            parent=self,
        )
        self.register_outputs({})
