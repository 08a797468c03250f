"""Checks that need AWS, made before the first resource: the right account, and zones that offer the GPU type."""

from __future__ import annotations

from collections.abc import Sequence

import pulumi_aws as aws

from infra.errors import ConfigError
from infra.names import PROJECT
from infra.settings import Settings, allowed_account


def check_account() -> str:
    """The account id of the caller's credentials. Raises ConfigError where this stack file is for another account."""
    allowed = allowed_account()
    try:
        caller = aws.get_caller_identity().account_id
    except Exception as error:
        raise ConfigError([f"{_other_account(allowed)} (AWS said: {error})"]) from None
    if caller != allowed:
        raise ConfigError([f"{_other_account(allowed)} (they are for {caller})"])
    return caller


def find_zones(settings: Settings) -> list[str]:
    """The zones to build in: those named in the config, or the first that offer the GPU type."""
    offerings = aws.ec2.get_instance_type_offerings(
        location_type="availability-zone",
        filters=[{"name": "instance-type", "values": [settings.gpu_instance_type]}],
    )
    return choose_zones(settings, sorted(offerings.locations), aws.get_region().region)


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
