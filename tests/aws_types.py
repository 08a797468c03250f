"""The AWS types that any stack of this project emits, and what the lists that speak of types leave out, with the reason."""

from __future__ import annotations

EKS_COMPONENT = {
    "eks:index:Cluster": 1,
    "aws:iam/role:Role": 1,
    "aws:iam/rolePolicyAttachment:RolePolicyAttachment": 1,
    "aws:eks/cluster:Cluster": 1,
    "aws:eks/addon:Addon": 2,
    "aws:eks/accessEntry:AccessEntry": 1,
    "aws:eks/accessPolicyAssociation:AccessPolicyAssociation": 1,
}
"""What `eks.Cluster` with one access entry registers, itself included."""

GOES_WITH_ITS_OBJECT = "sets something on another object: the next `up` sets it again, and it goes with that object"
NEVER_LEFT: dict[str, str] = dict.fromkeys(
    (
        "aws:autoscaling/attachment:Attachment",
        "aws:autoscaling/tag:Tag",
        "aws:ecr/lifecyclePolicy:LifecyclePolicy",
        "aws:eks/accessPolicyAssociation:AccessPolicyAssociation",
        "aws:iam/rolePolicyAttachment:RolePolicyAttachment",
        "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration",
        "aws:s3/bucketOwnershipControls:BucketOwnershipControls",
        "aws:s3/bucketPolicy:BucketPolicy",
        "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock",
        "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration",
        "aws:s3/bucketVersioning:BucketVersioning",
    ),
    GOES_WITH_ITS_OBJECT,
)
NEVER_LEFT["aws:budgets/budget:Budget"] = (
    "costs nothing, and only writes e-mail; the next `up` makes one of another name"
)
"""Types that `loraserve leftovers` does not look for."""

FOUND_ELSEWHERE = {
    "aws:eks/addon:Addon": "moto alone has no add-ons: test_leftovers.py with a stub, test_interrupted.py with moto's gaps",
    "aws:eks/accessEntry:AccessEntry": "as the add-ons",
}
"""Types that the finder knows, and of which no example can be made in moto alone."""
