"""Fixtures of the tests of `loraserve`, as a pytest plugin that these tests name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import boto3
import pytest
from moto import mock_aws
from moto.s3.exceptions import NoSuchUpload
from moto.s3.models import MultipartDict

from loraserve.catalog.bucket import Bucket, _client
from tests.unit.adapters_and_vllm import BUCKET, FakeVllm


@pytest.fixture(scope="module")
def aws() -> Iterator[Any]:
    """A client of an S3 in memory."""
    with pytest.MonkeyPatch.context() as environment, mock_aws():
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.delenv("AWS_ENDPOINT_URL", raising=False)
        environment.setattr(MultipartDict, "__missing__", _no_such_upload, raising=False)
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield client


@pytest.fixture(scope="module")
def few_clients(aws: Any) -> Iterator[None]:
    """Commands share their clients of AWS: to make one takes a quarter of a second."""
    made: dict[Any, Any] = {}

    def client(*settings: Any, config: Any = None) -> Any:
        return made.get(settings) or made.setdefault(settings, _client(*settings, config=config))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loraserve.catalog.bucket._client", client)
        yield


def _no_such_upload(_: MultipartDict, upload: str) -> NoReturn:
    """moto fails with a KeyError here."""
    raise NoSuchUpload(upload)


@pytest.fixture
def s3(aws: Any) -> Any:
    """The same, with an empty BUCKET."""
    for item in aws.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        aws.delete_object(Bucket=BUCKET, Key=item["Key"])
    for upload in aws.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
        aws.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
    return aws


@pytest.fixture(scope="module")
def open_bucket(aws: Any) -> Bucket:
    return Bucket(BUCKET, pause_seconds=0)


@pytest.fixture
def bucket(s3: Any, open_bucket: Bucket) -> Bucket:
    """The empty BUCKET; it never pauses before a retry."""
    return open_bucket


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Files of some kilobytes are sent and fetched in parts, of this size."""
    size = 1 << 10
    monkeypatch.setattr("loraserve.catalog.files.PART_BYTES", size)
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", size)
    return size


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Where adapters are kept beside vLLM."""
    folder = tmp_path / "mnt"
    folder.mkdir()
    return folder


@pytest.fixture
def vllm() -> Iterator[FakeVllm]:
    fake = FakeVllm()
    yield fake
    fake.stop()
