"""Checks that need AWS, made before the first resource: the right account, zones that offer the types, and what a stack that
stands already cannot become."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import pulumi
import pulumi_aws as aws

from infra import versions
from infra.errors import ConfigError
from infra.names import GPU_NODE_GROUP, PROJECT, SYSTEM_NODE_GROUP
from infra.network import Zones
from infra.settings import allowed_account
from infra.standing import Standing
from loraserve.planning.stack_settings import ClusterAccess, Settings

_GPU_QUOTA = "L-DB2E81BA"
"""EC2: Running On-Demand G and VT instances, in vCPUs."""
_ZONES_WITHOUT_EKS = ["use1-az3", "usw1-az2", "cac1-az3"]
"""Of us-east-1, us-west-1 and ca-central-1: EKS puts no control plane there (its user guide, "networking requirements")."""
_LIVES_ON = "a cluster keeps its zones for its life"


def check(settings: Settings, caller: str, standing: Standing | None) -> Zones:
    """What can be wrong once the account is known to be right; returns the zones to build in."""
    check_first_access(settings.cluster_access, caller, standing)
    check_gpu_quota(settings)
    if standing:
        check_kubernetes(standing.kubernetes)
        announce_new_nodes(settings, standing)
    return find_zones(settings, standing)


def check_account() -> str:
    """The caller's ARN. Raises ConfigError where this stack file is for another account than the credentials in use."""
    allowed = allowed_account()
    try:
        caller = aws.get_caller_identity()
    except Exception as error:
        raise ConfigError([f"{_other_account(allowed)} (AWS said: {error})"]) from None
    if caller.account_id != allowed:
        raise ConfigError([f"{_other_account(allowed)} (they are for {caller.account_id})"])
    return caller.arn


def check_first_access(access: Sequence[ClusterAccess], caller: str, standing: Standing | None) -> None:
    """Whoever makes the cluster becomes its administrator, and EKS refuses a second entry for the same principal."""
    own = [entry.name for entry in access if principal_name(entry.principal_arn) == principal_name(caller)]
    if own and not standing:
        raise ConfigError(
            [
                f"{PROJECT}:clusterAccess entry {', '.join(own)} is you: who makes the cluster becomes its administrator, "
                "and EKS refuses a second entry: remove it"
            ]
        )


def principal_name(arn: str) -> str:
    """The role or user behind an ARN; a session's ARN (`sts ...:assumed-role/NAME/SESSION`) names its role."""
    kind, _, rest = arn.split(":", 5)[5].partition("/")
    return rest.split("/")[0] if kind == "assumed-role" else rest.split("/")[-1]


def check_gpu_quota(settings: Settings) -> None:
    """Warns where the account's quota is too small for the GPU group; says nothing where it may not be read."""
    try:
        quota = aws.servicequotas.get_service_quota(service_code="ec2", quota_code=_GPU_QUOTA).value
    except Exception:
        return
    needed = settings.gpu_max_size * settings.gpu_instance.vcpus
    if quota < needed:
        pulumi.log.warn(
            f"quota: {settings.gpu_max_size} x {settings.gpu_instance_type} need {needed} vCPUs of 'Running On-Demand G and VT "
            f"instances', and this account has {quota:g}: GPU nodes will not start; request more under Service Quotas"
        )


def check_kubernetes(running: str, pinned: str = versions.KUBERNETES) -> None:
    """Announces an upgrade of the control plane. Raises ConfigError for one that EKS would refuse."""
    step = _minor(pinned) - _minor(running)
    if step < 0:
        raise ConfigError(
            [
                f"this cluster runs Kubernetes {running}, and infra/versions.py pins {pinned}: EKS takes no downgrade; use "
                f"the version of this project that pins {running}"
            ]
        )
    if step > 1:
        raise ConfigError(
            [
                f"this cluster runs Kubernetes {running}, and infra/versions.py pins {pinned}: EKS upgrades one minor version "
                f"at a time; run `pulumi up` with the version of this project that pins 1.{_minor(running) + 1} first"
            ]
        )
    if step == 1:
        pulumi.log.warn(
            f"this upgrades the control plane from Kubernetes {running} to {pinned}, which cannot be taken back, and then "
            "replaces every node"
        )


def _minor(version: str) -> int:
    return int(version.split(".")[1])


