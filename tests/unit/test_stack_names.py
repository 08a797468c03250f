"""A stack's name stands in names that AWS limits: it fits, or is refused."""

from __future__ import annotations

import pytest

from infra.errors import ConfigError
from loraserve.contract.addresses import stack_name_problem
from tests.unit.declared import declare, run

LONGEST = "s" * 30
GENERATED = len("-1234567")
"""What the providers add to a name."""
LIMITS = {
    "iam/role:Role": 64,
    "lb/loadBalancer:LoadBalancer": 32,
    "lb/targetGroup:TargetGroup": 32,
    "s3/bucket:Bucket": 63,
}
"""Characters: the API references of IAM, ELBv2 and S3."""
CERTIFICATE = "arn:aws:acm:eu-central-1:123456789012:certificate/0123"


@pytest.mark.parametrize("name", ["staging", "production", "a-rather-long-stack-name-0123", LONGEST])
def test_whatever_name_is_taken_fits(name: str) -> None:
    program = declare("prod", named=name, gatewayCertificateArn=CERTIFICATE)
    for kind, limit in LIMITS.items():
        for resource in program.of_type(kind):
            assert len(resource.inputs.get("name") or resource.name) + GENERATED <= limit, resource.urn
    cluster = program.one("eks:index:Cluster").name
    assert len(f"{cluster}-eksRole-role") + GENERATED <= LIMITS["iam/role:Role"], "pulumi-eks names its role so"


@pytest.mark.parametrize("name", ["Staging", "team_a", "dev.eu", "-dev", "dev-", f"{LONGEST}s"])
def test_a_name_that_aws_does_not_take_is_refused_before_anything_is_declared(name: str) -> None:
    assert stack_name_problem(name)


def test_the_refusal_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"'Staging' stands in the names .*pulumi stack rename"):
        run("dev", named="Staging")
