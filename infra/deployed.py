"""What stands already: the outputs of this stack's last `up`, and what they forbid to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pulumi
from pulumi.runtime import invoke
from pydantic.alias_generators import to_camel

from infra.errors import ConfigError
from infra.names import PROJECT, cluster_name
from loraserve.planning.stack_settings import Settings

_SHAPES = {
    "system": ("system_instance_type",),
    "GPU": ("gpu_instance_type", "gpu_root_volume_gib", "gpu_nvme_raid0"),
}
"""Settings that a node has from its first moment, by group."""


def last_outputs() -> dict[str, Any]:
    """Empty before the first `up` has ended, and after `destroy`. A StackReference would tell them only later."""
    itself = f"{pulumi.get_organization()}/{pulumi.get_project()}/{pulumi.get_stack()}"
    answer = invoke("pulumi:pulumi:readStackOutputs", {"name": itself}).value
    return (answer or {}).get("outputs") or {}


def node_shapes(settings: Settings, zones: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the next `up` is to remember of each group's nodes; `zones` are those that a group spans."""
    return {
        group: {to_camel(field): getattr(settings, field) for field in fields} | {"zones": list(zones)}
        for group, fields in _SHAPES.items()
    }


def announce_new_node_shapes(settings: Settings, zones: Sequence[str], last: Mapping[str, Any]) -> None:
    """Says in `preview` and `up` which nodes are replaced where they run, and why."""
    for group, shape in node_shapes(settings, zones).items():
        before = last.get("nodes", {}).get(group, shape)
        changed = [
            f"{key} {_plain(before.get(key))} -> {_plain(value)}"
            for key, value in shape.items()
            if before.get(key) != value
        ]
        if changed:
            pulumi.log.warn(f"this replaces the {group} nodes that run: {', '.join(changed)}")


def _plain(value: Any) -> str:
    """The engine keeps numbers as floats."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def refuse_to_replace(settings: Settings, region: str, last: Mapping[str, Any]) -> None:
    """Raises ConfigError for a change that would replace the VPC, and with it everything in it, or a disk in use."""
    if problems := [*_older_network(last), *_other_place(settings, region, last), *_other_disk(settings, last)]:
        raise ConfigError(problems)


def _older_network(last: Mapping[str, Any]) -> Iterator[str]:
    """Version 0.1.0 told nothing of its network."""
    if "servingRole" in last and "vpcCidr" not in last:
        yield (
            "this stack was made by version 0.1.0, which divided the VPC otherwise: every subnet would be replaced under running nodes. Copy "
            "what its bucket holds, `pulumi destroy` with that version, and `pulumi up` with this one"
        )


def _other_place(settings: Settings, region: str, last: Mapping[str, Any]) -> Iterator[str]:
    cluster = cluster_name(settings.cluster_stack or pulumi.get_stack())
    if last.get("cluster") not in (None, cluster):
        yield (
            f"{PROJECT}:clusterStack {settings.cluster_stack or '(none)'}: this stack serves in the cluster {last['cluster']}, and would "
            f"leave it for {cluster}: set it back; or make another stack; or `pulumi destroy` and then `pulumi up`"
        )
        return
    wanted = {f"{PROJECT}:vpcCidr": str(settings.vpc_cidr), "aws:region": region}
    stands = {f"{PROJECT}:vpcCidr": last.get("vpcCidr"), "aws:region": last.get("region")}
    if settings.cluster_stack:  # the network is the other stack's
        del wanted[f"{PROJECT}:vpcCidr"]
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
