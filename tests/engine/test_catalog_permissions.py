"""The program's own policies, enforced: who may do what to the bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from infra.adapter_bucket import bucket_policy, evaluator_policy, gc_policy
from infra.iam import account_trust, read_prefixes, service_account_trust
from infra.names import CATALOG_PREFIXES, START_CACHE_PREFIX
from infra.roles import publisher_policy
from infra.start_cache import writer_policy
from local.engine.cloud import ACCOUNT_ID, Cloud
from loraserve.catalog import adapters, lineage, start_cache
from loraserve.catalog.bucket import Bucket, CatalogUnavailable, VersionExists
from loraserve.catalog.listing import find, verify
from loraserve.catalog.versions import VersionId
from loraserve.contract.desired_state import Adapter
from tests.unit.adapters_and_vllm import write_adapter

BUCKET = "permissions"
BUCKET_ARN = f"arn:aws:s3:::{BUCKET}"
WEIGHTS = "llm-models/rag-qa/v1/adapter_model.safetensors"
ISSUER = "oidc.eks.us-east-1.amazonaws.com/id/A"


@pytest.fixture(scope="module")
def roles(cloud: Cloud) -> dict[str, str]:
    """The ARNs of the pod's, the clean-up and the pipeline's role, beside a bucket as the program makes it."""
    s3, iam = cloud.client("s3"), cloud.client("iam")
    provider = f"arn:aws:iam::{ACCOUNT_ID}:oidc-provider/{ISSUER}"
    granted = {
        "pod": (
            service_account_trust(provider, ISSUER, "ml-models", "workflow-sa"),
            read_prefixes(BUCKET_ARN, (*CATALOG_PREFIXES, START_CACHE_PREFIX)),
        ),
        "gc": (account_trust(ACCOUNT_ID, "aws"), gc_policy(BUCKET_ARN)),
        "evaluator": (account_trust(ACCOUNT_ID, "aws"), evaluator_policy(BUCKET_ARN)),
        "publisher": (account_trust(ACCOUNT_ID, "aws"), publisher_policy(BUCKET_ARN)),
        "start-cache-1": (
            service_account_trust(provider, ISSUER, "ml-models", "start-cache-writer"),
            writer_policy(BUCKET_ARN),
        ),
    }
    arns = {}
    for name, (trust, policy) in granted.items():
        arns[name] = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
        iam.put_role_policy(RoleName=name, PolicyName=name, PolicyDocument=policy)
    s3.create_bucket(Bucket=BUCKET)
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket=BUCKET, Key="elsewhere/file", Body=b"x")
    writers = arns["start-cache-1"].removesuffix("1") + "*"
    s3.put_bucket_policy(Bucket=BUCKET, Policy=bucket_policy(BUCKET_ARN, arns["gc"], arns["evaluator"], writers))
    return arns


@pytest.fixture(scope="module")
def adapter(cloud: Cloud, roles: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapter]:
    """Published by the administrator, weights in several parts; from then on every call is judged."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in cloud.environment.items():
            patch.setenv(key, value)
        patch.setattr("loraserve.catalog.files.PART_BYTES", 5 << 20)
        folder = write_adapter(tmp_path_factory.mktemp("peft"), rank=64, shapes=_large_shapes())
        cloud.enforce_iam()
        yield adapters.publish(Bucket(BUCKET), folder, "rag-qa", "v1")
        cloud.enforce_iam(False)


def _large_shapes() -> dict[str, list[int]]:
    """Six megabytes."""
    shapes = {}
    for module in ("q_proj", "k_proj", "v_proj", "o_proj"):
        layer = f"base_model.model.model.layers.0.self_attn.{module}"
        shapes |= {f"{layer}.lora_A.weight": [64, 3000], f"{layer}.lora_B.weight": [3000, 64]}
    return shapes


