"""The AWS object that a recorded creation may have made: one finder per type.

A finder yields what fits the creation's inputs, each with the call that deletes it. Nothing is deleted by force: an
object that others use by now is not new, and AWS refuses to delete it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from botocore.exceptions import ClientError, WaiterError

ROUTE = "aws:ec2/route:Route"

Item = Mapping[str, Any]
"""One object as an AWS call describes it."""


class InputMissing(Exception):
    """The recorded inputs lack what would identify the object."""


class Inputs(dict[str, Any]):
    """A creation's recorded inputs. Raises InputMissing for one that is not there."""

    def __missing__(self, key: str) -> Any:
        raise InputMissing(key)

    @property
    def every_tag(self) -> dict[str, str]:
        """Its own tags and the provider's default ones."""
        return (self.get("tags") or {}) | (self.get("tagsAll") or {})


@dataclass(frozen=True)
class Found:
    """An object in AWS, by the id that `recorded_id` gives it; `delete` waits until it is gone."""

    id: str
    tags: Mapping[str, str]
    delete: Callable[[], object]


Connect = Callable[[str], Any]
"""Gives the boto3 client of a service, in the creation's region."""
Finder = Callable[[Connect, Inputs], Iterator[Found]]


def recorded_id(resource: Mapping[str, Any]) -> str:
    """The id of a resource in the state: Pulumi's, but for a route, whose id there is a hash."""
    return _route_id(resource["inputs"]) if resource["type"] == ROUTE else resource.get("id", "")


def is_gone(error: ClientError) -> bool:
    """Whether AWS said that the object does not exist."""
    code = error.response.get("Error", {}).get("Code", "")
    return "NotFound" in code or code.startswith("NoSuch")


def _ec2(
    listing: str, id_key: str, fits: Callable[[Item, Inputs], bool], delete: Callable[[Any, str], object]
) -> Finder:
    """Among what EC2's `describe_<listing>` lists. What has no name of its own is recognized by its tags alone."""

    def find(connect: Connect, wanted: Inputs) -> Iterator[Found]:
        if "name" not in wanted and not wanted.every_tag:
            raise InputMissing("tags")
        ec2 = connect("ec2")
        for item in _described(ec2, listing):
            if _exists(item) and fits(item, wanted):
                yield Found(item[id_key], _tag_map(item.get("Tags")), partial(delete, ec2, item[id_key]))

    return find


def _described(ec2: Any, listing: str) -> Iterator[Item]:
    call = f"describe_{listing}"
    pages = ec2.get_paginator(call).paginate() if ec2.can_paginate(call) else [getattr(ec2, call)()]
    for page in pages:
        for part in page.get("Reservations", [page]):  # only instances come in reservations
            yield from part[listing.title().replace("_", "")]


def _exists(item: Item) -> bool:
    state = item.get("State", "")
    name = state["Name"] if isinstance(state, Mapping) else state
    return name.lower() not in ("deleting", "deleted", "shutting-down", "terminated")


def _in_vpc(item: Item, wanted: Inputs) -> bool:
    return item["VpcId"] == wanted["vpcId"]


def _is_instance(item: Item, wanted: Inputs) -> bool:
    same = {"SubnetId": "subnetId", "ImageId": "ami", "InstanceType": "instanceType"}
    return all(item.get(key) == wanted[name] for key, name in same.items())


def _delete_internet_gateway(ec2: Any, gateway: str) -> None:
    [found] = ec2.describe_internet_gateways(InternetGatewayIds=[gateway])["InternetGateways"]
    for attachment in found["Attachments"]:
        ec2.detach_internet_gateway(InternetGatewayId=gateway, VpcId=attachment["VpcId"])
    ec2.delete_internet_gateway(InternetGatewayId=gateway)


def _delete_nat_gateway(ec2: Any, gateway: str) -> None:
    """Waits, since until it is gone it holds its address."""
    ec2.delete_nat_gateway(NatGatewayId=gateway)
    ec2.get_waiter("nat_gateway_deleted").wait(NatGatewayIds=[gateway])


def _delete_vpc_endpoint(ec2: Any, endpoint: str) -> None:
    for refusal in ec2.delete_vpc_endpoints(VpcEndpointIds=[endpoint]).get("Unsuccessful", []):
        raise ClientError({"Error": refusal["Error"]}, "DeleteVpcEndpoints")


def _terminate_instance(ec2: Any, instance: str) -> None:
    ec2.terminate_instances(InstanceIds=[instance])
    ec2.get_waiter("instance_terminated").wait(InstanceIds=[instance])


def _find_route(connect: Connect, wanted: Inputs) -> Iterator[Found]:
    ec2, target = connect("ec2"), {"RouteTableId": wanted["routeTableId"]}
    destination = {"DestinationCidrBlock": wanted["destinationCidrBlock"]}
    ways = {"GatewayId": "gatewayId", "NatGatewayId": "natGatewayId", "NetworkInterfaceId": "networkInterfaceId"}
    described = destination | {key: wanted[name] for key, name in ways.items() if name in wanted}
    [table] = ec2.describe_route_tables(RouteTableIds=[wanted["routeTableId"]])["RouteTables"]
    for route in table["Routes"]:
        if all(route.get(key) == value for key, value in described.items()):
            yield Found(_route_id(wanted), {}, partial(ec2.delete_route, **target, **destination))


