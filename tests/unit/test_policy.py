"""The policy pack: each rule by its two examples, and the program itself, with every setting on."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest

from policy.exemptions import EXEMPTIONS, violations
from policy.rule import RULES, Declared, Rule
from tests.stack_values import adapter
from tests.unit.declared import Program, declare
from tests.unit.test_aws_types import EVERYTHING, takes_tags

FAR_FROM_SHIPPED: dict[str, Any] = {
    "adapters": [adapter("one", rank=64), adapter("two")],
    "availabilityZoneCount": 3,
    "gatewayReplicas": 5,
    "gpuInstanceType": "g6.2xlarge",
    "gpuMaxSize": 6,
    "gpuMinSize": 1,
    "gpuNvmeRaid0": False,
    "gpuWarmPool": True,
    "inferenceReplicas": 3,
    "maxModelLen": 1024,
    "systemNodeCount": 4,
    "vpcCidr": "172.16.0.0/20",
}
PROGRAMS = {"dev": FAR_FROM_SHIPPED, "prod": EVERYTHING}


def declared_by(stack: str) -> Program:
    return declare(stack, **PROGRAMS[stack])


def problems(program: Program, *, production: bool) -> list[str]:
    return [
        f"{rule.name}: {resource.urn}: {problem}"
        for resource in program.resources
        for rule in RULES
        for problem in violations(
            rule, Declared(resource.type, resource.inputs, resource.protect, production), resource.urn
        )
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_finds_its_violating_example_and_not_its_conforming_one(rule: Rule) -> None:
    assert list(rule.check(rule.violating))
    assert not list(rule.check(rule.conforming))
    assert rule.description.endswith(".")


@pytest.mark.parametrize("stack", PROGRAMS)
def test_the_program_violates_no_rule(stack: str) -> None:
    assert problems(declared_by(stack), production=stack == "prod") == []


def test_settings_far_from_the_shipped_ones_give_whole_objects_of_their_own() -> None:
    resources = declared_by("dev").resources
    assert len({resource.urn for resource in resources}) == len(resources)
    assert [resource.urn for resource in resources if None in resource.inputs.values()] == []


def test_an_exemption_is_still_needed() -> None:
    """Objects in charts are seen by the engine only."""
    resources = [resource for stack in PROGRAMS for resource in declared_by(stack).resources]
    for exemption in EXEMPTIONS:
        covered = [r for r in resources if fnmatchcase(r.urn, exemption.urn)]
        found = [p for r in covered for check in exemption.rules for p in check(Declared(r.type, r.inputs, r.protect))]
        assert found or "Chart$" in exemption.urn, exemption
        assert exemption.reason


def test_what_takes_tags_is_known() -> None:
    (rule,) = (rule for rule in RULES if rule.name == "missing-tags")
    for resource in declared_by("prod").resources:
        assert bool(list(rule.check(Declared(resource.type, {})))) == takes_tags(resource.type), resource.type


def bucket_policy(principal: Any, **statement: Any) -> Declared:
    allowed = {"Effect": "Allow", "Principal": principal, "Action": "s3:GetObject", "Resource": "*"} | statement
    return Declared("aws:s3/bucketPolicy:BucketPolicy", {"policy": {"Statement": [allowed]}})


@pytest.mark.parametrize(
    ("rule", "declared", "finds"),
    [
        ("public-buckets", bucket_policy("*"), True),
        ("public-buckets", bucket_policy({"AWS": ["*"]}), True),
        ("public-buckets", bucket_policy("*", Effect="Deny"), False),
        ("public-buckets", bucket_policy("*", Condition={"StringEquals": {"aws:PrincipalOrgID": "o-1"}}), False),
        ("public-endpoints", Declared("aws:eks/cluster:Cluster", {"vpcConfig": {}}), True),
        ("public-endpoints", Declared("eks:index:Cluster", {}, production=False), False),
        ("public-endpoints", Declared("eks:index:Cluster", {"endpointPublicAccess": False}), False),
        ("public-endpoints", Declared("aws:ec2/securityGroup:SecurityGroup", {"ingress": [{"cidrBlocks": ["0.0.0.0/0"]}]}), True),
        ("public-endpoints", Declared("aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule", {"cidrIpv4": "0.0.0.0/0"}), True),
        ("public-endpoints", Declared("aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule", {"cidrIpv4": "0.0.0.0/0"}), False),
        ("unencrypted-storage", Declared("aws:ec2/launchTemplate:LaunchTemplate", {"blockDeviceMappings": [{"ebs": {}}]}), True),
        ("unencrypted-storage", Declared("aws:ec2/instance:Instance", {}), True),
        ("protection-off-in-production", Declared("aws:ecr/repository:Repository", {"forceDelete": True}), True),
        ("protection-off-in-production", Declared("aws:s3/bucket:Bucket", {}, production=False), False),
        ("load-balancers-without-reason", Declared("kubernetes:networking.k8s.io/v1:Ingress", {}), True),
        ("missing-tags", Declared("kubernetes:core/v1:Service", {}), False),
        ("unpinned-charts", Declared("kubernetes:helm.sh/v3:Release", {"chart": "keda"}), True),
        ("unpinned-charts", Declared("kubernetes:helm.sh/v4:Chart", {}), False),
    ],
)  # fmt: skip
def test_a_rule_knows_more_than_one_spelling(rule: str, declared: Declared, finds: bool) -> None:
    (named,) = (one for one in RULES if one.name == rule)
    assert bool(list(named.check(declared))) is finds


def pod(kind: str, container: dict[str, Any], **spec: Any) -> Declared:
    template = {"template": {"spec": spec | {"containers": [{"name": "c"} | container]}}}
    return Declared(kind, {"spec": {"jobTemplate": {"spec": template}} if kind.endswith("CronJob") else template})


@pytest.mark.parametrize(
    ("rule", "declared", "finds"),
    [
        ("unpinned-images", pod("kubernetes:batch/v1:CronJob", {"image": "busybox"}), True),
        ("unpinned-images", pod("kubernetes:batch/v1:Job", {"image": "r.io:5000/busybox"}), True),
        ("unpinned-images", pod("kubernetes:batch/v1:Job", {"image": "r.io/b@sha256:" + "a" * 64}), False),
        ("missing-probes", pod("kubernetes:batch/v1:Job", {}), False),
        ("privileged-pods", pod("kubernetes:apps/v1:DaemonSet", {"securityContext": {"privileged": True}}), True),
        ("privileged-pods", pod("kubernetes:apps/v1:DaemonSet", {"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}), True),
        ("privileged-pods", pod("kubernetes:apps/v1:DaemonSet", {}, volumes=[{"name": "root", "hostPath": {"path": "/"}}]), True),
        ("missing-security-context", pod("kubernetes:apps/v1:DaemonSet", {}), True),
    ],
)  # fmt: skip
def test_a_pod_is_found_in_whatever_makes_it(rule: str, declared: Declared, finds: bool) -> None:
    (named,) = (one for one in RULES if one.name == rule)
    assert bool(list(named.check(declared))) is finds
