"""The S3 bucket that holds adapters and mirrored base weights. Versions are written once: the bucket itself sees to it.

With `retainAdapters` it outlives `destroy`, guards included, and the next `up` of the stack finds it by its tags.
"""

from __future__ import annotations

from typing import Any

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.errors import ConfigError
from infra.names import (
    CATALOG_PREFIXES,
    EVALUATION_PREFIX,
    LINEAGE_PREFIX,
    SAMPLE_PREFIX,
    START_CACHE_PREFIX,
    USAGE_PREFIX,
)
from infra.tags import retained_tag, stack_tag
from loraserve.contract.addresses import TRAINING_PREFIX

FAILED_UPLOAD_DAYS = 7
NONCURRENT_DAYS = 90
CHECKPOINT_DAYS = 14
"""A training that was not taken up again by then begins anew."""
SAMPLE_DAYS = 7
"""Tenants' own words."""
USAGE_DAYS = 800
"""Two whole years and some weeks: at most 2 GB for each gateway replica that is never idle."""


def bucket_policy(bucket_arn: str, gc_role_arn: str, evaluator_role_arn: str, start_cache_writer: str) -> str:
    """TLS only; published objects can be created once, not overwritten, and deleted by the clean-up role alone.

    Verdicts of evaluations are written by the pipeline's role alone, start caches by that of their Job (`start_cache_writer`: a
    pattern of its ARN), which mostly does not exist. A write must say `If-None-Match`; parts of a multipart upload are exempt, its completion is not. Nobody deletes for
    good: the clean-up role's deletions hide an object, whose bytes the lifecycle rule removes much later.
    """
    prefixes = (*CATALOG_PREFIXES, LINEAGE_PREFIX, EVALUATION_PREFIX, USAGE_PREFIX)
    published = [f"{bucket_arn}/{prefix}/*" for prefix in prefixes]
    start_caches = f"{bucket_arn}/{START_CACHE_PREFIX}/*"
    return iam.policy(
        _deny("TlsOnly", "s3:*", [bucket_arn, f"{bucket_arn}/*"], {"Bool": {"aws:SecureTransport": "false"}}),
        _deny(
            "NoOverwrite",
            "s3:PutObject",
            [*published, start_caches],
            {"Null": {"s3:if-none-match": "true"}, "Bool": {"s3:ObjectCreationOperation": "true"}},
        ),
        _deny(
            "VerdictsOfThePipelineOnly",
            "s3:PutObject",
            [f"{bucket_arn}/{EVALUATION_PREFIX}/*"],
            {"ArnNotEquals": {"aws:PrincipalArn": evaluator_role_arn}},
        ),
        _deny(
            "StartCachesOfTheirWriterOnly",
            "s3:PutObject",
            [start_caches],
            {"ArnNotLike": {"aws:PrincipalArn": start_cache_writer}},
        ),
        _deny("NoDelete", "s3:DeleteObject", published, {"ArnNotEquals": {"aws:PrincipalArn": gc_role_arn}}),
        _deny("NoDeleteForGood", "s3:DeleteObjectVersion", published),
    )


def gc_policy(bucket_arn: str) -> str:
    """What `loraserve gc` does: look at what there is, hide versions, drop unfinished uploads."""
    published = [f"{bucket_arn}/{prefix}/*" for prefix in CATALOG_PREFIXES]
    return iam.policy(
        {
            "Sid": "Look",
            "Effect": "Allow",
            "Action": ["s3:ListBucket", "s3:ListBucketMultipartUploads"],
            "Resource": bucket_arn,
        },
        {
            "Sid": "Tidy",
            "Effect": "Allow",
            "Action": ["s3:DeleteObject", "s3:AbortMultipartUpload"],
            "Resource": published,
        },
    )


def evaluator_policy(bucket_arn: str) -> str:
    """What `loraserve evaluate --record` does: adds verdicts, and reads them."""
    return iam.policy(
        {
            "Sid": "Look",
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": bucket_arn,
            "Condition": {"StringLike": {"s3:prefix": [f"{EVALUATION_PREFIX}/*"]}},
        },
        {
            "Sid": "Record",
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:PutObject"],
            "Resource": f"{bucket_arn}/{EVALUATION_PREFIX}/*",
        },
    )


def find_retained() -> str | None:
    """The bucket that a `destroy` of this stack kept. Raises ConfigError where there are several."""
    wanted: list[Any] = [{"key": key, "values": [value]} for key, value in (stack_tag() | retained_tag()).items()]
    found = aws.resourcegroupstaggingapi.get_resources(resource_type_filters=["s3"], tag_filters=wanted)
    buckets = [one.resource_arn.rpartition(":")[2] for one in found.resource_tag_mapping_lists or []]
    if len(buckets) > 1:
        raise ConfigError(
            [
                f"buckets {', '.join(sorted(buckets))} all have the tags of one that `destroy` kept for this stack "
                f"({', '.join(stack_tag() | retained_tag())}): take them off those whose adapters it shall not serve"
            ]
        )
    return buckets[0] if buckets else None