def announce_new_nodes(settings: Settings, standing: Standing) -> None:
    """Says which nodes an update replaces for another AMI, and which it ends."""
    for name, group in sorted(standing.groups.items()):
        if group.release != versions.NODE_RELEASE and group.desired:
            pulumi.log.warn(
                f"this replaces the nodes of {name} one by one: AMI {group.release} -> {versions.NODE_RELEASE}"
            )
    most = {GPU_NODE_GROUP: settings.gpu_max_size, SYSTEM_NODE_GROUP: settings.most_system_nodes}
    for name, allowed in most.items():
        group = standing.group(name)
        if group and group.desired > allowed:
            pulumi.log.warn(f"this ends {group.desired - allowed} of {group.desired} running nodes of {name}")


def find_zones(settings: Settings, standing: Standing | None) -> Zones:
    """The zones of the cluster that stands, or for the first one those named in the config, or the first that offer both types."""
    region = aws.get_region().region
    hosting = aws.get_availability_zones(
        exclude_zone_ids=_ZONES_WITHOUT_EKS, filters=[{"name": "opt-in-status", "values": ["opt-in-not-required"]}]
    )
    offered = {zone for zone in hosting.names if re.fullmatch(rf"{region}[a-g]", zone)}
    for instance_type in (settings.gpu_instance_type, settings.system_instance_type):
        offered &= _zones_of(instance_type)
    return choose_zones(settings, offered, region, standing)


def _zones_of(instance_type: str) -> set[str]:
    offerings = aws.ec2.get_instance_type_offerings(
        location_type="availability-zone", filters=[{"name": "instance-type", "values": [instance_type]}]
    )
    return set(offerings.locations)


def choose_zones(settings: Settings, offering: Collection[str], region: str, standing: Standing | None) -> Zones:
    """Pure part of `find_zones`. Raises ConfigError where zones lack the types, are too few, or would be given up."""
    lived_in = [*standing.zones, *standing.added_zones] if standing else []
    wanted = _wanted_zones(settings, offering, region, lived_in)
    types = f"{settings.gpu_instance_type} with {settings.system_instance_type}"
    if lacking := [zone for zone in wanted if zone not in offering]:
        key = f"{PROJECT}:availabilityZones {', '.join(lacking)} do"
        if not settings.availability_zones:
            key = f"{PROJECT}:gpuInstanceType: this stack lives in {', '.join(wanted)}, and {', '.join(lacking)} do"
        raise ConfigError([f"{key} not offer {types}; in {region} it is offered by {_listed(offering)}"])
    if not standing:
        return Zones(tuple(sorted(wanted)))
    return Zones(standing.zones, tuple(sorted(set(wanted) - set(standing.zones))))


def _wanted_zones(settings: Settings, offering: Collection[str], region: str, lived_in: Sequence[str]) -> Sequence[str]:
    """Those lived in and, up to the number that is asked for, others that offer the types."""
    if named := settings.availability_zones:
        if left_out := [zone for zone in lived_in if zone not in named]:
            raise ConfigError(
                [
                    f"{PROJECT}:availabilityZones leaves out {', '.join(left_out)}, and {_LIVES_ON}: name it too, or "
                    "`pulumi destroy` first"
                ]
            )
        return named
    count = settings.availability_zone_count
    if count < len(lived_in):
        raise ConfigError(
            [
                f"{PROJECT}:availabilityZoneCount {count} is less than {', '.join(lived_in)}, and {_LIVES_ON}: set it to "
                f"{len(lived_in)}, or `pulumi destroy` first"
            ]
        )
    wanted = [*lived_in, *(zone for zone in sorted(offering) if zone not in lived_in)][:count]
    if len(wanted) < count:
        raise ConfigError(
            [
                f"{PROJECT}:gpuInstanceType {settings.gpu_instance_type} with {settings.system_instance_type} is offered in "
                f"{region} by {_listed(offering)}, and {count} zones are needed: choose another gpuInstanceType or another "
                "aws:region"
            ]
        )
    return wanted


def _listed(zones: Collection[str]) -> str:
    return ", ".join(sorted(zones)) or "none of its zones"


def _other_account(allowed: str) -> str:
    return (
        f"aws:allowedAccountIds says this stack is for account {allowed}, and the credentials in use are not: "
        "switch to that account's profile, or correct the stack file"
    )
