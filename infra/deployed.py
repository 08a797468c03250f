"""What stands already: the outputs of this stack's last `up`, and what they forbid to change."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Raises ConfigError for a change that would replace the VPC, and with it everything that is in it."""
    wanted = {f"{PROJECT}:vpcCidr": str(settings.vpc_cidr), "aws:region": region}
    stands = {f"{PROJECT}:vpcCidr": last.get("vpcCidr"), "aws:region": last.get("region")}
    if problems := [
        f"{key} {value} is another than the {stands[key]} that this stack stands in, and cannot be changed: VPC, cluster and "
        "nodes would be replaced. Set it back; or make a second stack; or `pulumi destroy` (after an `up` with "
        "deletionProtection false) and then `pulumi up`"
        for key, value in wanted.items()
        if stands[key] not in (None, value)
    ]:
        raise ConfigError(problems)
