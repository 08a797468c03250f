"""The bucket keeps what was published, and shows it to nobody else."""

from __future__ import annotations

import json

import pytest

from infra.adapter_bucket import bucket_policy
from infra.errors import ConfigError
from tests.unit.declared import Program, declare, run

GC_ROLE = "arn:aws:iam::123456789012:role/gc"
EVALUATOR_ROLE = "arn:aws:iam::123456789012:role/eval"
START_CACHES = "arn:aws:s3:::adapters/start-caches/*"
START_CACHE_ROLES = "arn:aws:iam::123456789012:role/start-cache-*"


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
    rule, usage, samples, checkpoints = dev.one(":BucketLifecycleConfiguration").inputs["rules"]
    assert (usage["filter"], usage["expiration"]) == ({"prefix": "usage/"}, {"days": 800})
    # Hidden after six days and deleted a day later: a bucket with versions keeps what has expired.
    assert (samples["filter"], samples["expiration"]) == ({"prefix": "samples/"}, {"days": 6})
    assert samples["noncurrentVersionExpiration"] == {"noncurrentDays": 1}
    assert (checkpoints["filter"], checkpoints["expiration"]) == ({"prefix": "training/"}, {"days": 14})
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


def test_a_retained_bucket_outlives_destroy_with_every_guard_and_is_never_emptied() -> None:
    retained = declare("dev", retainAdapters=True)
    of_bucket = [resource for resource in retained.resources if resource.type.startswith("aws:s3/")]
    assert len(of_bucket) == 7
    assert all(resource.retain_on_delete for resource in of_bucket)
    assert retained.one("s3/bucket:Bucket").inputs["forceDestroy"] is False
    assert sum(resource.retain_on_delete for resource in retained.resources) == len(of_bucket)


def test_by_default_nothing_outlives_destroy(dev: Program) -> None:
    assert not any(resource.retain_on_delete for resource in dev.resources)


def test_the_next_up_takes_back_what_destroy_kept_and_the_one_after_keeps_it() -> None:
    taken_back = declare("dev", retained=["kept-1f"]).one("s3/bucket:Bucket")
    assert (taken_back.import_id, taken_back.inputs["bucket"]) == ("kept-1f", "kept-1f")
    after = declare("dev", retained=["kept-1f"], last_outputs={"adapterBucket": "kept-1f"}).one("s3/bucket:Bucket")
    assert after.ignore_changes == ["bucket"]
    assert not after.import_id


def test_two_buckets_to_take_back_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"kept-1f, kept-2f .*loraserve/retained"):
        run("dev", retained=["kept-2f", "kept-1f"])


def test_the_bucket_refuses_plain_http_overwriting_and_deleting() -> None:
    statements = json.loads(bucket_policy("arn:aws:s3:::adapters", GC_ROLE, EVALUATOR_ROLE, START_CACHE_ROLES))[
        "Statement"
    ]
    denied = {statement["Sid"]: statement for statement in statements}
    assert all(statement["Effect"] == "Deny" and statement["Principal"] == "*" for statement in statements)
    assert denied["TlsOnly"]["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert denied["NoOverwrite"]["Action"] == "s3:PutObject"
    assert denied["NoOverwrite"]["Condition"]["Null"] == {"s3:if-none-match": "true"}
    assert denied["NoDelete"]["Condition"] == {"ArnNotEquals": {"aws:PrincipalArn": GC_ROLE}}
    assert "Condition" not in denied["NoDeleteForGood"]
    for sid in ("NoOverwrite", "NoDelete", "NoDeleteForGood"):
        prefixes = ("llm-models", "base-models", "lineage", "evaluations", "usage")
        kept = [f"arn:aws:s3:::adapters/{prefix}/*" for prefix in prefixes]
        assert denied[sid]["Resource"] == [*kept, *([START_CACHES] if sid == "NoOverwrite" else [])]


def test_the_clean_up_role_hides_and_never_reads_writes_or_deletes_for_good(dev: Program) -> None:
    policy = json.loads(dev.one("iam/rolePolicy:RolePolicy", "loraserve-dev-adapters-gc").inputs["policy"])
    allowed = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert allowed == {
        "s3:ListBucket",
        "s3:ListBucketMultipartUploads",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
    }
    assert not any("lineage" in resource for statement in policy["Statement"] for resource in statement["Resource"])


def test_start_caches_are_written_by_their_job_alone() -> None:
    statements = json.loads(bucket_policy("arn:aws:s3:::adapters", GC_ROLE, EVALUATOR_ROLE, START_CACHE_ROLES))[
        "Statement"
    ]
    [denied] = [statement for statement in statements if statement["Sid"] == "StartCachesOfTheirWriterOnly"]
    assert (denied["Action"], denied["Resource"]) == ("s3:PutObject", [START_CACHES])
    assert denied["Condition"] == {"ArnNotLike": {"aws:PrincipalArn": START_CACHE_ROLES}}
    declared = declare("dev").one("s3/bucketPolicy:BucketPolicy").inputs["policy"]
    assert "role/loraserve-dev-start-cache-*" in declared


def test_verdicts_are_written_by_the_pipelines_role_alone(dev: Program) -> None:
    statements = json.loads(bucket_policy("arn:aws:s3:::adapters", GC_ROLE, EVALUATOR_ROLE, START_CACHE_ROLES))[
        "Statement"
    ]
    [denied] = [statement for statement in statements if statement["Sid"] == "VerdictsOfThePipelineOnly"]
    assert denied["Action"] == "s3:PutObject"
    assert denied["Resource"] == ["arn:aws:s3:::adapters/evaluations/*"]
    assert denied["Condition"] == {"ArnNotEquals": {"aws:PrincipalArn": EVALUATOR_ROLE}}
    policy = json.loads(dev.one("iam/rolePolicy:RolePolicy", "loraserve-dev-adapters-eval").inputs["policy"])
    [record] = [statement for statement in policy["Statement"] if statement["Sid"] == "Record"]
    assert record["Action"] == ["s3:GetObject", "s3:PutObject"]
    assert record["Resource"].endswith("/evaluations/*")


@pytest.mark.parametrize("role", ["gc", "eval"])
def test_the_buckets_roles_are_assumed_from_the_own_account(dev: Program, role: str) -> None:
    declared = dev.one("iam/role:Role", f"loraserve-dev-adapters-{role}").inputs
    [trust] = json.loads(declared["assumeRolePolicy"])["Statement"]
    assert trust["Principal"] == {"AWS": "arn:aws:iam::123456789012:root"}
