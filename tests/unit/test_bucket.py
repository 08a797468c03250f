"""Objects in parts: created once, taken up again after a kill at any point, verified part by part."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loraserve.catalog.bucket import Bucket, CatalogUnavailable, DigestMismatch, VersionExists
from loraserve.catalog.files import FileEntry
from tests.unit.adapters_and_vllm import BUCKET
from tests.unit.s3_requests import Killed, kill_after, on_each_request, once, recording

pytest_plugins = ["tests.unit.catalog_fixtures"]
pytestmark = pytest.mark.usefixtures("small_parts")

KEY = "base-models/m/v1/model.safetensors"
CONTENT = bytes(range(256)) * 21  # five whole parts and a quarter


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def target(disk: Path) -> Path:
    return disk / "model.safetensors"


def upload(bucket: Bucket, source: Path) -> FileEntry:
    entry = FileEntry.read(source)
    bucket.upload(KEY, source, entry, lambda *_: None)
    return entry


def stored(s3: Any) -> bytes:
    return s3.get_object(Bucket=BUCKET, Key=KEY)["Body"].read()


def test_a_file_of_several_parts_comes_back_as_it_was(bucket: Bucket, s3: Any, source: Path, target: Path) -> None:
    entry = upload(bucket, source)

    bucket.download(KEY, entry, target)

    assert len(entry.parts) == 6
    assert target.read_bytes() == stored(s3) == CONTENT


def test_s3_vouches_for_the_checksum_we_computed(bucket: Bucket, s3: Any, source: Path) -> None:
    entry = upload(bucket, source)
    head = s3.head_object(Bucket=BUCKET, Key=KEY, ChecksumMode="ENABLED")
    assert head["ChecksumSHA256"] == entry.checksum


def test_an_upload_killed_at_any_request_is_taken_up_again(bucket: Bucket, s3: Any, source: Path) -> None:
    kills = 0
    for requests in itertools.count():
        s3.delete_object(Bucket=BUCKET, Key=KEY)
        try:
            with on_each_request(bucket, kill_after(requests)):
                upload(bucket, source)
        except Killed:
            kills += 1
            assert stored_size(s3) in (None, len(CONTENT)), "half an object is visible"
        else:
            break
        upload(bucket, source)
        assert stored(s3) == CONTENT
    assert kills > 8
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=BUCKET), "parts are left to pay for"


def stored_size(s3: Any) -> int | None:
    sizes = {item["Key"]: item["Size"] for item in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])}
    return sizes.get(KEY)


def test_parts_that_are_there_are_not_sent_again(bucket: Bucket, source: Path) -> None:
    entry = FileEntry.read(source)
    with (
        recording(bucket, "UploadPart") as sent,
        on_each_request(bucket, complain, "CompleteMultipartUpload"),
        pytest.raises(Killed),
    ):
        upload(bucket, source)
    assert len(sent) == len(entry.parts)
    with recording(bucket, "UploadPart") as sent_again:
        upload(bucket, source)
    assert sent_again == []


def complain(_: str) -> None:
    raise Killed


def test_an_interrupted_upload_of_other_bytes_is_not_mixed_with(
    bucket: Bucket, s3: Any, source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(CONTENT[:2000] + CONTENT[::-1])
    with on_each_request(bucket, complain, "CompleteMultipartUpload"), pytest.raises(Killed):
        upload(bucket, other)

    upload(bucket, source)

    assert stored(s3) == CONTENT


@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
def test_two_publishers_of_the_same_bytes_both_succeed(bucket: Bucket, s3: Any, source: Path, operation: str) -> None:
    with on_each_request(bucket, once(lambda: upload(Bucket(BUCKET, pause_seconds=0), source)), operation):
        upload(bucket, source)
    assert stored(s3) == CONTENT


@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
def test_of_two_publishers_of_other_bytes_one_is_told_that_it_lost(
    bucket: Bucket, s3: Any, source: Path, tmp_path: Path, operation: str
) -> None:
    other = tmp_path / "other"
    other.write_bytes(CONTENT[::-1])

    with (
        on_each_request(bucket, once(lambda: upload(Bucket(BUCKET, pause_seconds=0), other)), operation),
        pytest.raises(VersionExists, match="publish as a new version"),
    ):
        upload(bucket, source)
    assert stored(s3) == CONTENT[::-1]


def test_a_killed_download_goes_on_with_the_parts_that_are_there(bucket: Bucket, source: Path, target: Path) -> None:
    entry = upload(bucket, source)
    with on_each_request(bucket, kill_after(3)), pytest.raises(Killed):
        bucket.download(KEY, entry, target)

    with recording(bucket, "GetObject") as fetched:
        bucket.download(KEY, entry, target)

    assert target.read_bytes() == CONTENT
    assert len(fetched) == len(entry.parts) - 3


def test_a_part_that_rotted_on_the_disk_is_fetched_again(bucket: Bucket, source: Path, target: Path) -> None:
    entry = upload(bucket, source)
    target.write_bytes(b"\0" * 100 + CONTENT[100:])

    with recording(bucket, "GetObject") as fetched:
        bucket.download(KEY, entry, target)

    assert target.read_bytes() == CONTENT
    assert len(fetched) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content[:3000] + b"\xff" + content[3001:], "other bytes than were published"),
        (lambda content: content[:3000], "less than was published"),
        (lambda content: b"", "less than was published"),
        (lambda content: content + b"\xff", "more than was published"),
    ],
    ids=["corrupt", "truncated", "empty", "longer"],
)
def test_an_object_that_changed_is_refused(
    bucket: Bucket, s3: Any, source: Path, target: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    entry = upload(bucket, source)
    s3.put_object(Bucket=BUCKET, Key=KEY, Body=change(CONTENT))

    with pytest.raises(DigestMismatch, match=reason):
        bucket.download(KEY, entry, target)


def test_progress_reaches_the_end_both_ways(bucket: Bucket, source: Path, target: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    entry = FileEntry.read(source)

    bucket.upload(KEY, source, entry, lambda *told: seen.append(told))
    bucket.download(KEY, entry, target, lambda *told: seen.append(told))

    size = len(CONTENT)
    doings = [f"uploading {source.name}", f"downloading {target.name}"]
    assert [told for told in seen if told[1] == size] == [(doing, size, size) for doing in doings]
    assert all(0 < done <= total == size for _, done, total in seen)


def test_a_bucket_that_is_not_there_is_named(s3: Any, source: Path) -> None:
    with pytest.raises(CatalogUnavailable, match="no such bucket"):
        upload(Bucket("no-such-bucket", pause_seconds=0), source)
