"""What a stack has in AWS and not in its state: after an `up` that was killed, after `destroy`, after a lost state.

The tagging API finds most of it by the stack's tag. It lists no IAM roles and no Auto Scaling groups, and what EKS makes
by itself has no such tag: there each service is asked. What cannot be tagged is looked for where its creation was under
way. Nothing is deleted here: each thing comes with the commands that delete it, for a person to read and to run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.exceptions import BotoCoreError, ClientError

from loraserve.contract.addresses import RETAINED_TAG, STACK_TAG, cluster_name
from loraserve.errors import LoraserveError
from loraserve.operator.stack.aws_commands import DELETIONS, Command, Connect, Thing, deletion

Inputs = Mapping[str, Any]
"""What a creation was asked with."""

ROUTE = "aws:ec2/route:Route"
ASSOCIATION = "aws:ec2/routeTableAssociation:RouteTableAssociation"
_BY_NODES = "ec2:network-interface"
"""The program never makes one itself."""
_BY_VOLUME_DRIVER = ("ebs.csi.aws.com/cluster", "true")
_STILL_THERE = {
    "ec2:instance": ("describe_instances", "Reservations[].Instances[?State.Name!='terminated'][].InstanceId"),
    "ec2:natgateway": ("describe_nat_gateways", "NatGateways[?State!='deleted'].NatGatewayId"),
    "ec2:network-interface": (
        "describe_network_interfaces",
        "NetworkInterfaces[?Status=='available'].NetworkInterfaceId",
    ),
    "ec2:volume": ("describe_volumes", "Volumes[?State=='available'].VolumeId"),
}
"""Kinds that are listed for a while after their end, or that go with the instance that uses them: how to ask for the rest."""


class LeftoversError(LoraserveError):
    """The stack file or the state cannot be read, or AWS cannot be asked."""


@dataclass(frozen=True)
class Leftover:
    """A thing in AWS, and how to delete it: without commands its kind is not known here."""

    kind: str
    name: str
    commands: tuple[Command, ...]
    kept: bool = False
    """On purpose: the next `up` takes it back."""


@dataclass(frozen=True)
class StackState:
    """What `pulumi stack export` printed. An empty one is that of a stack that was destroyed."""

    resources: tuple[Mapping[str, Any], ...] = ()
    pending: tuple[Mapping[str, Any], ...] = ()
    """Creations that were under way when the engine ended."""

    @classmethod
    def read(cls, export: str, stack: str) -> StackState:
        """Raises LeftoversError for anything but a state of this stack."""
        hint = f"pipe it in: pulumi stack export --stack {stack} | loraserve leftovers {stack}"
        try:
            deployment = json.loads(export)["deployment"]
            resources = tuple(deployment.get("resources") or ())
            operations = deployment.get("pending_operations") or ()
            pending = tuple(item["resource"] for item in operations if item["type"] == "creating")
            stacks = {item["urn"].split(":")[2] for item in (*resources, *pending)}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise LeftoversError(f"standard input holds no exported state: {hint}") from None
        if others := stacks - {stack}:
            raise LeftoversError(f"standard input holds the state of stack {', '.join(sorted(others))}: {hint}")
        return cls(resources, pending)

    @cached_property
    def known(self) -> frozenset[str]:
        """The ids and ARNs of all that it speaks of; a route's id there is a hash."""
        ids = {item.get("id", "") for item in self.resources}
        arns = {(item.get("outputs") or {}).get("arn", "") for item in self.resources}
        routes = {_route_name(item["inputs"]) for item in self.resources if item["type"] == ROUTE}
        return frozenset(ids | arns | routes) - {""}


def find(stack: str, state: StackState, connect: Connect) -> list[Leftover]:
    """What is left, in an order in which it can be deleted. Raises botocore's errors."""
    parts = [part for part in _parts(state.pending, connect) if part.name not in state.known]
    accounted = state.known | {part.name for part in parts}
    things = [
        thing for thing in dict.fromkeys(_in_aws(stack, connect)) if not {_name_in_state(thing), thing.arn} & accounted
    ]
    ranks = {kind: rank for rank, kind in enumerate(DELETIONS)}
    things.sort(key=lambda thing: ranks.get(thing.kind, -1))
    retained = _tagged(connect, RETAINED_TAG, "true")
    return [*parts, *(_leftover(thing, connect, kept=thing in retained) for thing in things)]


def _leftover(thing: Thing, connect: Connect, *, kept: bool) -> Leftover:
    commands = DELETIONS.get(thing.kind, lambda *_: iter(()))
    return Leftover(thing.kind, thing.name, tuple(commands(connect, thing)), kept)


