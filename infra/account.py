"""What an account must allow and hold before a stack is made in it. Each check yields warnings; what may not be read it passes."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from ipaddress import IPv4Network
from typing import Any, Literal

import pulumi_aws as aws

from infra import versions
from infra.at_once import at_once
from infra.errors import ConfigError
from loraserve.contract.addresses import (
    ADAPTER_PREFIX,
    BASE_MODEL_PREFIX,
    MANIFEST_FILE,
    START_CACHE_PREFIX,
    VLLM,
    version_key,
)
from loraserve.planning import permissions
from loraserve.planning.instance_types import SYSTEM_INSTANCE_TYPES
from loraserve.planning.stack_settings import Settings


@dataclass(frozen=True)
class Quota:
    """As Service Quotas calls it (`aws service-quotas list-service-quotas --service-code ...`)."""

    service: str
    code: str
    name: str


_GPU_QUOTAS = {
    "G and VT": Quota("ec2", "L-DB2E81BA", "Running On-Demand G and VT instances"),
    "P": Quota("ec2", "L-417A185B", "Running On-Demand P instances"),
}
_SPOT_QUOTAS = {
    "G and VT": Quota("ec2", "L-3819A6DF", "All G and VT Spot Instance Requests"),
    "P": Quota("ec2", "L-7212CCBC", "All P Spot Instance Requests"),
}
_SYSTEM_QUOTA = Quota("ec2", "L-1216C47A", "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances")
_VPC_QUOTA = Quota("vpc", "L-F678F1CE", "VPCs per Region")
_NAT_QUOTA = Quota("vpc", "L-FE5A380F", "NAT gateways per Availability Zone")
_ADDRESS_QUOTA = Quota("ec2", "L-0263D0A3", "EC2-VPC Elastic IPs")
_NAT_VCPUS = {"instance": 2, "gateway": 0, "gateway-per-zone": 0}
"""A t4g.nano's."""
_SOON_DAYS = 60
_IN_ECR = re.compile(r"(\d{12})\.dkr\.ecr\.([\w-]+)\.amazonaws\.com(?:\.cn)?/([^@:]+)(?::[^@]+)?@(sha256:[0-9a-f]{64})")


def check_permissions(caller: str, cluster: str) -> Iterator[str]:
    """Asks IAM's simulator, which knows the caller's own policies, but not those of the organization."""
    account = caller.split(":")[4]
    try:
        who = aws.iam.get_session_context(arn=caller).issuer_arn
        denied = {scope.example: list(_denied(who, scope)) for scope in permissions.scopes(cluster, account)}
    except Exception:
        return
    for resource, actions in denied.items():
        if actions:
            yield (
                f"permissions: IAM's simulator denies {who} {', '.join(actions)} on {resource}: attach what `loraserve preflight --policy` "
                "prints, unless its own policies allow it for this stack's names"
            )


def _denied(who: str, scope: permissions.Scope) -> Iterator[str]:
    answer = aws.iam.get_principal_policy_simulation(
        action_names=list(scope.actions), policy_source_arn=who, resource_arns=[scope.example]
    )
    yield from sorted(one.action_name for one in answer.results or [] if not one.allowed)


def check_vcpu_quotas(settings: Settings) -> Iterator[str]:
    """Too small a quota shows itself only as nodes that never come."""
    kind, gpu = settings.gpu_instance.quota, settings.gpu_max_size * settings.gpu_instance.vcpus
    system = (
        settings.most_system_nodes * SYSTEM_INSTANCE_TYPES[settings.system_instance_type].vcpus
        + _NAT_VCPUS[settings.nat]
    )
    needs = {
        _GPU_QUOTAS[kind]: (gpu, f"{settings.gpu_max_size} x {settings.gpu_instance_type}"),
        **(
            {}
            if settings.cluster_stack
            else {
                _SYSTEM_QUOTA: (
                    system,
                    f"{settings.most_system_nodes} x {settings.system_instance_type} and the way out",
                )
            }
        ),
    }
    if settings.gpu_spot:
        needs[_SPOT_QUOTAS[kind]] = (gpu, f"{settings.gpu_max_size} x {settings.gpu_instance_type} of Spot")
    if settings.training:
        quota, needed = _GPU_QUOTAS[settings.training.instance.quota], settings.training.instance.vcpus
        others, what = needs.get(quota, (0, ""))
        own = f"1 x {settings.training.instance_type} to train on"
        needs[quota] = (others + needed, f"{what} and {own}" if what else own)
    for quota, (needed, what) in needs.items():
        allowed = _allowed(quota)
        if allowed is not None and allowed < needed:
            yield (
                f"quota: {what} need {needed} vCPUs of '{quota.name}', and this account has {allowed:g}: nodes will not start; "
                "request more under Service Quotas"
            )


