"""Checks made before the first resource: the right account and what it allows and holds, zones that offer the types, every
declared version in the bucket, and what a stack that stands already cannot become. `loraserve preflight` makes the same ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pulumi
import pulumi_aws as aws

from infra import account, deployed, evaluation_files, place, settings, standing, versions
from infra.errors import ConfigError
from infra.names import GPU_NODE_GROUP, PROJECT, SYSTEM_NODE_GROUP, cluster_name
from infra.network import Zones
from infra.report import Report
from infra.settings import allowed_account
from infra.standing import Standing
from loraserve.planning import cost
from loraserve.planning.gpu_memory import plan_memory
from loraserve.planning.setting_sections import ClusterAccess
from loraserve.planning.stack_settings import Settings

_ZONES_WITHOUT_EKS = ["use1-az3", "usw1-az2", "cac1-az3"]
"""Of us-east-1, us-west-1 and ca-central-1: EKS puts no control plane there (its user guide, "networking requirements")."""
_LIVES_ON = "a cluster keeps its zones for its life"


@dataclass(frozen=True)
class Checked:
    """What the checks found out, for what is declared after them."""

    settings: Settings
    region: str
    zones: Zones
    standing: Standing | None
    last: Mapping[str, Any]
    """The outputs of the last `up`."""
    retained: str | None
    """The bucket that a `destroy` kept."""
    versions: list[str]
    """Of the catalog, those whose digest was seen in the bucket, now or by an `up` before."""


def run(find_retained: Callable[[], str | None]) -> Checked:
    """All of them. Raises ConfigError for all that fails, as far as it can be judged; nothing is declared then."""
    report = Report()
    config = report.need(
        "settings", settings.load, lambda _: "valid, and within the memory and disk of the chosen node"
    )
    told = ", ".join(each.file for each in config.evaluations) or "none"
    report.look("evaluations", lambda: evaluation_files.check(config), told)
    caller = report.need("account", check_account, str)  # before AWS is asked for anything else
    region, last = aws.get_region().region, deployed.last_outputs()
    report.look("network", lambda: deployed.refuse_to_replace(config, region, last), f"{config.vpc_cidr} in {region}")
    stands = standing.look(cluster_name(config.cluster_stack or pulumi.get_stack()), place.suffix(config))
    if host := config.cluster_stack:
        report.look("cluster", lambda: check_shared(host, stands), f"that of {host}")
    access = "nobody is named twice"
    report.look("access", lambda: check_first_access(config.cluster_access, caller, stands), access)
    report.look("vCPU quotas", lambda: account.check_vcpu_quotas(config), "enough for all nodes, or not readable")
    if stands:
        if not config.cluster_stack:
            report.look("Kubernetes", lambda: check_kubernetes(stands.kubernetes), f"{versions.KUBERNETES} already")
        report.look("nodes", lambda: announce_other_nodes(config, stands), "none is replaced")
    zones = report.need("zones", lambda: find_zones(config, stands), lambda found: ", ".join(found.all))
    if not stands and not config.cluster_stack:
        cluster = cluster_name(pulumi.get_stack())
        denied = "none is denied, or they are not readable"
        report.look("permissions", lambda: account.check_permissions(caller, cluster), denied)
        report.look(
            "addresses", lambda: account.check_overlap(config.vpc_cidr), "no other VPC has them, or not readable"
        )
        report.look("quotas", lambda: account.check_network_quotas(config, zones.all), "enough, or not readable")
    today = datetime.now(UTC).date()
    report.look("support", lambda: account.check_support(today), f"Kubernetes {versions.KUBERNETES}, or not readable")
    pinned = f"{len(versions.ADDONS)} add-ons and nodes' image {versions.NODE_RELEASE}, or not readable"
    report.look("pinned versions", lambda: account.check_offered(), pinned)
    retained = None
    if "adapterBucket" not in last:
        retained = report.need("kept bucket", find_retained, lambda found: found or "none of a `destroy` before")
    catalog = account.Catalog(config, last.get("adapterBucket") or retained, last.get("catalogVersions") or [])
    report.look("catalog", catalog.check, f"{len(catalog.wanted)} declared versions, with their digests")
    report.look("image", lambda: account.check_image(config.loraserve_image), config.loraserve_image or "built by `up`")
    memory = plan_memory(config.serving)
    report.tell("GPU memory", f"{config.gpu_instance_type}: {memory.kv_tokens:,} tokens fit the KV cache")
    report.tell("cost", cost.describe(config, region, len(zones.all)))
    report.finish()
    return Checked(config, region, zones, stands, last, retained, sorted(catalog.seen))


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


def check_shared(stack: str, stands: Standing | None) -> None:
    """Raises ConfigError where there is no such cluster, or another Kubernetes than this program's in it."""
    if not stands:
        raise ConfigError(
            [
                f"{PROJECT}:clusterStack {stack}: there is no cluster {cluster_name(stack)} in this account and region: "
                f"`pulumi up --stack {stack}` first"
            ]
        )
    if stands.kubernetes != versions.KUBERNETES:
        raise ConfigError(
            [
                f"{PROJECT}:clusterStack {stack}: its cluster runs Kubernetes {stands.kubernetes}, and infra/versions.py pins "
                f"{versions.KUBERNETES}: run both stacks from one version of this project, that one first"
            ]
        )