def _name_in_state(thing: Thing) -> str:
    """What belongs to a cluster is `cluster:name` there."""
    return ":".join(thing.name.split("/")[:2]) if thing.kind.startswith("eks:") else thing.name


def _in_aws(stack: str, connect: Connect) -> Iterator[Thing]:
    cluster = cluster_name(stack)
    tagged = _tagged(connect, STACK_TAG, stack)
    of_cluster = [thing for key, value in _cluster_tags(cluster) for thing in _tagged(connect, key, value)]
    if _found(lambda: connect("eks").describe_cluster(name=cluster)):
        in_use = [*of_cluster, *_tagged(connect, *_BY_VOLUME_DRIVER)]
        tagged = [thing for thing in tagged if thing not in in_use and thing.kind != _BY_NODES]
    else:
        tagged += of_cluster
        yield from _made_by_eks(connect, cluster)
    yield from _still_there(connect, tagged)
    yield from _iam(connect, cluster, stack)


def _tagged(connect: Connect, key: str, value: str) -> list[Thing]:
    """What the tagging API lists."""
    wanted, path = [{"Key": key, "Values": [value]}], "ResourceTagMappingList[].ResourceARN"
    found = _search(connect("resourcegroupstaggingapi"), "get_resources", path, TagFilters=wanted)
    return [Thing.of(arn) for arn in found]


def _cluster_tags(cluster: str) -> list[tuple[str, str]]:
    """By which EKS, its nodes and its network plugin mark what they make."""
    by_name = ("aws:eks:cluster-name", "cluster.k8s.amazonaws.com/name", "eks:cluster-name")
    return [(f"kubernetes.io/cluster/{cluster}", "owned"), *((key, cluster) for key in by_name)]


def _still_there(connect: Connect, things: list[Thing]) -> list[Thing]:
    there: dict[str, set[str]] = {}
    for kind in {thing.kind for thing in things} & _STILL_THERE.keys():
        call, path = _STILL_THERE[kind]
        there[kind] = set(_search(connect("ec2"), call, path))
    return [thing for thing in things if thing.name in there.get(thing.kind, {thing.name})]


def _made_by_eks(connect: Connect, cluster: str) -> Iterator[Thing]:
    """What a cluster that is gone had, and no tag tells."""
    interfaces = f"NetworkInterfaces[?Description=='Amazon EKS {cluster}' && Status=='available'].NetworkInterfaceId"
    for name in _search(connect("ec2"), "describe_network_interfaces", interfaces):
        yield Thing("ec2:network-interface", name)
    groups = f"AutoScalingGroups[?Tags[?Key=='kubernetes.io/cluster/{cluster}']].AutoScalingGroupName"
    for name in _search(connect("autoscaling"), "describe_auto_scaling_groups", groups):
        yield Thing("autoscaling:group", name)
    logs = f"logGroups[?logGroupName=='/aws/eks/{cluster}/cluster'].logGroupName"
    for name in _search(connect("logs"), "describe_log_groups", logs, logGroupNamePrefix=f"/aws/eks/{cluster}/"):
        yield Thing("logs:log-group", name)


def _search(client: Any, call: str, path: str, **parameters: Any) -> Iterator[Any]:
    """What a JMESPath finds on all pages of a listing."""
    return client.get_paginator(call).paginate(**parameters).search(path)


def _iam(connect: Connect, cluster: str, stack: str) -> Iterator[Thing]:
    """Roles are named after the cluster; whether one is that of a stack with a longer name, its tags tell."""
    iam, tag = connect("iam"), {"Key": STACK_TAG, "Value": stack}
    for name in _search(iam, "list_roles", f"Roles[?starts_with(RoleName, '{cluster}-')].RoleName"):
        if tag in iam.list_role_tags(RoleName=name)["Tags"]:
            yield Thing("iam:role", name)
    for provider in iam.list_open_id_connect_providers()["OpenIDConnectProviderList"]:
        arn = provider["Arn"]
        if tag in iam.list_open_id_connect_provider_tags(OpenIDConnectProviderArn=arn)["Tags"]:
            yield Thing.of(arn)


_PARTS = {
    "aws:eks/nodeGroup:NodeGroup": ("eks:nodegroup", {"clusterName": "clusterName", "nodegroupName": "nodeGroupName"}),
    "aws:eks/addon:Addon": ("eks:addon", {"clusterName": "clusterName", "addonName": "addonName"}),
    "aws:eks/accessEntry:AccessEntry": (
        "eks:access_entry",
        {"clusterName": "clusterName", "principalArn": "principalArn"},
    ),
    "aws:iam/rolePolicy:RolePolicy": ("iam:role_policy", {"RoleName": "role", "PolicyName": "name"}),
    "aws:s3/bucket:Bucket": ("s3:bucket", {"Bucket": "bucket"}),
}
"""What has no tags, or gets them after its creation: the parameters of its calls, each with the input that it is."""