def _route_id(inputs: Mapping[str, Any]) -> str:
    return f"{inputs['routeTableId']} {inputs['destinationCidrBlock']}"


def _find_association(connect: Connect, wanted: Inputs) -> Iterator[Found]:
    ec2 = connect("ec2")
    [table] = ec2.describe_route_tables(RouteTableIds=[wanted["routeTableId"]])["RouteTables"]
    for association in table["Associations"]:
        if association.get("SubnetId") == wanted["subnetId"]:
            found = association["RouteTableAssociationId"]
            yield Found(found, {}, partial(ec2.disassociate_route_table, AssociationId=found))


def _security_group_rule(direction: str) -> Finder:
    """A group cannot hold two equal rules, so there is one at most."""

    def find(connect: Connect, wanted: Inputs) -> Iterator[Found]:
        ec2, group = connect("ec2"), wanted["securityGroupId"]
        in_group = [{"Name": "group-id", "Values": [group]}]
        for page in ec2.get_paginator("describe_security_group_rules").paginate(Filters=in_group):
            for rule in page["SecurityGroupRules"]:
                if rule["IsEgress"] == (direction == "egress") and _is_rule(rule, wanted):
                    found = rule["SecurityGroupRuleId"]
                    revoke = getattr(ec2, f"revoke_security_group_{direction}")
                    delete = partial(revoke, GroupId=group, SecurityGroupRuleIds=[found])
                    yield Found(found, _tag_map(rule.get("Tags")), delete)

    return find


def _is_rule(rule: Item, wanted: Inputs) -> bool:
    every_port = -1
    return (
        rule["IpProtocol"] == wanted["ipProtocol"]
        and rule.get("FromPort", every_port) == wanted.get("fromPort", every_port)
        and rule.get("ToPort", every_port) == wanted.get("toPort", every_port)
        and rule.get("CidrIpv4") == wanted.get("cidrIpv4")
        and rule.get("CidrIpv6") == wanted.get("cidrIpv6")
        and rule.get("PrefixListId") == wanted.get("prefixListId")
        and rule.get("ReferencedGroupInfo", {}).get("GroupId") == wanted.get("referencedSecurityGroupId")
    )


def _find_role(connect: Connect, wanted: Inputs) -> Iterator[Found]:
    iam, name = connect("iam"), wanted["name"]
    yield Found(name, _tag_map(iam.list_role_tags(RoleName=name)["Tags"]), partial(iam.delete_role, RoleName=name))


def _find_role_policy(connect: Connect, wanted: Inputs) -> Iterator[Found]:
    iam, target = connect("iam"), {"RoleName": wanted["role"], "PolicyName": wanted["name"]}
    iam.get_role_policy(**target)
    yield Found(":".join(target.values()), {}, partial(iam.delete_role_policy, **target))


def _find_oidc_provider(connect: Connect, wanted: Inputs) -> Iterator[Found]:
    iam, issuer = connect("iam"), wanted["url"].removeprefix("https://")
    for listed in iam.list_open_id_connect_providers()["OpenIDConnectProviderList"]:
        arn = listed["Arn"]
        if arn.endswith(f":oidc-provider/{issuer}"):
            found = iam.get_open_id_connect_provider(OpenIDConnectProviderArn=arn)
            delete = partial(iam.delete_open_id_connect_provider, OpenIDConnectProviderArn=arn)
            yield Found(arn, _tag_map(found.get("Tags")), delete)


def _find_bucket(connect: Connect, wanted: Inputs) -> Iterator[Found]:
    """By its name, which is unique in all of AWS: its tags are put after it is created."""
    s3, name = connect("s3"), wanted["bucket"]
    if any(bucket["Name"] == name for bucket in s3.list_buckets()["Buckets"]):
        yield Found(name, wanted.every_tag, partial(s3.delete_bucket, Bucket=name))


def _find_repository(connect: Connect, wanted: Inputs) -> Iterator[Found]:
    ecr, name = connect("ecr"), wanted["name"]
    [found] = ecr.describe_repositories(repositoryNames=[name])["repositories"]
    tags = ecr.list_tags_for_resource(resourceArn=found["repositoryArn"])["tags"]
    yield Found(name, _tag_map(tags), partial(ecr.delete_repository, repositoryName=name))


def _find_log_group(connect: Connect, wanted: Inputs) -> Iterator[Found]:
    logs, name = connect("logs"), wanted["name"]
    for page in logs.get_paginator("describe_log_groups").paginate(logGroupNamePrefix=name):
        for group in page["logGroups"]:
            if group["logGroupName"] == name:
                tags = logs.list_tags_for_resource(resourceArn=group["arn"].removesuffix(":*"))["tags"]
                yield Found(name, tags, partial(logs.delete_log_group, logGroupName=name))


