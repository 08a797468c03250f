"""Objects in parts: created once, taken up again after a kill at any point, verified part by part."""

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.client import BaseClient

from loraserve.catalog.bucket import (
    ATTEMPTS,
    STALL_BYTES,
    STALL_SECONDS,
    Bucket,
    CatalogUnavailable,
    DigestMismatch,
    Stopped,
    TransferStalled,
    VersionExists,
)
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


class Drops(io.BytesIO):
    """A body whose bytes come one by one, with a pause before each."""

    def __init__(self, content: bytes, clock: list[float], pause: float) -> None:
        super().__init__(content)
        self._clock = clock
        self._pause = pause

    def read1(self, size: int | None = -1, /) -> bytes:
        self._clock[0] += self._pause
        return self.read(1)


@pytest.fixture
def drops(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every answer's bytes come so many seconds apart (an item that may be changed)."""

    def make_api_call(client: Any, operation: str, parameters: Any) -> Any:
        answer = call(client, operation, parameters)
        if operation == "GetObject" and pause:
            answer["Body"]._raw_stream = Drops(answer["Body"].read(), clock, pause[0])
        return answer

    clock, pause = [0.0], [0.0]
    call = BaseClient._make_api_call  # type: ignore[attr-defined]
    monkeypatch.setattr(BaseClient, "_make_api_call", make_api_call)
    standing = SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda seconds: None)
    monkeypatch.setattr("loraserve.catalog.bucket.time", standing)
    return pause


def test_bytes_that_come_too_slowly_are_asked_for_anew_and_then_given_up(
    bucket: Bucket, s3: Any, source: Path, target: Path, drops: list[float]
) -> None:
    entry = upload(bucket, source)
    drops[0] = STALL_SECONDS
    with (
        recording(bucket, "GetObject") as asked,
        pytest.raises(TransferStalled, match=f"S3 sends fewer than {STALL_BYTES} bytes in 30 s"),
    ):
        bucket.read(KEY, len(CONTENT))
    assert len(asked) == ATTEMPTS

    drops[0] = STALL_SECONDS / STALL_BYTES
    bucket.download(KEY, entry, target)
    assert target.read_bytes() == CONTENT, "slow is not too slow"


def test_a_transfer_that_nobody_wants_any_more_ends(
    bucket: Bucket, s3: Any, source: Path, target: Path, drops: list[float]
) -> None:
    entry, looks = upload(bucket, source), itertools.count()
    with recording(bucket, "GetObject") as asked, pytest.raises(Stopped):
        bucket.until(lambda: next(looks) > 10).download(KEY, entry, target)
    assert len(asked) < 10
    bucket.download(KEY, entry, target)


def test_an_answer_that_ends_early_is_asked_for_again(
    bucket: Bucket, s3: Any, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(bucket, source)
    cut = [True]

    def make_api_call(client: Any, operation: str, parameters: Any) -> Any:
        answer = call(client, operation, parameters)
        if operation == "GetObject" and cut:
            answer["Body"]._raw_stream = io.BytesIO(answer["Body"].read()[: -cut.pop()])
        return answer

    call = BaseClient._make_api_call  # type: ignore[attr-defined]
    monkeypatch.setattr(BaseClient, "_make_api_call", make_api_call)
    assert bucket.read(KEY, len(CONTENT)) == CONTENT


def test_a_role_is_assumed_where_its_profile_says(aws: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(
        "[profile prod]\naws_access_key_id = test\naws_secret_access_key = test\nservices = there\n"
        "[services there]\ns3 =\n  endpoint_url = https://s3.there.example.com\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    role = "arn:aws:iam::123456789012:role/evaluator"
    one, other = (Bucket(BUCKET, profile="prod", role=each) for each in (None, role))
    assert {vars(bucket)["_s3"].meta.endpoint_url for bucket in (one, other)} == {"https://s3.there.example.com"}
    assert other.principal().startswith("arn:aws:sts::123456789012:assumed-role/evaluator/")
