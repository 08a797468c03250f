"""The disk of Prometheus: a volume of the stack's own, in one zone, so that `destroy` sees it go.

A volume that a driver makes is deleted by that driver, some time after its claim; nothing waits for that before the driver
itself goes. Here claim, PersistentVolume and disk are declared: the PersistentVolume goes once the driver has detached it
(the finalizer of its attacher), then the driver, and AWS deletes the disk.
"""

from __future__ import annotations

import pulumi
import pulumi_aws as aws
import pulumi_kubernetes as k8s

from infra.charts import KUBE_PROMETHEUS_STACK
from infra.names import PROMETHEUS_VOLUME

TEMPLATE = "data"
CLAIM = f"{TEMPLATE}-prometheus-{KUBE_PROMETHEUS_STACK.name}-prometheus-0"
"""As the operator's StatefulSet looks for it: the template, the StatefulSet, the replica."""
_STATIC = ""
"""The class of a claim that no driver is to make a volume for."""


def create_volume(name: str, gib: int, zone: str, driver: pulumi.Resource, parent: pulumi.Resource) -> pulumi.Resource:
    """The disk, known to the cluster."""
    disk = aws.ebs.Volume(
        f"{name}-prometheus",
        availability_zone=zone,
        size=gib,
        type="gp3",
        encrypted=True,
        tags={"Name": f"{name}-prometheus"},
        opts=pulumi.ResourceOptions(parent=parent),
    )
    in_zone: k8s.core.v1.NodeSelectorRequirementArgsDict = {
        "key": "topology.kubernetes.io/zone",
        "operator": "In",
        "values": [zone],
    }
    return k8s.core.v1.PersistentVolume(
        PROMETHEUS_VOLUME,
        metadata={"name": PROMETHEUS_VOLUME},
        spec={
            "access_modes": ["ReadWriteOnce"],
            "capacity": {"storage": f"{gib}Gi"},
            "csi": {"driver": "ebs.csi.aws.com", "volume_handle": disk.id, "fs_type": "ext4"},
            "node_affinity": {"required": {"node_selector_terms": [{"match_expressions": [in_zone]}]}},
            "persistent_volume_reclaim_policy": "Retain",
            "storage_class_name": _STATIC,
        },
        opts=pulumi.ResourceOptions(parent=parent, depends_on=[driver]),
    )


def create_claim(gib: int, namespace: pulumi.Input[str], parent: pulumi.Resource) -> k8s.core.v1.PersistentVolumeClaim:
    """The claim that Prometheus' pod finds in the place of one made from its template."""
    return k8s.core.v1.PersistentVolumeClaim(
        CLAIM,
        metadata={"name": CLAIM, "namespace": namespace},
        spec={
            "access_modes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{gib}Gi"}},
            "storage_class_name": _STATIC,
            "volume_name": PROMETHEUS_VOLUME,
        },
        opts=pulumi.ResourceOptions(parent=parent),
    )


def claim_template(gib: int) -> dict[str, object]:
    """Chart values that lead to that claim."""
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": f"{gib}Gi"}},
        "storageClassName": _STATIC,
        "volumeName": PROMETHEUS_VOLUME,
    }
    return {"volumeClaimTemplate": {"metadata": {"name": TEMPLATE}, "spec": spec}}