def _parts(pending: Iterable[Mapping[str, Any]], connect: Connect) -> Iterator[Leftover]:
    """Of what was under way, what is there: it is known by its place alone."""
    for creation in pending:
        kind, inputs = creation["type"], creation.get("inputs", {})
        if kind in (ROUTE, ASSOCIATION):
            yield from _in_route_table(kind, inputs, connect)
        elif kind in _PARTS:
            kind, given = _PARTS[kind]
            target = {parameter: inputs[name] for parameter, name in given.items()}
            service, noun = kind.split(":")
            verb = {"eks": "describe", "iam": "get", "s3": "head"}[service]
            if _found(lambda: getattr(connect(service), f"{verb}_{noun}")(**target)):  # noqa: B023
                yield Leftover(kind, ":".join(target.values()), tuple(deletion(service, noun, target)))


def _in_route_table(kind: str, inputs: Inputs, connect: Connect) -> Iterator[Leftover]:
    found = _found(lambda: connect("ec2").describe_route_tables(RouteTableIds=[inputs["routeTableId"]]))
    for table in found["RouteTables"] if found else ():
        if kind == ROUTE and any(
            route.get("DestinationCidrBlock") == inputs["destinationCidrBlock"] for route in table["Routes"]
        ):
            target = {"RouteTableId": inputs["routeTableId"], "DestinationCidrBlock": inputs["destinationCidrBlock"]}
            yield Leftover("ec2:route", _route_name(inputs), (Command("ec2", "delete_route", target),))
        for association in table["Associations"] if kind == ASSOCIATION else ():
            if association.get("SubnetId") == inputs["subnetId"]:
                name = association["RouteTableAssociationId"]
                command = Command("ec2", "disassociate_route_table", {"AssociationId": name})
                yield Leftover("ec2:route-table-association", name, (command,))


def _route_name(inputs: Inputs) -> str:
    return f"{inputs['routeTableId']} {inputs['destinationCidrBlock']}"


def _found(look: Callable[[], Any]) -> Any:
    """What AWS answers; None where the object does not exist."""
    try:
        return look()
    except ClientError as error:
        if is_gone(error):
            return None
        raise


def is_gone(error: ClientError) -> bool:
    """Whether AWS said that the object does not exist."""
    code = error.response.get("Error", {}).get("Code", "")
    return "NotFound" in code or code.startswith("NoSuch") or code == "404"


def show(stack: str, export: str, folder: Path) -> bool:
    """Prints a shell script that deletes what is left, but for what is kept. Returns whether anything is. Raises LeftoversError.

    `folder` has the stack's file, which says where it is.
    """
    state = StackState.read(export, stack)
    with explained():
        connect, region, account = connected(folder / f"Pulumi.{stack}.yaml")
        found = find(stack, state, connect)
    where = f"in AWS ({region}, account {account})"
    left = [one for one in found if not one.kept]
    if not left:
        print(f"# Stack {stack} has nothing {where} that its state does not know.")
    else:
        print(f"# Stack {stack} has this {where}, and its state does not know it. Delete what you do not need:")
    for leftover in found:
        print(f"\n# {leftover.kind} {leftover.name}")
        if leftover.kept:
            print("# kept by retainAdapters: the next `pulumi up` of this stack takes it back")
            continue
        for command in leftover.commands:
            print(command.text(region))
        if not leftover.commands:
            print("# this kind is not known here: look at it in AWS")
    return bool(left)


def connected(stack_file: Path) -> tuple[Connect, str, str]:
    """Clients of the stack's region, the region, and the account, which must be the one that the stack is for."""
    try:
        config = yaml.safe_load(stack_file.read_text(encoding="utf-8"))["config"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        hint = "run this where Pulumi.yaml is"
        raise LeftoversError(f"{stack_file} is not a readable stack file ({error}): {hint}") from None
    session = boto3.Session(region_name=config.get("aws:region"))
    account = session.client("sts").get_caller_identity()["Account"]
    allowed = [str(item) for item in config.get("aws:allowedAccountIds") or [account]]
    if account not in allowed:
        hint = "use those of that stack (AWS_PROFILE)"
        raise LeftoversError(
            f"the stack is for account {', '.join(allowed)}, your credentials are of {account}: {hint}"
        )
    return session.client, str(session.region_name), account


@contextmanager
def explained() -> Iterator[None]:
    """Turns AWS's errors into one that says what to do."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        hint = "use the credentials of the stack (AWS_PROFILE), and set AWS_REGION where its file has no aws:region"
        raise LeftoversError(f"AWS cannot be asked: {error}; {hint}") from error
