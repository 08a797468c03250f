"""The bucket keeps what was published, and shows it to nobody else."""

from __future__ import annotations

import json

import pytest

from infra.adapter_bucket import bucket_policy
from tests.unit.declared import Program, declare

GC_ROLE = "arn:aws:iam::123456789012:role/gc"


@pytest.fixture(scope="module")
def dev() -> Program:
    return declare("dev")


def test_the_bucket_is_versioned(dev: Program) -> None:
    versioning = dev.one("s3/bucketVersioning:BucketVersioning").inputs
    assert versioning["versioningConfiguration"] == {"status": "Enabled"}


def test_the_bucket_is_encrypted(dev: Program) -> None:
    (rule,) = dev.one(":BucketServerSideEncryptionConfiguration").inputs["rules"]
    assert rule["applyServerSideEncryptionByDefault"] == {"sseAlgorithm": "AES256"}


def test_the_bucket_is_closed_to_the_public(dev: Program) -> None:
    block = dev.one("s3/bucketPublicAccessBlock:BucketPublicAccessBlock").inputs
    for guard in ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets"):
        assert block[guard] is True


def test_failed_uploads_and_old_versions_are_not_paid_for_forever(dev: Program) -> None:
    (rule,) = dev.one(":BucketLifecycleConfiguration").inputs["rules"]
    assert rule["status"] == "Enabled"
    assert rule["filter"] == {"prefix": ""}
    assert rule["abortIncompleteMultipartUpload"] == {"daysAfterInitiation": 7}
    assert rule["noncurrentVersionExpiration"] == {"noncurrentDays": 90}
    assert "expiration" not in rule  # what is current stays


def test_every_guard_stands_on_the_one_bucket(dev: Program) -> None:
    bucket = f"{dev.one('s3/bucket:Bucket').name}-id"
    guards = [
        resource
        for resource in dev.resources
        if resource.type.startswith("aws:s3/bucket") and "bucket" in resource.inputs
    ]
    assert len(guards) == 6
    assert {guard.inputs["bucket"] for guard in guards} == {bucket}


def test_the_bucket_refuses_plain_http_overwriting_and_deleting() -> None:
    statements = json.loads(bucket_policy("arn:aws:s3:::adapters", GC_ROLE))["Statement"]
    denied = {statement["Sid"]: statement for statement in statements}
    assert all(statement["Effect"] == "Deny" and statement["Principal"] == "*" for statement in statements)
    assert denied["TlsOnly"]["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert denied["NoOverwrite"]["Action"] == "s3:PutObject"
    assert denied["NoOverwrite"]["Condition"]["Null"] == {"s3:if-none-match": "true"}
    assert denied["NoDelete"]["Condition"] == {"ArnNotEquals": {"aws:PrincipalArn": GC_ROLE}}
    assert "Condition" not in denied["NoDeleteForGood"]
    for sid in ("NoOverwrite", "NoDelete", "NoDeleteForGood"):
        assert denied[sid]["Resource"] == ["arn:aws:s3:::adapters/llm-models/*", "arn:aws:s3:::adapters/base-models/*"]


def test_the_clean_up_role_hides_and_never_reads_writes_or_deletes_for_good(dev: Program) -> None:
    policy = json.loads(dev.one("iam/rolePolicy:RolePolicy", "loraserve-dev-adapters-gc").inputs["policy"])
    allowed = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert allowed == {
        "s3:ListBucket",
        "s3:ListBucketMultipartUploads",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
    }


def test_the_clean_up_role_is_assumed_from_the_own_account(dev: Program) -> None:
    role = dev.one("iam/role:Role", "loraserve-dev-adapters-gc").inputs
    [trust] = json.loads(role["assumeRolePolicy"])["Statement"]
    assert trust["Principal"] == {"AWS": "arn:aws:iam::123456789012:root"}