def check_first_access(access: Sequence[ClusterAccess], caller: str, stands: Standing | None) -> None:
    """Whoever makes the cluster becomes its administrator, and EKS refuses a second entry for the same principal."""
    own = [entry.name for entry in access if principal_name(entry.principal_arn) == principal_name(caller)]
    if own and not stands:
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


def check_kubernetes(running: str, pinned: str = versions.KUBERNETES) -> Iterator[str]:
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
        yield (
            f"this upgrades the control plane from Kubernetes {running} to {pinned}, which cannot be taken back, and then "
            "replaces every node"
        )


def _minor(version: str) -> int:
    return int(version.split(".")[1])


def announce_other_nodes(config: Settings, stands: Standing) -> Iterator[str]:
    """Says which nodes an update replaces for another AMI, and which it ends."""
    for name, group in sorted(stands.groups.items()):
        if group.release != versions.NODE_RELEASE and group.desired:
            yield f"this replaces the nodes of {name} one by one: AMI {group.release} -> {versions.NODE_RELEASE}"
    most = {f"{GPU_NODE_GROUP}{place.suffix(config)}": config.gpu_max_size, SYSTEM_NODE_GROUP: config.most_system_nodes}
    for name, allowed in most.items():
        group = stands.group(name)
        if group and group.desired > allowed:
            yield f"this ends {group.desired - allowed} of {group.desired} running nodes of {name}"


def find_zones(config: Settings, stands: Standing | None) -> Zones:
    """The zones of the cluster that stands, or for the first one those named in the config, or the first that offer both types."""
    region = aws.get_region().region
    hosting = aws.get_availability_zones(
        exclude_zone_ids=_ZONES_WITHOUT_EKS, filters=[{"name": "opt-in-status", "values": ["opt-in-not-required"]}]
    )
    offered = {zone for zone in hosting.names if re.fullmatch(rf"{region}[a-g]", zone)}
    for instance_type in config.instance_types:
        offered &= _zones_of(instance_type)
    if config.cluster_stack and stands:  # which has no say in another stack's network
        there = len(stands.zones) + len(stands.added_zones)
        config = config.model_copy(update={"availability_zones": (), "availability_zone_count": there})
    return choose_zones(config, offered, region, stands)


def _zones_of(instance_type: str) -> set[str]:
    offerings = aws.ec2.get_instance_type_offerings(
        location_type="availability-zone", filters=[{"name": "instance-type", "values": [instance_type]}]
    )
    return set(offerings.locations)


def choose_zones(config: Settings, offering: Collection[str], region: str, stands: Standing | None) -> Zones:
    """Pure part of `find_zones`. Raises ConfigError where zones lack the types, are too few, or would be given up."""
    lived_in = [*stands.zones, *stands.added_zones] if stands else []
    wanted = _wanted_zones(config, offering, region, lived_in)
    types = " with ".join(config.instance_types)
    if lacking := [zone for zone in wanted if zone not in offering]:
        key = f"{PROJECT}:availabilityZones {', '.join(lacking)} do"
        if not config.availability_zones:
            key = f"{PROJECT}:gpuInstanceType: this stack lives in {', '.join(wanted)}, and {', '.join(lacking)} do"
        raise ConfigError([f"{key} not offer {types}; in {region} it is offered by {_listed(offering)}"])
    if not stands:
        return Zones(tuple(sorted(wanted)))
    return Zones(stands.zones, tuple(sorted(set(wanted) - set(stands.zones))))


def _wanted_zones(config: Settings, offering: Collection[str], region: str, lived_in: Sequence[str]) -> Sequence[str]:
    """Those lived in and, up to the number that is asked for, others that offer the types."""
    if named := config.availability_zones:
        if left_out := [zone for zone in lived_in if zone not in named]:
            raise ConfigError(
                [
                    f"{PROJECT}:availabilityZones leaves out {', '.join(left_out)}, and {_LIVES_ON}: name it too, or "
                    "`pulumi destroy` first"
                ]
            )
        return named
    count = config.availability_zone_count
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
                f"{PROJECT}:gpuInstanceType {config.gpu_instance_type} with {config.system_instance_type} is offered in "
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