def _eks(kind: str, answer: str, **parameters: str) -> Finder:
    """An EKS object by its name; `parameters` of its calls are given as the inputs that hold them."""

    def find(connect: Connect, wanted: Inputs) -> Iterator[Found]:
        eks = connect("eks")
        target = {parameter: wanted[name] for parameter, name in parameters.items()}
        found = getattr(eks, f"describe_{kind}")(**target)[answer]
        yield Found(":".join(target.values()), found.get("tags", {}), partial(_delete_eks, eks, kind, target))

    return find


def _delete_eks(eks: Any, kind: str, target: dict[str, str]) -> None:
    """EKS refuses to delete what is still being created; a creation that then fails can be deleted as well."""
    takes_time = f"{kind}_deleted" in eks.waiter_names
    if takes_time:
        with suppress(WaiterError):
            eks.get_waiter(f"{kind}_active").wait(**target)
    getattr(eks, f"delete_{kind}")(**target)
    if takes_time:
        eks.get_waiter(f"{kind}_deleted").wait(**target)


def _tag_map(tags: Iterable[Mapping[str, str]] | None) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in tags or []}


FINDERS: Mapping[str, Finder] = {
    "aws:ec2/vpc:Vpc": _ec2(
        "vpcs",
        "VpcId",
        lambda vpc, wanted: vpc["CidrBlock"] == wanted["cidrBlock"],
        lambda ec2, vpc: ec2.delete_vpc(VpcId=vpc),
    ),
    "aws:ec2/subnet:Subnet": _ec2(
        "subnets",
        "SubnetId",
        lambda subnet, wanted: _in_vpc(subnet, wanted) and subnet["CidrBlock"] == wanted["cidrBlock"],
        lambda ec2, subnet: ec2.delete_subnet(SubnetId=subnet),
    ),
    "aws:ec2/internetGateway:InternetGateway": _ec2(
        "internet_gateways",
        "InternetGatewayId",
        lambda gateway, wanted: all(_in_vpc(attachment, wanted) for attachment in gateway["Attachments"]),
        _delete_internet_gateway,
    ),
    "aws:ec2/eip:Eip": _ec2(
        "addresses",
        "AllocationId",
        lambda address, wanted: not address.get("AssociationId"),
        lambda ec2, address: ec2.release_address(AllocationId=address),
    ),
    "aws:ec2/natGateway:NatGateway": _ec2(
        "nat_gateways",
        "NatGatewayId",
        lambda gateway, wanted: gateway["SubnetId"] == wanted["subnetId"],
        _delete_nat_gateway,
    ),
    "aws:ec2/routeTable:RouteTable": _ec2(
        "route_tables",
        "RouteTableId",
        _in_vpc,
        lambda ec2, table: ec2.delete_route_table(RouteTableId=table),
    ),
    ROUTE: _find_route,
    "aws:ec2/routeTableAssociation:RouteTableAssociation": _find_association,
    "aws:ec2/vpcEndpoint:VpcEndpoint": _ec2(
        "vpc_endpoints",
        "VpcEndpointId",
        lambda endpoint, wanted: _in_vpc(endpoint, wanted) and endpoint["ServiceName"] == wanted["serviceName"],
        _delete_vpc_endpoint,
    ),
    "aws:ec2/securityGroup:SecurityGroup": _ec2(
        "security_groups",
        "GroupId",
        lambda group, wanted: group.get("VpcId") == wanted["vpcId"] and group["GroupName"] == wanted["name"],
        lambda ec2, group: ec2.delete_security_group(GroupId=group),
    ),
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": _security_group_rule("ingress"),
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": _security_group_rule("egress"),
    "aws:ec2/launchTemplate:LaunchTemplate": _ec2(
        "launch_templates",
        "LaunchTemplateId",
        lambda template, wanted: template["LaunchTemplateName"] == wanted["name"],
        lambda ec2, template: ec2.delete_launch_template(LaunchTemplateId=template),
    ),
    "aws:ec2/instance:Instance": _ec2("instances", "InstanceId", _is_instance, _terminate_instance),
    "aws:iam/role:Role": _find_role,
    "aws:iam/rolePolicy:RolePolicy": _find_role_policy,
    "aws:iam/openIdConnectProvider:OpenIdConnectProvider": _find_oidc_provider,
    "aws:s3/bucket:Bucket": _find_bucket,
    "aws:ecr/repository:Repository": _find_repository,
    "aws:cloudwatch/logGroup:LogGroup": _find_log_group,
    "aws:eks/cluster:Cluster": _eks("cluster", "cluster", name="name"),
    "aws:eks/nodeGroup:NodeGroup": _eks(
        "nodegroup", "nodegroup", clusterName="clusterName", nodegroupName="nodeGroupName"
    ),
    "aws:eks/addon:Addon": _eks("addon", "addon", clusterName="clusterName", addonName="addonName"),
    "aws:eks/accessEntry:AccessEntry": _eks(
        "access_entry", "accessEntry", clusterName="clusterName", principalArn="principalArn"
    ),
}
"""By Pulumi's type."""
