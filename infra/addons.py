"""Third-party parts of the cluster as pinned Helm charts: the Cluster Autoscaler and the NVIDIA device plugin."""

from __future__ import annotations

from typing import Any

import pulumi

from infra import versions
from infra.charts import CLUSTER_AUTOSCALER, DEVICE_PLUGIN, on_gpu_nodes, requesting
from infra.cluster import Cluster
from infra.iam import ROLE_ANNOTATION, WorkloadRole, policy
from infra.names import AUTOSCALER_SERVICE_ACCOUNT, SYSTEM_NAMESPACE
from loraserve.planning import pod_resources


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


def autoscaler_values(cluster_name: str, region: str, idle_minutes: int) -> dict[str, Any]:
    """Chart values of the Cluster Autoscaler, without its role."""
    return {
        "autoDiscovery": {"clusterName": cluster_name},
        "awsRegion": region,
        "fullnameOverride": AUTOSCALER_SERVICE_ACCOUNT,
        "image": {"tag": versions.CLUSTER_AUTOSCALER_IMAGE},
        "resources": requesting(pod_resources.Requests(50, 128)),
        "extraArgs": {
            # An emptyDir must not keep an idle GPU node alive.
            "skip-nodes-with-local-storage": False,
            # A template learnt from a node whose GPU was not registered yet would last ten years.
            "node-info-cache-expire-time": "10m",
            "scale-down-unneeded-time": f"{idle_minutes}m",
            "scale-down-delay-after-add": f"{idle_minutes}m",
            "max-node-provision-time": "15m",
        },
    }


class Addons(pulumi.ComponentResource):
    """The autoscaler with its least-privilege role, and the plugin that registers GPUs."""

    def __init__(
        self,
        name: str,
        *,
        cluster: Cluster,
        region: str,
        gpu_idle_minutes: int,
        chart_mirror: str | None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:Addons", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        role = WorkloadRole(
            f"{cluster.name}-autoscaler",
            provider=cluster.oidc_provider,
            issuer=cluster.issuer,
            namespace=SYSTEM_NAMESPACE,
            service_account=AUTOSCALER_SERVICE_ACCOUNT,
            inline_policy=autoscaler_policy(cluster.name),
            opts=child,
        )
        service_account = {"name": AUTOSCALER_SERVICE_ACCOUNT, "annotations": {ROLE_ANNOTATION: role.arn}}
        CLUSTER_AUTOSCALER.install(
            mirror=chart_mirror,
            namespace=SYSTEM_NAMESPACE,
            values=autoscaler_values(cluster.name, region, gpu_idle_minutes)
            | {"rbac": {"serviceAccount": service_account}},
            parent=self,
            depends_on=[role],
        )
        DEVICE_PLUGIN.install(
            mirror=chart_mirror,
            namespace=SYSTEM_NAMESPACE,
            values=on_gpu_nodes() | {"resources": requesting(pod_resources.DEVICE_PLUGIN)},
            parent=self,
        )
        self.register_outputs({})
