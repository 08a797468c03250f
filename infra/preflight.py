"""Checks that need AWS, made before the first resource: the right account, and zones that offer the GPU type."""

from __future__ import annotations

from collections.abc import Sequence

import pulumi
import pulumi_aws as aws

from infra.errors import ConfigError
from infra.names import PROJECT
from infra.settings import allowed_account
from loraserve.planning.stack_settings import ClusterAccess, Settings

_GPU_QUOTA = "L-DB2E81BA"
"""EC2: Running On-Demand G and VT instances, in vCPUs."""


def check(settings: Settings, cluster_name: str) -> list[str]:
    """All of them; returns the zones to build in."""
    caller = check_account()
    check_first_access(settings.cluster_access, cluster_name, caller)
    check_gpu_quota(settings)
    return find_zones(settings)


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


def check_first_access(access: Sequence[ClusterAccess], cluster_name: str, caller: str) -> None:
    """Whoever makes the cluster becomes its administrator, and EKS refuses a second entry for the same principal."""
    own = [entry.name for entry in access if principal_name(entry.principal_arn) == principal_name(caller)]
    if own and cluster_name not in aws.eks.get_clusters().names:
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


def find_zones(settings: Settings) -> list[str]:
    """The zones to build in: those named in the config, or the first that offer the GPU type."""
    offered = _zones_of(settings.gpu_instance_type) & _zones_of(settings.system_instance_type)
    return choose_zones(settings, sorted(offered), aws.get_region().region)


def _zones_of(instance_type: str) -> set[str]:
    offerings = aws.ec2.get_instance_type_offerings(
        location_type="availability-zone", filters=[{"name": "instance-type", "values": [instance_type]}]
    )
    return set(offerings.locations)


def choose_zones(settings: Settings, offering: Sequence[str], region: str) -> list[str]:
    """Pure part of `find_zones`. Raises ConfigError where too few zones offer the GPU type."""
    gpu = settings.gpu_instance_type
    offered = ", ".join(offering) or "none of its zones"
    if settings.availability_zones:
        lacking = [zone for zone in settings.availability_zones if zone not in offering]
        if lacking:
            raise ConfigError(
                [
                    f"{PROJECT}:availabilityZones {', '.join(lacking)} do not offer {gpu}; in {region} it is offered by {offered}"
                ]
            )
        return list(settings.availability_zones)
    count = settings.availability_zone_count
    if len(offering) < count:
        raise ConfigError(
            [
                f"{PROJECT}:gpuInstanceType {gpu} is offered in {region} by {offered}, and {count} zones are needed: "
                "choose another gpuInstanceType or another aws:region"
            ]
        )
    return list(offering[:count])


def _other_account(allowed: str) -> str:
    return (
        f"aws:allowedAccountIds says this stack is for account {allowed}, and the credentials in use are not: "
        "switch to that account's profile, or correct the stack file"
    )
