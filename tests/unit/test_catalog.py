import hashlib
import itertools
import json
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from loraserve.catalog import adapters
from loraserve.catalog.adapters import remove_partial_downloads
from loraserve.catalog.bucket import ATTEMPTS, Bucket, CatalogUnavailable, DigestMismatch, ObjectMissing, VersionExists
from loraserve.catalog.gate import UnsafeAdapter
from loraserve.contract.base_model import LoraShape
from loraserve.contract.desired_state import Adapter, InvalidDesiredState
from tests.unit.adapters_and_vllm import BASE, BUCKET, QKVO, write_adapter
from tests.unit.s3_requests import Killed, kill_after, on_each_request, once

pytest_plugins = ["tests.unit.catalog_fixtures"]

PREFIX = "llm-models/rag-qa/v1/"
WEIGHTS = PREFIX + "adapter_model.safetensors"


@pytest.fixture
def peft_folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "peft")


@pytest.fixture
def published(bucket: Bucket, peft_folder: Path) -> Adapter:
    return adapters.publish(bucket, peft_folder, "rag-qa", "v1")


def keys(s3: Any) -> list[str]:
    return [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def replace(s3: Any, key: str, change: Callable[[bytes], bytes]) -> bytes:
    """Overwrites an object, as the bucket's policy forbids; returns its new bytes."""
    content = change(s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    s3.put_object(Bucket=BUCKET, Key=key, Body=content)
    return content


def pin_manifest(s3: Any, adapter: Adapter, **changes: object) -> Adapter:
    """Publishes a changed manifest and the entry that pins it: what a forged or older publisher could do."""
    manifest = replace(s3, PREFIX + "manifest.json", lambda old: json.dumps({**json.loads(old), **changes}).encode())
    return adapter.model_copy(update={"digest": f"sha256:{hashlib.sha256(manifest).hexdigest()}"})


@contextmanager
def failing_downloads(bucket: Bucket, failures: int, status: int = 503) -> Iterator[list[str]]:
    """Answers the first downloads with `status`; yields the list of all URLs asked for, which grows."""
    left = iter(range(failures))

    def answer(url: str) -> AWSResponse | None:
        return None if next(left, None) is None else AWSResponse(url, status, {}, NoBody())

    with on_each_request(bucket, answer, "GetObject") as urls:
        yield urls


class NoBody:
    def stream(self, **_: object) -> list[bytes]:
        return []


def test_what_was_published_is_fetched(bucket: Bucket, published: Adapter, peft_folder: Path, disk: Path) -> None:
    folder = adapters.fetch(bucket, published, disk)

    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (folder / file).read_bytes() == (peft_folder / file).read_bytes()
    assert list(disk.iterdir()) == [folder], "nothing but the adapter stays on the disk"
    assert stat.S_IMODE(folder.stat().st_mode) & 0o055 == 0o055, "vLLM runs as another user"


def test_the_entry_tells_what_the_capacity_arithmetic_needs(published: Adapter, peft_folder: Path) -> None:
    assert (published.name, published.model, published.version) == ("rag-qa", "rag-qa", "v1")
    assert (published.rank, published.target_modules) == (8, ("k_proj", "o_proj", "q_proj", "v_proj"))
    assert published.size_bytes == sum(file.stat().st_size for file in peft_folder.iterdir())


def test_the_manifest_holds_the_digest_of_every_file(s3: Any, published: Adapter, peft_folder: Path) -> None:
    content = s3.get_object(Bucket=BUCKET, Key=PREFIX + "manifest.json")["Body"].read()
    manifest = json.loads(content)

    assert published.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert manifest["files"] == {
        file.name: {"parts": [hashlib.sha256(file.read_bytes()).hexdigest()], "size": file.stat().st_size}
        for file in peft_folder.iterdir()
    }
    assert manifest["baseModel"] == "mistralai/Mistral-7B-v0.1"
    assert (manifest["alpha"], manifest["dtypes"]) == (16, ["F32"])


def test_a_version_is_published_only_once(
    bucket: Bucket, published: Adapter, tmp_path: Path, disk: Path, peft_folder: Path
) -> None:
    other = write_adapter(tmp_path / "other", fill=b"\x02")

    with pytest.raises(VersionExists, match="publish as a new version"):
        adapters.publish(bucket, other, "rag-qa", "v1")
    assert adapters.publish(bucket, peft_folder, "rag-qa", "v1") == published, "the same bytes again change nothing"
    adapters.fetch(bucket, published, disk)


def test_a_new_version_leaves_the_old_one(bucket: Bucket, published: Adapter, tmp_path: Path, disk: Path) -> None:
    second = adapters.publish(bucket, write_adapter(tmp_path / "other", fill=b"\x02"), "rag-qa", "v2")

    folders = {adapters.fetch(bucket, published, disk), adapters.fetch(bucket, second, disk)}

    assert len({(folder / "adapter_model.safetensors").read_bytes() for folder in folders}) == 2


def test_an_interrupted_publish_is_taken_up_again(s3: Any, bucket: Bucket, peft_folder: Path, disk: Path) -> None:
    first = adapters.publish(bucket, peft_folder, "rag-qa", "v1")
    s3.delete_object(Bucket=BUCKET, Key=PREFIX + "manifest.json")
    with pytest.raises(ObjectMissing):
        adapters.fetch(bucket, first, disk)

    adapters.fetch(bucket, adapters.publish(bucket, peft_folder, "rag-qa", "v1"), disk)


def test_an_interrupted_publish_of_other_bytes_is_not_mixed_with(
    s3: Any, bucket: Bucket, published: Adapter, tmp_path: Path
) -> None:
    s3.delete_object(Bucket=BUCKET, Key=PREFIX + "manifest.json")

    with pytest.raises(VersionExists, match=r"adapter_model\.safetensors exists with other bytes"):
        adapters.publish(bucket, write_adapter(tmp_path / "other", fill=b"\x02"), "rag-qa", "v1")
    assert PREFIX + "manifest.json" not in keys(s3)


def test_nothing_is_uploaded_of_an_unsafe_adapter(s3: Any, bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(UnsafeAdapter):
        adapters.publish(bucket, write_adapter(tmp_path / "dora", use_dora=True), "rag-qa", "v1")
    assert keys(s3) == []


@pytest.mark.parametrize(("model", "version"), [("../other", "v1"), ("rag-qa", "v1/../../x"), ("Rag_QA", "v1")])
def test_nothing_is_uploaded_under_a_bad_name(
    s3: Any, bucket: Bucket, peft_folder: Path, model: str, version: str
) -> None:
    with pytest.raises(InvalidDesiredState):
        adapters.publish(bucket, peft_folder, model, version)
    assert keys(s3) == []


def test_publish_tells_how_far_each_file_is(bucket: Bucket, peft_folder: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}

    adapters.publish(
        bucket, peft_folder, "rag-qa", "v1", progress=lambda file, sent, total: seen.update({file: (sent, total)})
    )

    sizes = {file.name: file.stat().st_size for file in peft_folder.iterdir()}
    assert seen == {f"uploading {name}": (size, size) for name, size in sizes.items()}


def test_an_adapter_on_disk_needs_no_catalog(s3: Any, bucket: Bucket, published: Adapter, disk: Path) -> None:
    folder = adapters.fetch(bucket, published, disk)
    for key in keys(s3):
        s3.delete_object(Bucket=BUCKET, Key=key)

    assert adapters.fetch(bucket, published, disk) == folder


def test_an_entry_that_lies_about_an_adapter_on_disk_is_refused(bucket: Bucket, published: Adapter, disk: Path) -> None:
    adapters.fetch(bucket, published, disk)

    with pytest.raises(UnsafeAdapter, match="the stack config says rank 4"):
        adapters.fetch(bucket, published.model_copy(update={"rank": 4}), disk)


def test_a_folder_that_lost_its_manifest_is_fetched_again(bucket: Bucket, published: Adapter, disk: Path) -> None:
    folder = adapters.fetch(bucket, published, disk)
    (folder / "manifest.json").unlink()
    (folder / "adapter_model.safetensors").write_bytes(b"half")

    adapters.fetch(bucket, published, disk)

    assert (folder / "adapter_model.safetensors").stat().st_size > len(b"half")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content[:-1] + b"\x7f", "holds other bytes than were published"),
        (lambda content: content[:-100], "holds less than"),
        (lambda content: content + b"\x01", "holds more than"),
        (lambda content: b"\x80\x04" + content[2:], "holds other bytes than were published"),
    ],
    ids=["corrupt", "truncated", "longer", "pickled"],
)
def test_changed_bytes_in_the_catalog_are_refused_and_leave_nothing(
    s3: Any, bucket: Bucket, published: Adapter, disk: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    replace(s3, WEIGHTS, change)

    with pytest.raises(DigestMismatch, match=reason):
        adapters.fetch(bucket, published, disk)
    assert list(disk.iterdir()) == []


def test_another_manifest_than_the_pinned_one_is_refused(
    s3: Any, bucket: Bucket, published: Adapter, disk: Path
) -> None:
    pin_manifest(s3, published, alpha=32)

    with pytest.raises(DigestMismatch, match="the stack config pins"):
        adapters.fetch(bucket, published, disk)


def test_the_gate_is_passed_again_on_download(s3: Any, bucket: Bucket, published: Adapter, disk: Path) -> None:
    pickle = b"\x80\x04pickle"
    manifest = json.loads(s3.get_object(Bucket=BUCKET, Key=PREFIX + "manifest.json")["Body"].read())
    replace(s3, WEIGHTS, lambda _: pickle)
    manifest["files"]["adapter_model.safetensors"] = {
        "parts": [hashlib.sha256(pickle).hexdigest()],
        "size": len(pickle),
    }
    forged = pin_manifest(s3, published, files=manifest["files"])
    forged = forged.model_copy(update={"size_bytes": sum(file["size"] for file in manifest["files"].values())})

    with pytest.raises(UnsafeAdapter, match="not a sound safetensors file"):
        adapters.fetch(bucket, forged, disk)
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"files": {"../../etc/passwd": {"parts": ["0" * 64], "size": 1}}}, r"files\.\.\./\.\./etc/passwd"),
        ({"files": {"run.py": {"parts": ["0" * 64], "size": 1}}}, "must name exactly"),
        ({"schemaVersion": 2}, "schemaVersion"),
        ({"rank": 16}, "the stack config says rank 8"),
        ({"targetModules": ["q_proj"]}, "the stack config says targetModules"),
        ({"alpha": 32.0}, "the manifest and the files disagree"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    s3: Any, bucket: Bucket, published: Adapter, disk: Path, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(UnsafeAdapter, match=reason):
        adapters.fetch(bucket, pin_manifest(s3, published, **changes), disk)
    assert list(disk.iterdir()) == []


WIDER = BASE.model_copy(update={"shape": LoraShape(num_hidden_layers=2, modules=dict.fromkeys(QKVO, (32, 32)))})


def test_an_adapter_of_another_base_model_is_not_published(s3: Any, bucket: Bucket, peft_folder: Path) -> None:
    with pytest.raises(UnsafeAdapter, match="train the adapter on this model"):
        adapters.publish(bucket, peft_folder, "rag-qa", "v1", base=WIDER)
    assert keys(s3) == []


def test_an_adapter_of_another_base_model_never_reaches_vllm(bucket: Bucket, published: Adapter, disk: Path) -> None:
    with pytest.raises(UnsafeAdapter, match="train the adapter on this model"):
        adapters.fetch(bucket, published, disk, WIDER)
    assert list(disk.iterdir()) == []
    adapters.fetch(bucket, published, disk, BASE)


def test_the_publishers_probe_prompts_arrive_beside_vllm(bucket: Bucket, peft_folder: Path, disk: Path) -> None:
    adapter = adapters.publish(bucket, peft_folder, "rag-qa", "v1", probe_prompts=["What is S3?", "Why?"])

    manifest = json.loads((adapters.fetch(bucket, adapter, disk) / "manifest.json").read_bytes())

    assert manifest["probePrompts"] == ["What is S3?", "Why?"]


@pytest.mark.parametrize("prompts", [["x"] * 9, ["x" * 2001], [""]])
def test_prompts_that_no_agent_could_use_are_refused(
    s3: Any, bucket: Bucket, peft_folder: Path, prompts: list[str]
) -> None:
    with pytest.raises(InvalidDesiredState, match="probe_prompts"):
        adapters.publish(bucket, peft_folder, "rag-qa", "v1", probe_prompts=prompts)
    assert keys(s3) == []


def test_a_publish_killed_at_any_request_is_no_version_and_is_taken_up_again(
    s3: Any, bucket: Bucket, peft_folder: Path, disk: Path, small_parts: int
) -> None:
    kills = 0
    for requests in itertools.count():
        version = f"v{requests}"
        try:
            with on_each_request(bucket, kill_after(requests)):
                adapter = adapters.publish(bucket, peft_folder, "rag-qa", version)
        except Killed:
            kills += 1
            assert f"llm-models/rag-qa/{version}/manifest.json" not in keys(s3)
            adapter = adapters.publish(bucket, peft_folder, "rag-qa", version)
        adapters.fetch(bucket, adapter, disk)
        if kills < requests + 1:
            break
    assert kills > 10


def test_of_two_publishers_of_one_version_one_wins(
    s3: Any, bucket: Bucket, peft_folder: Path, tmp_path: Path, disk: Path, small_parts: int
) -> None:
    other = write_adapter(tmp_path / "other", fill=b"\x02")
    winners: list[Adapter] = []
    publish_other = once(
        lambda: winners.append(adapters.publish(Bucket(BUCKET, pause_seconds=0), other, "rag-qa", "v1"))
    )

    with on_each_request(bucket, publish_other, "CompleteMultipartUpload"), pytest.raises(VersionExists):
        adapters.publish(bucket, peft_folder, "rag-qa", "v1")

    folder = adapters.fetch(bucket, winners[0], disk)
    assert (folder / "adapter_model.safetensors").read_bytes() == (other / "adapter_model.safetensors").read_bytes()


def test_a_missing_version_is_named(bucket: Bucket, published: Adapter, disk: Path) -> None:
    with pytest.raises(ObjectMissing, match=r"s3://adapters-test/llm-models/rag-qa/v9/manifest\.json does not exist"):
        adapters.fetch(bucket, published.model_copy(update={"version": "v9"}), disk)


def test_a_missing_bucket_is_named(s3: Any, published: Adapter, disk: Path) -> None:
    with pytest.raises(CatalogUnavailable, match="no such bucket"):
        adapters.fetch(Bucket("no-such-bucket", pause_seconds=0), published, disk)


def test_a_passing_failure_is_waited_out(bucket: Bucket, published: Adapter, disk: Path) -> None:
    with failing_downloads(bucket, failures=ATTEMPTS - 1):
        assert adapters.fetch(bucket, published, disk).is_dir()


@pytest.mark.parametrize(
    ("status", "reason", "attempts"), [(503, "AWS answered 503; try again later", ATTEMPTS), (403, "denied", 1)]
)
def test_a_lasting_failure_is_reported_and_a_refusal_not_asked_again(
    bucket: Bucket, published: Adapter, disk: Path, status: int, reason: str, attempts: int
) -> None:
    with failing_downloads(bucket, 100, status) as urls, pytest.raises(CatalogUnavailable, match=reason):
        adapters.fetch(bucket, published, disk)
    assert len(urls) == attempts


def test_what_a_killed_fetch_left_is_removed(bucket: Bucket, published: Adapter, disk: Path) -> None:
    folder = adapters.fetch(bucket, published, disk)
    (disk / ".partial-x1").mkdir()
    (disk / ".partial-x1" / "adapter_model.safetensors").write_bytes(b"half")

    remove_partial_downloads(disk)

    assert list(disk.iterdir()) == [folder]
