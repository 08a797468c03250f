"""Rules about what is declared in AWS."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from loraserve.contract.addresses import STACK_TAG
from policy.rule import Declared, each, is_on, listed, rule

_EVERYBODY = {"0.0.0.0/0", "::/0"}
_BUCKET_POLICY = "aws:s3/bucketPolicy:BucketPolicy"
_ACCESS_BLOCK = "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock"
_BLOCKS = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")
_CLUSTERS = ("eks:index:Cluster", "aws:eks/cluster:Cluster")
_LAUNCH_TEMPLATE = "aws:ec2/launchTemplate:LaunchTemplate"
_INSTANCE = "aws:ec2/instance:Instance"
_NODE_GROUP = "aws:eks/nodeGroup:NodeGroup"
_ADDON = "aws:eks/addon:Addon"
_BUCKET = "aws:s3/bucket:Bucket"
_GPU_FAMILIES = ("g", "p")
_TAKE_NO_TAGS = (
    "Attachment",
    "Association",
    "aws:autoscaling/tag:Tag",
    "aws:ec2/route:Route",
    "aws:ecr/lifecyclePolicy:LifecyclePolicy",
    "aws:iam/rolePolicy:RolePolicy",
    "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration",
    "aws:s3/bucketOwnershipControls:BucketOwnershipControls",
    _BUCKET_POLICY,
    _ACCESS_BLOCK,
    "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration",
    "aws:s3/bucketVersioning:BucketVersioning",
)


def _statements(declared: Declared, *keys: str) -> Iterator[Mapping[str, Any]]:
    """What the policy documents at these properties allow."""
    for text in each(declared.properties, *keys):
        document = json.loads(text) if isinstance(text, str) else text
        yield from (item for item in listed(document.get("Statement")) if item.get("Effect") == "Allow")


def _role_policy(action: str, resource: str) -> Declared:
    statement = {"Effect": "Allow", "Action": action, "Resource": resource}
    return Declared("aws:iam/rolePolicy:RolePolicy", {"policy": json.dumps({"Statement": [statement]})})


@rule(
    violating=_role_policy("s3:*", "arn:aws:s3:::adapters/*"),
    conforming=_role_policy("s3:GetObject", "arn:aws:s3:::adapters/*"),
)
def iam_wildcards(declared: Declared) -> Iterator[str]:
    """A policy names its actions; on all resources it only looks, or has a condition; a role is nobody's in particular."""
    if not declared.type.startswith("aws:iam/"):
        return
    for statement in _statements(declared, "policy"):
        actions = listed(statement.get("Action"))
        if "NotAction" in statement or any("*" in action for action in actions):
            yield f"{statement.get('Sid', 'a statement')} allows {', '.join(actions) or 'NotAction'}: name each action"
        changes = [a for a in actions if not a.partition(":")[2].startswith(("Describe", "Get", "List"))]
        if "*" in listed(statement.get("Resource")) and changes and not statement.get("Condition"):
            yield f"{', '.join(changes)} on every resource: name the resources, or add a condition"
    for statement in _statements(declared, "assumeRolePolicy"):
        if _is_for_everybody(statement):
            yield "anybody may assume this role: name who"


def _is_for_everybody(statement: Mapping[str, Any]) -> bool:
    principal = statement.get("Principal")
    named = principal.get("AWS") if isinstance(principal, Mapping) else principal
    return "*" in listed(named) and not statement.get("Condition")


@rule(
    violating=Declared(
        "aws:iam/rolePolicyAttachment:RolePolicyAttachment", {"policyArn": "arn:aws:iam::aws:policy/AmazonS3FullAccess"}
    ),
    conforming=Declared(
        "aws:iam/rolePolicyAttachment:RolePolicyAttachment",
        {"policyArn": "arn:aws:iam::aws:policy/AmazonEKSWorkerNodePolicy"},
    ),
)
def broad_managed_policies(declared: Declared) -> Iterator[str]:
    """No role has one of AWS' policies for administrators and power users."""
    for arn in each(declared.properties, "policyArn", "managedPolicyArns"):
        if "FullAccess" in arn or arn.endswith(("/AdministratorAccess", "/PowerUserAccess", "/IAMFullAccess")):
            yield f"{arn.rpartition('/')[2]}: write a policy of the actions that are used"


