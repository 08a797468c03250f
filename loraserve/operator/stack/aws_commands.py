"""How each kind of AWS object is deleted: commands for a person, by the kind that stands in the object's ARN.

Nothing is forced: AWS refuses what is in use, and what others have filled.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from botocore import xform_name

Connect = Callable[[str], Any]
"""Gives the boto3 client of a service, in the stack's region."""


@dataclass(frozen=True)
class Command:
    """One call to AWS, spelled as boto3 takes it; as text, as the `aws` CLI does."""

    service: str
    operation: str
    """Such as `delete_vpc`, or a waiter's name."""
    parameters: Mapping[str, Any]
    waits: bool = False

    def text(self, region: str) -> str:
        """The line for a shell."""
        service = "s3api" if self.service == "s3" else self.service
        words = ["aws", "--region", region, service, *(["wait"] if self.waits else [])]
        words.append(self.operation.replace("_", "-"))
        for key, value in self.parameters.items():
            words += [f"--{xform_name(key, '-')}", *(value if isinstance(value, list) else [value])]
        return shlex.join(words)


@dataclass(frozen=True)
class Thing:
    """An object in AWS: its kind as ARNs have it, and the name that the services' calls take."""

    kind: str
    """Such as `ec2:vpc`."""
    name: str
    arn: str = field(default="", compare=False)

    @classmethod
    def of(cls, arn: str) -> Thing:
        """`…:vpc/vpc-1`, `…:log-group:/aws/eks/a`, or for a bucket its name alone."""
        service, _, _, resource = arn.split(":", 5)[2:]
        kind, separator, name = re.split(r"([/:]|$)", resource, maxsplit=1)
        return cls(f"{service}:{kind}", name, arn) if separator else cls(f"{service}:bucket", resource, arn)


Deletion = Callable[[Connect, Thing], Iterator[Command]]


def _call(
    service: str, operation: str, parameter: str, *, by_arn: bool = False, gone: tuple[str, str] | None = None
) -> Deletion:
    """One call that takes the object's name or ARN; `gone` is the waiter for its end, and what that one takes."""

    def commands(_: Connect, thing: Thing) -> Iterator[Command]:
        for name, takes in ((operation, parameter), *([gone] if gone else [])):
            value = thing.arn if by_arn else thing.name
            yield Command(service, name, {takes: [value] if takes.endswith("s") else value}, waits=name != operation)

    return commands


def _detach_and_delete_internet_gateway(connect: Connect, thing: Thing) -> Iterator[Command]:
    gateway = {"InternetGatewayId": thing.name}
    [found] = connect("ec2").describe_internet_gateways(InternetGatewayIds=[thing.name])["InternetGateways"]
    for attachment in found["Attachments"]:
        yield Command("ec2", "detach_internet_gateway", gateway | {"VpcId": attachment["VpcId"]})
    yield Command("ec2", "delete_internet_gateway", gateway)


def _revoke_rule(connect: Connect, thing: Thing) -> Iterator[Command]:
    found = connect("ec2").describe_security_group_rules(SecurityGroupRuleIds=[thing.name])["SecurityGroupRules"][0]
    direction = "egress" if found["IsEgress"] else "ingress"
    rule = {"GroupId": found["GroupId"], "SecurityGroupRuleIds": [thing.name]}
    yield Command("ec2", f"revoke_security_group_{direction}", rule)


def _empty_and_delete_role(connect: Connect, thing: Thing) -> Iterator[Command]:
    iam, role = connect("iam"), {"RoleName": thing.name}
    for attached in iam.list_attached_role_policies(**role)["AttachedPolicies"]:
        yield Command("iam", "detach_role_policy", role | {"PolicyArn": attached["PolicyArn"]})
    for policy in iam.list_role_policies(**role)["PolicyNames"]:
        yield Command("iam", "delete_role_policy", role | {"PolicyName": policy})
    yield Command("iam", "delete_role", role)


def _delete_from_cluster(noun: str) -> Deletion:
    def commands(_: Connect, thing: Thing) -> Iterator[Command]:
        cluster, name, _id = thing.name.split("/")
        yield from deletion("eks", noun, {"clusterName": cluster, f"{noun}Name": name})

    return commands


def deletion(service: str, noun: str, target: Mapping[str, str]) -> Iterator[Command]:
    """Of what the calls `delete_<noun>` and the like take `target` for. EKS refuses while it is still being created."""
    takes_time = noun in ("cluster", "nodegroup", "addon")
    if takes_time:
        yield Command(service, f"{noun}_active", target, waits=True)
    yield Command(service, f"delete_{noun}", target)
    if takes_time:
        yield Command(service, f"{noun}_deleted", target, waits=True)


DELETIONS: Mapping[str, Deletion] = {
    "elasticloadbalancing:listener": _call("elbv2", "delete_listener", "ListenerArn", by_arn=True),
    "elasticloadbalancing:loadbalancer": _call(
        "elbv2",
        "delete_load_balancer",
        "LoadBalancerArn",
        by_arn=True,
        gone=("load_balancers_deleted", "LoadBalancerArns"),
    ),
    "elasticloadbalancing:targetgroup": _call("elbv2", "delete_target_group", "TargetGroupArn", by_arn=True),
    "eks:nodegroup": _delete_from_cluster("nodegroup"),
    "eks:addon": _delete_from_cluster("addon"),
    "eks:cluster": lambda _, thing: deletion("eks", "cluster", {"name": thing.name}),
    "autoscaling:group": _call("autoscaling", "delete_auto_scaling_group", "AutoScalingGroupName"),
    "ec2:instance": _call("ec2", "terminate_instances", "InstanceIds", gone=("instance_terminated", "InstanceIds")),
    "ec2:volume": _call("ec2", "delete_volume", "VolumeId"),
    # Until it is gone it holds its address.
    "ec2:natgateway": _call("ec2", "delete_nat_gateway", "NatGatewayId", gone=("nat_gateway_deleted", "NatGatewayIds")),
    "ec2:elastic-ip": _call("ec2", "release_address", "AllocationId"),
    "ec2:network-interface": _call("ec2", "delete_network_interface", "NetworkInterfaceId"),
    "ec2:vpc-endpoint": _call("ec2", "delete_vpc_endpoints", "VpcEndpointIds"),
    "ec2:launch-template": _call("ec2", "delete_launch_template", "LaunchTemplateId"),
    "ec2:security-group-rule": _revoke_rule,
    "ec2:security-group": _call("ec2", "delete_security_group", "GroupId"),
    "ec2:subnet": _call("ec2", "delete_subnet", "SubnetId"),
    "ec2:route-table": _call("ec2", "delete_route_table", "RouteTableId"),
    "ec2:internet-gateway": _detach_and_delete_internet_gateway,
    "ec2:vpc": _call("ec2", "delete_vpc", "VpcId"),
    "iam:oidc-provider": _call("iam", "delete_open_id_connect_provider", "OpenIDConnectProviderArn", by_arn=True),
    "iam:role": _empty_and_delete_role,
    "ecr:repository": _call("ecr", "delete_repository", "repositoryName"),
    "logs:log-group": _call("logs", "delete_log_group", "logGroupName"),
    "s3:bucket": _call("s3", "delete_bucket", "Bucket"),
}
"""In the order in which they let go of each other."""