def check_network_quotas(settings: Settings, zones: Sequence[str]) -> Iterator[str]:
    """Of a stack that does not stand yet."""
    yield from _room(_VPC_QUOTA, 1, lambda: aws.ec2.get_vpcs().ids)
    gateways = {"instance": [], "gateway": zones[:1], "gateway-per-zone": zones}[settings.nat]
    if gateways:
        yield from _room(_ADDRESS_QUOTA, len(gateways), lambda: aws.ec2.get_eips().allocation_ids)
    for zone in gateways:
        yield from _room(_NAT_QUOTA, 1, partial(_nat_gateways_in, zone), f" in {zone}")


def check_overlap(cidr: IPv4Network) -> Iterator[str]:
    """A VPC keeps its range for its life, and two with the same addresses can never be connected."""
    try:
        there = {vpc: IPv4Network(aws.ec2.get_vpc(id=vpc).cidr_block) for vpc in aws.ec2.get_vpcs().ids}
    except Exception:
        return
    if same := [f"{vpc} ({other})" for vpc, other in sorted(there.items()) if other.overlaps(cidr)]:
        yield (
            f"vpcCidr {cidr} overlaps {', '.join(same)}: these can never be peered; if they are to be, set another "
            "range now, since it cannot be changed later"
        )


def _nat_gateways_in(zone: str) -> Sequence[str]:
    subnets = aws.ec2.get_subnets(filters=[{"name": "availability-zone", "values": [zone]}]).ids
    if not subnets:
        return []
    living: Any = [
        {"name": "subnet-id", "values": list(subnets)},
        {"name": "state", "values": ["pending", "available"]},
    ]
    return aws.ec2.get_nat_gateways(filters=living).ids


def _room(quota: Quota, needed: int, used: Callable[[], Iterable[str]], where: str = "") -> Iterator[str]:
    allowed = _allowed(quota)
    if allowed is None:
        return
    try:
        there = len(list(used()))
    except Exception:
        return
    if there + needed > allowed:
        yield (
            f"quota: this stack needs {needed} more of '{quota.name}'{where}, where {there} are used and {allowed:g} allowed: `up` "
            "would fail; request more under Service Quotas"
        )


def _allowed(quota: Quota) -> float | None:
    try:
        return aws.servicequotas.get_service_quota(service_code=quota.service, quota_code=quota.code).value
    except Exception:
        return None


def check_support(today: date) -> Iterator[str]:
    """Whether EKS still makes clusters of the pinned version, and for how long without a surcharge."""
    try:
        found = aws.eks.get_cluster_versions(include_all=True).cluster_versions
    except Exception:
        return
    if not found:
        return
    ends = {one.cluster_version: one.end_of_standard_support_date for one in found}
    if versions.KUBERNETES not in ends:
        known = ", ".join(sorted(ends))
        raise ConfigError(
            [f"EKS has no Kubernetes {versions.KUBERNETES} any more, only {known}: use a newer version of this project"]
        )
    end = date.fromisoformat(ends[versions.KUBERNETES][:10])
    if (end - today).days < _SOON_DAYS:
        yield (
            f"Kubernetes {versions.KUBERNETES} leaves EKS' standard support on {end}, after which the control plane is upgraded by "
            "AWS: plan the upgrade (docs/operations.md)"
        )


def check_offered() -> None:
    """Whether AWS has the pinned add-ons for this Kubernetes, and the nodes' image. Raises ConfigError for what it lacks."""
    addons = [partial(_lacking_addon, name, pinned) for name, pinned in versions.ADDONS.items()]
    images = [partial(_lacking_image, "standard"), partial(_lacking_image, "nvidia")]
    if lacking := [what for what in at_once(*addons, *images) if what]:
        raise ConfigError(
            [f"{what}: take a version of this project whose infra/versions.py pins what AWS offers" for what in lacking]
        )