def _deny(
    sid: str, action: str | list[str], resource: list[str], condition: dict[str, Any] | None = None
) -> dict[str, Any]:
    statement = {"Sid": sid, "Effect": "Deny", "Principal": "*", "Action": action, "Resource": resource}
    return statement | ({"Condition": condition} if condition else {})


class AdapterBucket(pulumi.ComponentResource):
    """A versioned, encrypted, private bucket. `destroy` empties it only where it is neither protected nor retained."""

    def __init__(
        self,
        name: str,
        *,
        account: str,
        start_cache_writer: str,
        deletion_protection: bool,
        retain: bool,
        retained: str | None,
        evaluators: pulumi.Input[str] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """`retain`: `destroy` keeps it; `retained`: the bucket that one has kept, to be taken back.

        `evaluators`: a trust policy that lets pods, too, assume the evaluator's role. `start_cache_writer`: how the name of the one
        role begins that may write start caches.
        """
        super().__init__("loraserve:infra:AdapterBucket", name, None, opts)
        child = pulumi.ResourceOptions(parent=self, retain_on_delete=retain)
        self.bucket = aws.s3.Bucket(
            name,
            bucket=retained,
            force_destroy=not (deletion_protection or retain),
            tags=retained_tag() if retain else None,
            opts=pulumi.ResourceOptions(
                parent=self,
                protect=deletion_protection,
                retain_on_delete=retain,
                import_=retained,
                # Once it is known, its name stays; the state has it.
                ignore_changes=["bucket"],
            ),
        )
        bucket = self.bucket.id
        aws.s3.BucketVersioning(name, bucket=bucket, versioning_configuration={"status": "Enabled"}, opts=child)
        aws.s3.BucketServerSideEncryptionConfiguration(
            name,
            bucket=bucket,
            rules=[{"apply_server_side_encryption_by_default": {"sse_algorithm": "AES256"}}],
            opts=child,
        )
        aws.s3.BucketOwnershipControls(
            name, bucket=bucket, rule={"object_ownership": "BucketOwnerEnforced"}, opts=child
        )
        arn, own = self.bucket.arn, pulumi.ResourceOptions(parent=self)
        # Each for one command only.
        self.gc_role = iam.account_role(f"{name}-gc", account, arn, arn.apply(gc_policy), own)
        self.evaluator_role = iam.account_role(
            f"{name}-eval", account, arn, arn.apply(evaluator_policy), own, others=evaluators
        )
        private = aws.s3.BucketPublicAccessBlock(
            name,
            bucket=bucket,
            block_public_acls=True,
            block_public_policy=True,
            ignore_public_acls=True,
            restrict_public_buckets=True,
            opts=child,
        )
        aws.s3.BucketPolicy(
            name,
            bucket=bucket,
            policy=pulumi.Output.all(self.bucket.arn, self.gc_role.arn, self.evaluator_role.arn).apply(
                lambda arns: bucket_policy(
                    arns[0],
                    arns[1],
                    arns[2],
                    f"arn:{arns[0].split(':')[1]}:iam::{account}:role/{start_cache_writer}-*",
                )
            ),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[private], retain_on_delete=retain),
        )
        aws.s3.BucketLifecycleConfiguration(
            name,
            bucket=bucket,
            rules=[
                {
                    "id": "tidy",
                    "status": "Enabled",
                    "filter": {"prefix": ""},
                    "abort_incomplete_multipart_upload": {"days_after_initiation": FAILED_UPLOAD_DAYS},
                    "noncurrent_version_expiration": {"noncurrent_days": NONCURRENT_DAYS},
                },
                {
                    "id": "usage",
                    "status": "Enabled",
                    "filter": {"prefix": f"{USAGE_PREFIX}/"},
                    "expiration": {"days": USAGE_DAYS},
                },
                {
                    "id": "samples",
                    "status": "Enabled",
                    "filter": {"prefix": f"{SAMPLE_PREFIX}/"},
                    "expiration": {"days": SAMPLE_DAYS - 1},
                    # What expires in a versioned bucket is only hidden; a day later it is gone.
                    "noncurrent_version_expiration": {"noncurrent_days": 1},
                },
                {
                    "id": "checkpoints",
                    "status": "Enabled",
                    "filter": {"prefix": f"{TRAINING_PREFIX}/"},
                    "expiration": {"days": CHECKPOINT_DAYS},
                },
            ],
            opts=child,
        )
        self.register_outputs({"bucket": bucket})
