"""The cluster that stands in AWS already and its nodes, asked for before anything is declared.

AWS is asked and not the last outputs: those know nothing of an `up` that failed, nor of what the autoscaler does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pulumi_aws as aws

OF = "-of-"
"""In the names of what a stack has in another one's cluster, before its own name."""


@dataclass(frozen=True)
class Group:
    """A node group as EKS holds it: its status, its AMI's release, its size and the bounds of it."""

    status: str
    release: str
    least: int
    most: int
    desired: int


@dataclass(frozen=True)
class Standing:
    """`zones` are those of the cluster, `added_zones` those that its network got later; both sorted."""

    kubernetes: str
    zones: tuple[str, ...]
    added_zones: tuple[str, ...]
    groups: Mapping[str, Group]

    def group(self, name: str) -> Group | None:
        """The node group of that name, or of a name that Pulumi made of it."""
        generated = re.compile(rf"{re.escape(name)}(-[0-9a-f]{{7}})?")
        return next((group for key, group in sorted(self.groups.items()) if generated.fullmatch(key)), None)


def look(cluster_name: str, suffix: str = "") -> Standing | None:
    """None before the first cluster, and after `destroy`. Of its groups those of one stack, told by the end of their names."""
    if cluster_name not in aws.eks.get_clusters().names:
        return None
    cluster = aws.eks.get_cluster(name=cluster_name)
    private = aws.ec2.get_subnets(
        filters=[
            {"name": "vpc-id", "values": [cluster.vpc_config.vpc_id]},
            {"name": "tag:kubernetes.io/role/internal-elb", "values": ["1"]},
        ]
    )
    subnets = {subnet: aws.ec2.get_subnet(id=subnet).availability_zone for subnet in private.ids}
    zones = {zone for subnet, zone in subnets.items() if subnet in cluster.vpc_config.subnet_ids}
    return Standing(
        kubernetes=cluster.version,
        zones=tuple(sorted(zones)),
        added_zones=tuple(sorted(set(subnets.values()) - zones)),
        groups={
            name: _group(cluster_name, name)
            for name in aws.eks.get_node_groups(cluster_name=cluster_name).names
            if name.endswith(suffix) and OF not in name.removesuffix(suffix)
        },
    )


def _group(cluster_name: str, name: str) -> Group:
    found = aws.eks.get_node_group(cluster_name=cluster_name, node_group_name=name)
    sizes = found.scaling_configs[0]
    return Group(found.status, found.release_version, sizes.min_size, sizes.max_size, sizes.desired_size)