@rule(
    violating=Declared(_ACCESS_BLOCK, {"blockPublicAcls": True}),
    conforming=Declared(_ACCESS_BLOCK, dict.fromkeys(_BLOCKS, True)),
)
def public_buckets(declared: Declared) -> Iterator[str]:
    """Nothing in a bucket is public."""
    if declared.type == _ACCESS_BLOCK:
        yield from (f"{key} is off: set it to true" for key in _BLOCKS if not is_on(declared.properties.get(key)))
    if declared.type == _BUCKET_POLICY and any(map(_is_for_everybody, _statements(declared, "policy"))):
        yield "the bucket's policy allows something to everybody: name who"
    if declared.type.startswith("aws:s3/bucket") and str(declared.properties.get("acl", "")).startswith("public"):
        yield "the bucket's ACL is public: leave it out"


@rule(
    violating=Declared(_CLUSTERS[0], {"endpointPublicAccess": True, "publicAccessCidrs": ["0.0.0.0/0"]}),
    conforming=Declared(_CLUSTERS[0], {"endpointPublicAccess": True, "publicAccessCidrs": ["203.0.113.0/24"]}),
)
def public_endpoints(declared: Declared) -> Iterator[str]:
    """In production the cluster's API is open to named ranges only; no security group and no database ever is to all."""
    if declared.type in _CLUSTERS and declared.production:
        access = declared.properties.get("vpcConfig") or declared.properties
        ranges = set(each(access, "publicAccessCidrs")) or _EVERYBODY
        if is_on(access.get("endpointPublicAccess", True)) and ranges & _EVERYBODY:
            yield "the API server answers the whole internet: set publicAccessCidrs, or endpointPublicAccess to false"
    admitted = [declared.properties] if "IngressRule" in declared.type else each(declared.properties, "ingress")
    for entry in admitted:
        if set(each(entry, "cidrIpv4", "cidrIpv6", "cidrBlocks", "ipv6CidrBlocks")) & _EVERYBODY:
            yield "a security group admits the whole internet: name the range"
    if is_on(declared.properties.get("publiclyAccessible")):
        yield "publiclyAccessible: set it to false"


@rule(
    violating=Declared("aws:ebs/volume:Volume", {"size": 10}),
    conforming=Declared("aws:ebs/volume:Volume", {"size": 10, "encrypted": True}),
)
def unencrypted_storage(declared: Declared) -> Iterator[str]:
    """Every disk and file system is encrypted (S3, ECR and logs are by AWS itself)."""
    properties = declared.properties
    if declared.type in ("aws:ebs/volume:Volume", "aws:efs/fileSystem:FileSystem") and not is_on(
        properties.get("encrypted")
    ):
        yield "encrypted: set it to true"
    disks = [mapping.get("ebs") for mapping in each(properties, "blockDeviceMappings")]
    if declared.type == _INSTANCE:
        disks += [properties.get("rootBlockDevice") or {}, *each(properties, "ebsBlockDevices")]
    if any(disk is not None and not is_on(disk.get("encrypted")) for disk in disks):
        yield "a disk of the instance is not encrypted: set encrypted to true"
    is_class = declared.type.startswith("kubernetes:storage.k8s.io/") and "ebs" in str(properties.get("provisioner"))
    if is_class and not is_on((properties.get("parameters") or {}).get("encrypted")):
        yield 'volumes of this class are not encrypted: set parameters.encrypted to "true"'


@rule(
    violating=Declared(_LAUNCH_TEMPLATE, {"metadataOptions": {"httpEndpoint": "enabled"}}),
    conforming=Declared(_LAUNCH_TEMPLATE, {"metadataOptions": {"httpTokens": "required"}}),
)
def imds_v1(declared: Declared) -> Iterator[str]:
    """Instances hand out their credentials to whoever asks with a token (IMDSv2), and to nobody else."""
    options = declared.properties.get("metadataOptions") or {}
    if declared.type in (_LAUNCH_TEMPLATE, _INSTANCE) and options.get("httpTokens") != "required":
        yield "set metadataOptions.httpTokens to required"


