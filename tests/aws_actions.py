"""IAM's words for what an AWS SDK calls: the Service Authorization Reference, where an action is not called as its operation."""

from __future__ import annotations

_PREFIXES = {
    "elbv2": "elasticloadbalancing",
    "resourcegroupstaggingapi": "tag",
    "s3control": "s3",
    "service-quotas": "servicequotas",
}
"""Of an action, where the SDK calls the service otherwise."""
_CALLED_OTHERWISE: dict[tuple[str, str], tuple[str, ...]] = {
    ("budgets", "CreateBudget"): ("ModifyBudget",),
    ("budgets", "DeleteBudget"): ("ModifyBudget",),
    ("budgets", "DescribeBudget"): ("ViewBudget",),
    ("budgets", "UpdateBudget"): ("ModifyBudget",),
    ("s3", "DeleteObject"): ("DeleteObject", "DeleteObjectVersion"),
    ("s3", "DeleteObjects"): ("DeleteObject", "DeleteObjectVersion"),
    ("s3", "GetBucketAccelerateConfiguration"): ("GetAccelerateConfiguration",),
    ("s3", "GetBucketCors"): ("GetBucketCORS",),
    ("s3", "GetBucketEncryption"): ("GetEncryptionConfiguration",),
    ("s3", "GetBucketLifecycleConfiguration"): ("GetLifecycleConfiguration",),
    ("s3", "GetBucketReplication"): ("GetReplicationConfiguration",),
    ("s3", "GetObjectLockConfiguration"): ("GetBucketObjectLockConfiguration",),
    ("s3", "GetPublicAccessBlock"): ("GetBucketPublicAccessBlock",),
    ("s3", "HeadBucket"): ("ListBucket",),
    ("s3", "ListObjectVersions"): ("ListBucketVersions",),
    ("s3", "PutBucketEncryption"): ("PutEncryptionConfiguration",),
    ("s3", "PutBucketLifecycleConfiguration"): ("PutLifecycleConfiguration",),
    ("s3", "DeletePublicAccessBlock"): ("PutBucketPublicAccessBlock",),
    ("s3", "DeleteBucketEncryption"): ("PutEncryptionConfiguration",),
    ("s3", "DeleteBucketLifecycle"): ("PutLifecycleConfiguration",),
    ("s3", "DeleteBucketOwnershipControls"): ("PutBucketOwnershipControls",),
    ("s3", "DeleteBucketTagging"): ("PutBucketTagging",),
    ("s3", "PutPublicAccessBlock"): ("PutBucketPublicAccessBlock",),
}


def actions_of(service: str, operation: str) -> set[str]:
    """What a caller must be allowed for one operation, both as botocore calls them."""
    prefix = _PREFIXES.get(service, service)
    return {f"{prefix}:{name}" for name in _CALLED_OTHERWISE.get((service, operation), (operation,))}