@pytest.fixture
def pod(cloud: Cloud, roles: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """An S3 client with the pod's credentials, which the environment then holds too."""
    return _as_a_pod(cloud, roles["pod"], monkeypatch)


def _as_a_pod(cloud: Cloud, role: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    given = cloud.client("sts").assume_role_with_web_identity(
        RoleArn=role, RoleSessionName="pod", WebIdentityToken="token"
    )["Credentials"]
    credentials = {
        "aws_access_key_id": given["AccessKeyId"],
        "aws_secret_access_key": given["SecretAccessKey"],
        "aws_session_token": given["SessionToken"],
    }
    for name, value in credentials.items():
        monkeypatch.setenv(name.upper(), value)
    return cloud.client("s3", **credentials)


def refused(call: Callable[[], Any]) -> bool:
    with pytest.raises(ClientError) as error:
        call()
    return error.value.response["Error"]["Code"] in ("403", "AccessDenied")


def test_the_pod_reads_what_was_published(adapter: Adapter, pod: Any, tmp_path: Path) -> None:
    assert adapters.fetch(Bucket(BUCKET), adapter, tmp_path).is_dir()
    assert pod.list_objects_v2(Bucket=BUCKET, Prefix="llm-models/")["KeyCount"] == 3


def test_the_pod_does_nothing_else(adapter: Adapter, pod: Any) -> None:
    here = {"Bucket": BUCKET, "Key": "llm-models/rag-qa/v2/adapter_config.json"}
    assert refused(lambda: pod.get_object(Bucket=BUCKET, Key="elsewhere/file"))
    assert refused(lambda: pod.put_object(**here, Body=b"x", IfNoneMatch="*"))
    assert refused(lambda: pod.create_multipart_upload(**here))
    assert refused(lambda: pod.delete_object(Bucket=BUCKET, Key=WEIGHTS))
    assert refused(lambda: pod.get_bucket_policy(Bucket=BUCKET))
    assert refused(lambda: pod.list_buckets())


def test_the_start_cache_writer_adds_start_caches_and_the_pod_reads_them(
    cloud: Cloud, adapter: Adapter, roles: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = tmp_path / "writer/vllm/torch_compile_cache/torch_aot_compile/k1"
    compiled.mkdir(parents=True)
    (compiled / "model").write_bytes(b"x" * 100)
    writer = _as_a_pod(cloud, roles["start-cache-1"], monkeypatch)
    wanted = start_cache.publish(Bucket(BUCKET), tmp_path / "writer", "v1")
    key = "start-caches/vllm/v1/start-cache.tar"
    for forbidden in (
        lambda: writer.put_object(Bucket=BUCKET, Key=key, Body=b"poison"),
        lambda: writer.put_object(Bucket=BUCKET, Key="llm-models/rag-qa/v2/x", Body=b"x", IfNoneMatch="*"),
        lambda: writer.get_object(Bucket=BUCKET, Key="elsewhere/file"),
    ):
        assert refused(forbidden)
    pod = _as_a_pod(cloud, roles["pod"], monkeypatch)
    assert refused(lambda: pod.put_object(Bucket=BUCKET, Key="start-caches/vllm/v2/x", Body=b"x", IfNoneMatch="*"))
    (tmp_path / "cache").mkdir()
    start_cache.fetch(Bucket(BUCKET), wanted, tmp_path / "cache")
    assert start_cache.compiled(tmp_path / "cache") == ["k1"]


def test_a_publisher_publishes_and_does_nothing_else(
    cloud: Cloud, adapter: Adapter, roles: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = cloud.client("sts").assume_role(RoleArn=roles["publisher"], RoleSessionName="publisher")["Credentials"]
    names = {"AccessKeyId": "AWS_ACCESS_KEY_ID", "SecretAccessKey": "AWS_SECRET_ACCESS_KEY"}
    for name, variable in (names | {"SessionToken": "AWS_SESSION_TOKEN"}).items():
        monkeypatch.setenv(variable, given[name])
    bucket, s3 = Bucket(BUCKET), boto3.client("s3")
    folder = write_adapter(tmp_path, rank=64, shapes=_large_shapes())

    entry = adapters.publish(bucket, folder, "rag-qa", "by-publisher")
    lineage.published(bucket, VersionId.of_adapter(entry), entry.digest, lineage.Origin())

    verify(bucket, find(bucket, "rag-qa", "by-publisher"), lambda *_: None)
    there = {"Bucket": BUCKET, "Key": WEIGHTS}
    for forbidden in (
        lambda: s3.put_object(Bucket=BUCKET, Key="base-models/acme/tiny/v1/config.json", Body=b"{}", IfNoneMatch="*"),
        lambda: s3.put_object(Bucket=BUCKET, Key="elsewhere/mine", Body=b"{}", IfNoneMatch="*"),
        lambda: s3.put_object(**there, Body=b"x"),
        lambda: s3.delete_object(**there),
        lambda: s3.get_object(Bucket=BUCKET, Key="elsewhere/file"),
        lambda: s3.delete_bucket_policy(Bucket=BUCKET),
        lambda: boto3.client("iam").list_roles(),
    ):
        assert refused(forbidden)


def test_not_even_an_administrator_overwrites_or_deletes(cloud: Cloud, adapter: Adapter) -> None:
    s3 = cloud.client("s3")
    version = s3.head_object(Bucket=BUCKET, Key=WEIGHTS)["VersionId"]
    assert refused(lambda: s3.put_object(Bucket=BUCKET, Key=WEIGHTS, Body=b"x"))
    assert refused(lambda: s3.delete_object(Bucket=BUCKET, Key=WEIGHTS))
    assert refused(lambda: s3.delete_object(Bucket=BUCKET, Key=WEIGHTS, VersionId=version))
    assert refused(lambda: s3.put_object(Bucket=BUCKET, Key="start-caches/vllm/v1/x", Body=b"code", IfNoneMatch="*"))
    verify(Bucket(BUCKET), find(Bucket(BUCKET), "rag-qa", "v1"), lambda *_: None)


def test_the_clean_up_role_hides_a_version_and_its_bytes_stay(
    cloud: Cloud, adapter: Adapter, roles: dict[str, str]
) -> None:
    s3, tidy = cloud.client("s3"), Bucket(BUCKET, role=roles["gc"])
    version = s3.head_object(Bucket=BUCKET, Key=WEIGHTS)["VersionId"]
    assert refused(lambda: tidy._s3.delete_object(Bucket=BUCKET, Key=WEIGHTS, VersionId=version))
    assert refused(lambda: tidy._s3.get_object(Bucket=BUCKET, Key=WEIGHTS))

    tidy.delete(WEIGHTS)

    assert not Bucket(BUCKET).exists(WEIGHTS)
    assert s3.get_object(Bucket=BUCKET, Key=WEIGHTS, VersionId=version)["ContentLength"] > 5 << 20


def test_only_the_pipelines_role_adds_verdicts_and_it_changes_none(
    cloud: Cloud, adapter: Adapter, roles: dict[str, str], pod: Any
) -> None:
    key = "evaluations/rag-qa/v1/0.json"
    with pytest.raises(
        CatalogUnavailable, match="cannot be assumed"
    ):  # by the pod, whose credentials stand in the environment
        Bucket(BUCKET, role=roles["evaluator"])
    cloud.enforce_iam(False)
    publisher, pipeline = cloud.client("s3"), Bucket(BUCKET, role=roles["evaluator"])
    cloud.enforce_iam()
    for other in (publisher, pod):
        assert refused(lambda other=other: other.put_object(Bucket=BUCKET, Key=key, Body=b"{}", IfNoneMatch="*"))

    pipeline.create(key, b"a verdict")

    assert publisher.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"a verdict"
    assert [item["Key"] for item in pipeline.objects("evaluations/rag-qa/v1/")] == [key]
    with pytest.raises(VersionExists):
        pipeline.create(key, b"another")
    assert refused(lambda: pipeline._s3.put_object(Bucket=BUCKET, Key=key, Body=b"another"))
    assert refused(lambda: pipeline._s3.delete_object(Bucket=BUCKET, Key=key))
    assert refused(lambda: pipeline._s3.get_object(Bucket=BUCKET, Key=WEIGHTS))
    assert refused(
        lambda: pipeline._s3.put_object(Bucket=BUCKET, Key="llm-models/rag-qa/v2/x", Body=b"x", IfNoneMatch="*")
    )