def _lacking_addon(name: str, pinned: str) -> str | None:
    try:
        newest = aws.eks.get_addon_version(
            addon_name=name, kubernetes_version=versions.KUBERNETES, most_recent=True
        ).version
        missing = _addon_order(pinned) > _addon_order(newest)
    except Exception:
        return None
    if not missing:
        return None
    return f"EKS offers the add-on {name} up to {newest} for Kubernetes {versions.KUBERNETES}, and {pinned} is pinned"


def _addon_order(version: str) -> list[int]:
    """Of vX.Y.Z-eksbuild.N."""
    return [int(number) for number in re.findall(r"\d+", version)]


def _lacking_image(variant: Literal["standard", "nvidia"]) -> str | None:
    try:
        aws.ssm.get_parameter(name=versions.node_image("x86_64", variant))
    except Exception as error:
        if re.search("not ?found|couldn't find", str(error), re.IGNORECASE):
            return f"AWS has no EKS AMI {versions.NODE_RELEASE} ({variant}, x86_64) in this region"
    return None


def check_image(image: str | None) -> Iterator[str]:
    """Whether the configured image is there, where its registry is ECR's."""
    named = _IN_ECR.fullmatch(image or "")
    if not named:
        return
    registry, region, repository, digest = named.groups()
    try:
        aws.ecr.get_image(registry_id=registry, region=region, repository_name=repository, image_digest=digest)
    except Exception as error:
        yield f"{image} cannot be read, and pods would wait for it: carry it there (docs/operations.md); AWS said: {error}"


class Catalog:
    """What a stack declares of the bucket's versions; those `before` were seen there, and what is published never changes."""

    def __init__(self, settings: Settings, bucket: str | None, before: Collection[str]) -> None:
        self._bucket = bucket
        self.wanted = _declared_versions(settings)
        self.seen = [pinned for pinned in map(_pinned, self.wanted.items()) if pinned in before]

    def check(self) -> Iterator[str]:
        """Raises ConfigError for another digest, which a paid GPU would find out otherwise."""
        unseen = {key: digest for key, digest in self.wanted.items() if _pinned((key, digest)) not in self.seen}
        if unseen and not self._bucket:
            yield f"this stack has no bucket yet for its {len(unseen)} declared versions: publish them once `up` has made it"
            return
        wrong = []
        for key, digest in sorted(unseen.items()):
            held = _digest(str(self._bucket), key)
            where = f"s3://{self._bucket}/{key}"
            if held is None:
                yield (
                    f"{where} cannot be read, so pods would wait for it: publish that version, or paste the entry that "
                    "`loraserve show` prints for another one"
                )
            elif held != digest:
                wrong.append(
                    f"{where} has digest {held}, and the stack config pins {digest}: paste the entry that `loraserve show` prints "
                    "for this version"
                )
            else:
                self.seen.append(_pinned((key, digest)))
        if wrong:
            raise ConfigError(wrong)


def _pinned(version: tuple[str, str]) -> str:
    return "@".join(version)


def _declared_versions(settings: Settings) -> dict[str, str]:
    """Digest by the key of the manifest."""
    found = {
        version_key(ADAPTER_PREFIX, one.model, one.version, MANIFEST_FILE): one.digest for one in settings.adapters
    }
    if mirror := settings.base_model_mirror:
        found[version_key(BASE_MODEL_PREFIX, settings.base_model, mirror.version, MANIFEST_FILE)] = mirror.digest
    if cache := settings.start_cache:
        found[version_key(START_CACHE_PREFIX, VLLM, cache.version, MANIFEST_FILE)] = cache.digest
    return found


def _digest(bucket: str, key: str) -> str | None:
    """S3 keeps the SHA-256 with which each manifest was created."""
    try:
        held: Any = aws.s3.get_object(bucket=bucket, key=key, checksum_mode="ENABLED").checksum_sha256
    except Exception:
        return None
    return f"sha256:{base64.b64decode(held).hex()}" if held else None
