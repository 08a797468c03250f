"""Resource Groups Tagging API: kinds of object that moto's does not list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moto.core.resource_tagging import TaggedResource, make_tag_matcher
from moto.ec2.models import EC2Backend, ec2_backends
from moto.ecr.models import ecr_backends
from moto.eks.models import eks_backends
from moto.elbv2.models import elbv2_backends
from moto.resourcegroupstaggingapi.models import ResourceGroupsTaggingAPIBackend


def install() -> None:
    """Lists EC2's addresses, endpoints, templates and rules, listeners, repositories, clusters and node groups too."""
    listed = ResourceGroupsTaggingAPIBackend._get_resources_generator

    def listed_with_gaps(
        self: ResourceGroupsTaggingAPIBackend, tag_filters: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        yield from listed(self, tag_filters, *args, **kwargs)
        matches = make_tag_matcher(tag_filters)
        for arn, tags in _missing(self.account_id, self.region_name):
            if matches(tags):
                yield TaggedResource(arn, tags, "")

    ResourceGroupsTaggingAPIBackend._get_resources_generator = listed_with_gaps


def _missing(account: str, region: str) -> Iterator[tuple[str, dict[str, str]]]:
    ec2 = ec2_backends[account][region]
    for kind, ids in _ec2_ids(ec2).items():
        for item in ids:
            yield f"arn:aws:ec2:{region}:{account}:{kind}/{item}", dict(ec2.tags.get(item, {}))
    balancing = elbv2_backends[account][region]
    for balancer in balancing.load_balancers.values():
        for arn in balancer.listeners:
            yield arn, balancing.tagging_service.get_tag_dict_for_resource(arn)
    registry = ecr_backends[account][region]
    for repository in registry.repositories.values():
        yield repository.arn, registry.tagger.get_tag_dict_for_resource(repository.arn)
    for cluster in eks_backends[account][region].clusters.values():
        yield cluster.arn, cluster.tags or {}
        for group in cluster.nodegroups.values():
            yield group.arn, group.tags or {}


def _ec2_ids(ec2: EC2Backend) -> dict[str, list[str]]:
    groups = [group for groups in ec2.groups.values() for group in groups.values()]
    return {
        "elastic-ip": [address.allocation_id for address in ec2.addresses if address.allocation_id],
        "launch-template": list(ec2.launch_templates),
        "security-group-rule": [rule.id for group in groups for rule in (*group.ingress_rules, *group.egress_rules)],
        "vpc-endpoint": [end.id for end in ec2.vpc_end_points.values() if end.state != "deleted"],
    }
