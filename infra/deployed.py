"""What stands already: the outputs of this stack's last `up`, and what they forbid to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pulumi
from pulumi.runtime import invoke

from infra.errors import ConfigError
from infra.names import PROJECT
from loraserve.planning.stack_settings import Settings


def last_outputs() -> dict[str, Any]:
    """Empty before the first `up` has ended, and after `destroy`. A StackReference would tell them only later."""
    itself = f"{pulumi.get_organization()}/{pulumi.get_project()}/{pulumi.get_stack()}"
    answer = invoke("pulumi:pulumi:readStackOutputs", {"name": itself}).value
    return (answer or {}).get("outputs") or {}


def refuse_to_replace(settings: Settings, region: str, last: Mapping[str, Any]) -> None:
    """Raises ConfigError for a change that would replace the VPC, and with it everything in it, or a disk in use."""
    if problems := [*_other_place(settings, region, last), *_other_disk(settings, last)]:
        raise ConfigError(problems)


def _other_place(settings: Settings, region: str, last: Mapping[str, Any]) -> Iterator[str]:
    wanted = {f"{PROJECT}:vpcCidr": str(settings.vpc_cidr), "aws:region": region}
    stands = {f"{PROJECT}:vpcCidr": last.get("vpcCidr"), "aws:region": last.get("region")}
    for key, value in wanted.items():
        if stands[key] not in (None, value):
            yield (
                f"{key} {value} is another than the {stands[key]} that this stack stands in, and cannot be changed: VPC, cluster "
                "and nodes would be replaced. Set it back; or make a second stack; or `pulumi destroy` (after an `up` with "
                "deletionProtection false; retainAdapters keeps the bucket) and then `pulumi up`"
            )


def _other_disk(settings: Settings, last: Mapping[str, Any]) -> Iterator[str]:
    gib, before = settings.prometheus_volume_gib, last.get("prometheusVolumeGib")
    if before and settings.needs_volume_driver and gib != before:
        yield (
            f"{PROJECT}:prometheusVolumeGib {gib}: the claim of a volume that is there, of {before:g} GiB, cannot be resized: set "
            f"it to 0 and `pulumi up`, then to {gib} and `pulumi up`; the metrics of until then are lost"
        )
