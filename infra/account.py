"""What an account must allow and hold before a stack is made in it. Each check yields warnings; what may not be read it passes."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import date
from typing import Any

import pulumi_aws as aws

from infra import versions
from infra.errors import ConfigError
from loraserve.contract.addresses import ADAPTER_PREFIX, BASE_MODEL_PREFIX, MANIFEST_FILE, version_key
from loraserve.planning.stack_settings import Settings

_GPU_QUOTA = "L-DB2E81BA"
"""EC2: Running On-Demand G and VT instances, in vCPUs."""
_VPC_QUOTA, _ADDRESS_QUOTA = "L-F678F1CE", "L-0263D0A3"
"""VPCs per Region; EC2-VPC Elastic IPs."""
_SOON_DAYS = 60
_IN_ECR = re.compile(r"(\d{12})\.dkr\.ecr\.([\w-]+)\.amazonaws\.com(?:\.cn)?/([^@:]+)(?::[^@]+)?@(sha256:[0-9a-f]{64})")

MAKES: Mapping[str, str] = {
    "aws:autoscaling/attachment:Attachment": "autoscaling:AttachLoadBalancerTargetGroups",
    "aws:autoscaling/tag:Tag": "autoscaling:CreateOrUpdateTags",
    "aws:budgets/budget:Budget": "budgets:ModifyBudget",
    "aws:cloudwatch/logGroup:LogGroup": "logs:CreateLogGroup",
    "aws:ebs/volume:Volume": "ec2:CreateVolume",
    "aws:ec2/eip:Eip": "ec2:AllocateAddress",
    "aws:ec2/instance:Instance": "ec2:RunInstances",
    "aws:ec2/internetGateway:InternetGateway": "ec2:CreateInternetGateway",
    "aws:ec2/launchTemplate:LaunchTemplate": "ec2:CreateLaunchTemplate",
    "aws:ec2/natGateway:NatGateway": "ec2:CreateNatGateway",
    "aws:ec2/route:Route": "ec2:CreateRoute",
    "aws:ec2/routeTable:RouteTable": "ec2:CreateRouteTable",
    "aws:ec2/routeTableAssociation:RouteTableAssociation": "ec2:AssociateRouteTable",
    "aws:ec2/securityGroup:SecurityGroup": "ec2:CreateSecurityGroup",
    "aws:ec2/subnet:Subnet": "ec2:CreateSubnet",
    "aws:ec2/vpc:Vpc": "ec2:CreateVpc",
    "aws:ec2/vpcEndpoint:VpcEndpoint": "ec2:CreateVpcEndpoint",
    "aws:ecr/lifecyclePolicy:LifecyclePolicy": "ecr:PutLifecyclePolicy",
    "aws:ecr/repository:Repository": "ecr:CreateRepository",
    "aws:eks/accessEntry:AccessEntry": "eks:CreateAccessEntry",
    "aws:eks/accessPolicyAssociation:AccessPolicyAssociation": "eks:AssociateAccessPolicy",
    "aws:eks/addon:Addon": "eks:CreateAddon",
    "aws:eks/cluster:Cluster": "eks:CreateCluster",
    "aws:eks/nodeGroup:NodeGroup": "eks:CreateNodegroup",
    "aws:iam/openIdConnectProvider:OpenIdConnectProvider": "iam:CreateOpenIDConnectProvider",
    "aws:iam/role:Role": "iam:CreateRole",
    "aws:iam/rolePolicy:RolePolicy": "iam:PutRolePolicy",
    "aws:iam/rolePolicyAttachment:RolePolicyAttachment": "iam:AttachRolePolicy",
    "aws:lb/listener:Listener": "elasticloadbalancing:CreateListener",
    "aws:lb/loadBalancer:LoadBalancer": "elasticloadbalancing:CreateLoadBalancer",
    "aws:lb/targetGroup:TargetGroup": "elasticloadbalancing:CreateTargetGroup",
    "aws:s3/bucket:Bucket": "s3:CreateBucket",
    "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
    "aws:s3/bucketOwnershipControls:BucketOwnershipControls": "s3:PutBucketOwnershipControls",
    "aws:s3/bucketPolicy:BucketPolicy": "s3:PutBucketPolicy",
    "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": "s3:PutEncryptionConfiguration",
    "aws:s3/bucketVersioning:BucketVersioning": "s3:PutBucketVersioning",
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": "ec2:AuthorizeSecurityGroupEgress",
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": "ec2:AuthorizeSecurityGroupIngress",
}
"""By type, the action that makes it: fewer than an `up` needs, which also reads, tags, changes and deletes."""


def check_permissions(caller: str) -> Iterator[str]:
    """Asks IAM's simulator, which knows the caller's own policies, but not those of the organization."""
    try:
        who = aws.iam.get_session_context(arn=caller).issuer_arn
        answers = aws.iam.get_principal_policy_simulation(
            action_names=sorted({*MAKES.values(), "iam:PassRole"}), policy_source_arn=who
        ).results
    except Exception:
        return
    if denied := sorted(answer.action_name for answer in answers or [] if not answer.allowed):
        yield (
            f"permissions: IAM's simulator denies {who} {', '.join(denied)} on all resources: allow them, unless its policies do "
            "for this stack's names"
        )


def check_gpu_quota(settings: Settings) -> Iterator[str]:
    """Too small a quota shows itself only as GPU nodes that never come."""
    quota, needed = _quota("ec2", _GPU_QUOTA), settings.gpu_max_size * settings.gpu_instance.vcpus
    if quota is not None and quota < needed:
        yield (
            f"quota: {settings.gpu_max_size} x {settings.gpu_instance_type} need {needed} vCPUs of 'Running On-Demand G and VT "
            f"instances', and this account has {quota:g}: GPU nodes will not start; request more under Service Quotas"
        )


def check_network_quotas(settings: Settings, zones: int) -> Iterator[str]:
    """Of a stack that does not stand yet."""
    addresses = {"instance": 0, "gateway": 1, "gateway-per-zone": zones}[settings.nat]
    yield from _room("VPCs", "vpc", _VPC_QUOTA, 1, lambda: aws.ec2.get_vpcs().ids)
    if addresses:
        yield from _room(
            "Elastic IP addresses", "ec2", _ADDRESS_QUOTA, addresses, lambda: aws.ec2.get_eips().allocation_ids
        )


def _room(what: str, service: str, code: str, needed: int, used: Callable[[], Iterable[str]]) -> Iterator[str]:
    quota = _quota(service, code)
    if quota is None:
        return
    try:
        there = len(list(used()))
    except Exception:
        return
    if there + needed > quota:
        yield (
            f"quota: this stack needs {needed} more of {there} {what}, and this account may have {quota:g}: `up` would fail; request "
            "more under Service Quotas"
        )


def _quota(service: str, code: str) -> float | None:
    try:
        return aws.servicequotas.get_service_quota(service_code=service, quota_code=code).value
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
    return found


def _digest(bucket: str, key: str) -> str | None:
    """S3 keeps the SHA-256 with which each manifest was created."""
    try:
        held: Any = aws.s3.get_object(bucket=bucket, key=key, checksum_mode="ENABLED").checksum_sha256
    except Exception:
        return None
    return f"sha256:{base64.b64decode(held).hex()}" if held else None