@rule(
    violating=Declared(_ADDON, {"addonName": "coredns"}),
    conforming=Declared(_ADDON, {"addonName": "coredns", "addonVersion": "v1.13.2-eksbuild.1"}),
)
def unpinned_versions(declared: Declared) -> Iterator[str]:
    """Kubernetes, its add-ons and the nodes' AMI change with a commit, not with a date."""
    wanted = {_ADDON: ("addonVersion",), _NODE_GROUP: ("version", "releaseVersion")}
    wanted |= dict.fromkeys(_CLUSTERS, ("version",))
    for key in wanted.get(declared.type, ()):
        if not declared.properties.get(key):
            yield f"{key} is left to AWS: name it"


_GPU_GROUP = {"amiType": "AL2023_x86_64_NVIDIA", "version": "1.35", "releaseVersion": "1.35.6-20260714"}
_GPU_TAINT = {"key": "nvidia.com/gpu", "value": "true", "effect": "NO_SCHEDULE"}


@rule(
    violating=Declared(_NODE_GROUP, _GPU_GROUP),
    conforming=Declared(_NODE_GROUP, _GPU_GROUP | {"taints": [_GPU_TAINT]}),
)
def gpu_group_without_taint(declared: Declared) -> Iterator[str]:
    """What needs no GPU keeps away from nodes that have one."""
    properties = declared.properties
    has_gpu = "NVIDIA" in str(properties.get("amiType")) or any(
        kind.startswith(_GPU_FAMILIES) for kind in each(properties, "instanceTypes")
    )
    if declared.type == _NODE_GROUP and has_gpu and _GPU_TAINT["key"] not in _kept_away_by(properties):
        yield f"add the taint {_GPU_TAINT['key']} with effect NO_SCHEDULE"


def _kept_away_by(properties: Mapping[str, Any]) -> set[str]:
    return {t.get("key", "") for t in each(properties, "taints") if t.get("effect") in ("NO_SCHEDULE", "NO_EXECUTE")}


@rule(
    violating=Declared(_BUCKET, {"tags": {"Name": "adapters"}}),
    conforming=Declared(_BUCKET, {"tags": {STACK_TAG: "dev"}}),
)
def missing_tags(declared: Declared) -> Iterator[str]:
    """Whatever AWS can tag names its stack, else leftovers and cost cannot be found."""
    takes_tags = declared.type.startswith(("aws:", _CLUSTERS[0])) and not declared.type.endswith(_TAKE_NO_TAGS)
    if takes_tags and not (declared.properties.get("tags") or {}).get(STACK_TAG):
        yield f"add the tag {STACK_TAG}"


@rule(violating=Declared(_BUCKET, {}), conforming=Declared(_BUCKET, {}, protected=True))
def protection_off_in_production(declared: Declared) -> Iterator[str]:
    """In production nothing that holds data, and no cluster, is deleted by one command."""
    if not declared.production:
        return
    if declared.type in (_BUCKET, "eks:index:Cluster") and not declared.protected:
        yield "it is not protected: set deletionProtection"
    yield from (
        f"{key} is on: set deletionProtection"
        for key in ("forceDestroy", "forceDelete")
        if is_on(declared.properties.get(key))
    )


@rule(
    violating=Declared("kubernetes:core/v1:Service", {"spec": {"type": "LoadBalancer"}}),
    conforming=Declared("kubernetes:core/v1:Service", {"spec": {"type": "ClusterIP"}}),
)
def load_balancers_without_reason(declared: Declared) -> Iterator[str]:
    """A load balancer costs money each hour and is a way in: each one has its reason among the exemptions."""
    spec = declared.properties.get("spec") or {}
    is_service = declared.type.startswith("kubernetes:core/v1:Service") and spec.get("type") == "LoadBalancer"
    if is_service or declared.type in ("aws:lb/loadBalancer:LoadBalancer", "aws:elb/loadBalancer:LoadBalancer"):
        yield "use a ClusterIP Service, or say in policy/exemptions.py why it is needed"
    if declared.type.startswith("kubernetes:networking.k8s.io/") and declared.type.endswith(":Ingress"):
        yield "an Ingress makes a load balancer: say in policy/exemptions.py why it is needed"
