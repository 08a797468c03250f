"""aws:s3: the bucket, and its settings as resources of their own (pulumi-aws 7)."""

from __future__ import annotations

from typing import Any, ClassVar

from local.stand_ins.aws.resource import AwsError, AwsResource
from local.stand_ins.aws.shapes import camel, pascal, pick, tag_list, tag_map
from local.stand_ins.provider import Properties

_HOSTED_ZONE_OF_US_EAST_1 = "Z3AQBSTGFYJSTF"


class Bucket(AwsResource):
    token = "aws:s3/bucket:Bucket"
    service = "s3"
    taggable = True
    optional = frozenset({"bucket", "forceDestroy"})
    mutable = frozenset({"forceDestroy"})
    name_property = "bucket"

    def check(self, name: str, news: Properties, olds: Properties, seed: bytes) -> Properties:
        return {"forceDestroy": False} | super().check(name.lower(), news, olds, seed)

    def make(self, inputs: Properties) -> str:
        region = self.account.region
        where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        self.api.create_bucket(Bucket=inputs["bucket"], **where)
        if inputs["tagsAll"]:
            self._put_tags(inputs["bucket"], inputs["tagsAll"])
        return inputs["bucket"]

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        self.api.head_bucket(Bucket=resource_id)
        return {
            "arn": f"arn:{self.account.partition}:s3:::{resource_id}",
            "bucket": resource_id,
            "bucketDomainName": f"{resource_id}.s3.amazonaws.com",
            "bucketRegion": self.account.region,
            "bucketRegionalDomainName": f"{resource_id}.s3.{self.account.region}.amazonaws.com",
            "hostedZoneId": _HOSTED_ZONE_OF_US_EAST_1,
            "tagsAll": self._tags(resource_id),
        }

    def retag(self, resource_id: str, outputs: Properties, added: dict[str, str], removed: list[str]) -> None:
        kept = {key: value for key, value in self._tags(resource_id).items() if key not in removed}
        self._put_tags(resource_id, kept | added)

    def remove(self, resource_id: str, inputs: Properties) -> None:
        if inputs.get("forceDestroy"):
            self._empty(resource_id)
        self.api.delete_bucket(Bucket=resource_id)

    def _tags(self, bucket: str) -> dict[str, str]:
        from botocore.exceptions import ClientError

        try:
            return tag_map(self.api.get_bucket_tagging(Bucket=bucket)["TagSet"])
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchTagSet":
                return {}
            raise

    def _put_tags(self, bucket: str, tags: dict[str, str]) -> None:
        self.api.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": tag_list(tags)})

    def _empty(self, bucket: str) -> None:
        for page in self.api.get_paginator("list_object_versions").paginate(Bucket=bucket):
            found = page.get("Versions", []) + page.get("DeleteMarkers", [])
            objects = [{"Key": item["Key"], "VersionId": item["VersionId"]} for item in found]
            if objects:
                answer = self.api.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
                for refused in answer.get("Errors", []):
                    raise AwsError(f"delete {self.token}: {refused['Key']}: AWS answered {refused['Code']}")


class _BucketSetting(AwsResource):
    """One setting of a bucket: put as a whole, read as a whole, deleted or put back to its default."""

    service = "s3"
    setting: ClassVar[str]
    """The setting's name in boto3's `put_bucket_<setting>` and its siblings."""
    deletion: ClassVar[str]
    """The name in `delete_bucket_<deletion>`."""

    def __init_subclass__(cls) -> None:
        cls.mutable = (cls.required | cls.optional) - {"bucket"}
        super().__init_subclass__()

    def put(self, inputs: Properties) -> dict[str, Any]:
        """The arguments of the put call beside the bucket."""
        raise NotImplementedError(self.token)

    def seen(self, answer: dict[str, Any]) -> Properties | None:
        """The answer of the get call as properties; None where the setting is not made."""
        raise NotImplementedError(self.token)

    def make(self, inputs: Properties) -> str:
        getattr(self.api, f"put_{self.setting}")(Bucket=inputs["bucket"], **self.put(inputs))
        return inputs["bucket"]

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.seen(getattr(self.api, f"get_{self.setting}")(Bucket=resource_id))
        return found and found | {"bucket": resource_id}

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        self.make(news)

    def remove(self, resource_id: str, inputs: Properties) -> None:
        getattr(self.api, f"delete_{self.deletion}")(Bucket=resource_id)


class BucketVersioning(_BucketSetting):
    token = "aws:s3/bucketVersioning:BucketVersioning"
    setting = "bucket_versioning"
    required = frozenset({"bucket", "versioningConfiguration"})

    def put(self, inputs: Properties) -> dict[str, Any]:
        return pascal(pick(inputs, "versioningConfiguration"))

    def seen(self, answer: dict[str, Any]) -> Properties | None:
        return {"versioningConfiguration": {"status": answer["Status"]}} if "Status" in answer else None

    def remove(self, resource_id: str, inputs: Properties) -> None:
        """A bucket that was versioned once can only be suspended."""
        self.api.put_bucket_versioning(Bucket=resource_id, VersioningConfiguration={"Status": "Suspended"})


class BucketServerSideEncryptionConfiguration(_BucketSetting):
    token = "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration"
    setting = deletion = "bucket_encryption"
    required = frozenset({"bucket", "rules"})

    def put(self, inputs: Properties) -> dict[str, Any]:
        return {"ServerSideEncryptionConfiguration": {"Rules": pascal(inputs["rules"])}}

    def seen(self, answer: dict[str, Any]) -> Properties | None:
        return {"rules": camel(answer["ServerSideEncryptionConfiguration"]["Rules"])}


class BucketPublicAccessBlock(_BucketSetting):
    token = "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock"
    setting = deletion = "public_access_block"
    required = frozenset({"bucket"})
    optional = frozenset({"blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets"})

    def put(self, inputs: Properties) -> dict[str, Any]:
        return {"PublicAccessBlockConfiguration": pascal(pick(inputs, *self.optional))}

    def seen(self, answer: dict[str, Any]) -> Properties | None:
        return camel(answer["PublicAccessBlockConfiguration"])


class BucketOwnershipControls(_BucketSetting):
    token = "aws:s3/bucketOwnershipControls:BucketOwnershipControls"
    setting = deletion = "bucket_ownership_controls"
    required = frozenset({"bucket", "rule"})

    def put(self, inputs: Properties) -> dict[str, Any]:
        return {"OwnershipControls": {"Rules": [pascal(inputs["rule"])]}}

    def seen(self, answer: dict[str, Any]) -> Properties | None:
        return {"rule": camel(answer["OwnershipControls"]["Rules"][0])}


class BucketPolicy(_BucketSetting):
    token = "aws:s3/bucketPolicy:BucketPolicy"
    setting = deletion = "bucket_policy"
    required = frozenset({"bucket", "policy"})

    def put(self, inputs: Properties) -> dict[str, Any]:
        return {"Policy": inputs["policy"]}

    def seen(self, answer: dict[str, Any]) -> Properties | None:
        return {"policy": answer["Policy"]}


class BucketLifecycleConfiguration(_BucketSetting):
    token = "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration"
    setting = "bucket_lifecycle_configuration"
    deletion = "bucket_lifecycle"
    required = frozenset({"bucket", "rules"})

    def put(self, inputs: Properties) -> dict[str, Any]:
        rules = [{"filter": {"prefix": ""}} | rule for rule in inputs["rules"]]
        return {"LifecycleConfiguration": {"Rules": pascal(rules)}}

    def seen(self, answer: dict[str, Any]) -> Properties | None:
        return {"rules": camel(answer["Rules"])}
