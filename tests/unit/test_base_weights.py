"""Mirrored base weights: published once, on a pod's disk before vLLM starts."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraserve.agent.base_weights import BaseWeights
from loraserve.catalog import base_weights
from loraserve.catalog.bucket import Bucket, CatalogUnavailable, DigestMismatch, ObjectMissing, VersionExists
from loraserve.catalog.files import DiskFull, UnsafeFile
from loraserve.contract.base_model import Base, Mirror
from loraserve.contract.desired_state import DesiredState, InvalidDesiredState
from loraserve.operator.cli import main
from tests.unit.adapters_and_vllm import BUCKET, safetensors_of
from tests.unit.s3_requests import Killed, kill_after, on_each_request, recording

pytest_plugins = ["tests.unit.catalog_fixtures"]
pytestmark = pytest.mark.usefixtures("few_clients", "small_parts")

MODEL = "acme/tiny-7B"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
DATA = {"config.json", "tokenizer.json", "tokenizer.model", "model.safetensors.index.json", *SHARDS}


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        (folder / file).write_text(json.dumps({"file": file}))
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a")
    for number, file in enumerate(SHARDS):
        (folder / file).write_bytes(safetensors_of({f"layers.{number}.weight": [64, 20]}, bytes([number + 1])))
    return folder


@pytest.fixture
def mirrored(bucket: Bucket, model_folder: Path) -> Mirror:
    return base_weights.publish(bucket, model_folder, MODEL, "v1")


@pytest.fixture
def folder(disk: Path, mirrored: Mirror) -> Path:
    """Where the pod's vLLM looks for the weights."""
    return disk / mirrored.folder_name


def keys(s3: Any) -> set[str]:
    return {item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def test_what_was_mirrored_is_fetched(bucket: Bucket, model_folder: Path, mirrored: Mirror, folder: Path) -> None:
    base_weights.fetch(bucket, MODEL, mirrored, folder)

    assert contents(folder) == contents(model_folder)
    assert mirrored.size_bytes == sum(len(content) for content in contents(model_folder).values())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_only_data_is_uploaded(s3: Any, bucket: Bucket, model_folder: Path) -> None:
    for file in ("pytorch_model.bin", "modeling_tiny.py", "README.md", ".gitattributes", "run.sh"):
        (model_folder / file).write_bytes(b"x")

    base_weights.publish(bucket, model_folder, MODEL, "v1")

    assert keys(s3) == {f"base-models/{MODEL}/v1/{file}" for file in DATA | {"manifest.json"}}


@pytest.mark.parametrize(
    ("missing", "reason"),
    [(("config.json",), "must name config.json"), (SHARDS, r"must name a file \*.safetensors")],
)
def test_half_a_model_is_refused(
    s3: Any, bucket: Bucket, model_folder: Path, missing: tuple[str, ...], reason: str
) -> None:
    for file in missing:
        (model_folder / file).unlink()
    with pytest.raises(InvalidDesiredState, match=reason):
        base_weights.publish(bucket, model_folder, MODEL, "v1")
    assert keys(s3) == set()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: b"<html>no access</html>",
        lambda _: b"",
    ],
    ids=["cut short", "longer", "an error page", "empty"],
)
def test_weights_that_were_not_downloaded_whole_are_refused(
    s3: Any, bucket: Bucket, model_folder: Path, change: Callable[[bytes], bytes]
) -> None:
    shard = model_folder / SHARDS[1]
    shard.write_bytes(change(shard.read_bytes()))
    with pytest.raises(
        UnsafeFile, match=r"model-00002-of-00002\.safetensors is not a sound safetensors file.*download it again"
    ):
        base_weights.publish(bucket, model_folder, MODEL, "v1")
    assert keys(s3) == set()


def test_a_link_out_of_the_folder_is_refused(s3: Any, bucket: Bucket, model_folder: Path) -> None:
    (model_folder / "tokenizer.json").unlink()
    (model_folder / "tokenizer.json").symlink_to("/etc/passwd")
    with pytest.raises(UnsafeFile, match="is a symbolic link"):
        base_weights.publish(bucket, model_folder, MODEL, "v1")
    assert keys(s3) == set()


@pytest.mark.parametrize(("model", "version"), [("../x", "v1"), ("a/b/c", "v1"), (MODEL, "../v1"), ("", "v1")])
def test_a_bad_name_is_refused(bucket: Bucket, model_folder: Path, model: str, version: str) -> None:
    with pytest.raises(InvalidDesiredState):
        base_weights.publish(bucket, model_folder, model, version)


def test_mirroring_the_same_files_again_says_the_same(bucket: Bucket, model_folder: Path, mirrored: Mirror) -> None:
    assert base_weights.publish(bucket, model_folder, MODEL, "v1") == mirrored


def test_a_mirrored_version_never_changes(bucket: Bucket, model_folder: Path, mirrored: Mirror) -> None:
    (model_folder / "tokenizer.json").write_text("{}")
    with pytest.raises(VersionExists, match="publish as a new version"):
        base_weights.publish(bucket, model_folder, MODEL, "v1")


def test_a_killed_mirror_is_no_version_and_is_taken_up_again(
    s3: Any, bucket: Bucket, model_folder: Path, disk: Path
) -> None:
    def kill_at_second_shard(url: str) -> None:
        if SHARDS[1] in url:
            raise Killed

    with on_each_request(bucket, kill_at_second_shard), pytest.raises(Killed):
        base_weights.publish(bucket, model_folder, MODEL, "v1")
    assert f"base-models/{MODEL}/v1/manifest.json" not in keys(s3)

    mirrored = base_weights.publish(bucket, model_folder, MODEL, "v1")
    base_weights.fetch(bucket, MODEL, mirrored, disk / mirrored.folder_name)


def test_a_killed_fetch_goes_on_and_is_never_half_there(bucket: Bucket, mirrored: Mirror, folder: Path) -> None:
    kills = 0
    while not base_weights.is_complete(folder):
        try:
            with on_each_request(bucket, kill_after(2)):  # the manifest and one part more
                base_weights.fetch(bucket, MODEL, mirrored, folder)
        except Killed:
            kills += 1
            assert not folder.exists()

    assert kills > 5
    assert base_weights.is_complete(folder)
    assert {path.name for path in folder.iterdir()} == DATA | {"manifest.json"}


def test_bytes_that_changed_in_the_bucket_never_reach_vllm(
    s3: Any, bucket: Bucket, mirrored: Mirror, folder: Path
) -> None:
    s3.put_object(Bucket=BUCKET, Key=f"base-models/{MODEL}/v1/tokenizer.json", Body=b"{}")
    with pytest.raises(DigestMismatch, match="less than was published"):
        base_weights.fetch(bucket, MODEL, mirrored, folder)
    assert not folder.exists()


def test_another_manifest_than_the_pinned_one_is_refused(
    s3: Any, bucket: Bucket, mirrored: Mirror, folder: Path
) -> None:
    s3.put_object(Bucket=BUCKET, Key=f"base-models/{MODEL}/v1/manifest.json", Body=b"{}")
    with pytest.raises(DigestMismatch, match="the stack config pins"):
        base_weights.fetch(bucket, MODEL, mirrored, folder)


def test_a_setting_that_lies_about_the_size_is_refused(bucket: Bucket, mirrored: Mirror, folder: Path) -> None:
    with pytest.raises(UnsafeFile, match="sizeBytes 1, the published version has"):
        base_weights.fetch(bucket, MODEL, mirrored.model_copy(update={"size_bytes": 1}), folder)


def test_a_full_disk_is_told_before_anything_is_fetched(
    bucket: Bucket, mirrored: Mirror, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, used, _ = shutil.disk_usage(folder.parent)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(total, used, 100))
    with recording(bucket, "GetObject") as urls, pytest.raises(DiskFull, match="100 bytes free"):
        base_weights.fetch(bucket, MODEL, mirrored, folder)
    assert len(urls) == 1, "only the manifest"


def test_the_printed_setting_is_what_the_pod_can_fetch(
    bucket: Bucket, model_folder: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mirror", str(model_folder), "--bucket", BUCKET, "--model", MODEL, "--version", "1.0"]) == 0

    setting = yaml.safe_load(capsys.readouterr().out)["loraserve:baseModelMirror"]
    mirrored = Mirror.model_validate(setting)
    base_weights.fetch(bucket, MODEL, mirrored, disk / mirrored.folder_name)


@pytest.mark.parametrize(
    ("file", "content", "has"),
    [
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', True),
        ("chat_template.jinja", "{{ messages }}", True),
        ("tokenizer_config.json", "{}", False),
    ],
)
def test_a_model_without_a_chat_template_is_printed_as_such(
    bucket: Bucket, model_folder: Path, capsys: pytest.CaptureFixture[str], file: str, content: str, has: bool
) -> None:
    (model_folder / file).write_text(content)
    assert main(["mirror", str(model_folder), "--bucket", BUCKET, "--model", MODEL, "--version", "v1"]) == 0

    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed.get("loraserve:baseModelHasChatTemplate", True) is has


class Pod:
    """The agent's part: what it waits for, and the document that it follows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bucket: Bucket, folder: Path | None) -> None:
        self.document: DesiredState | None = None
        self.tried = threading.Event()
        monkeypatch.setattr("loraserve.agent.base_weights.RETRY_SECONDS", 0.01)
        monkeypatch.setattr("loraserve.agent.base_weights.Bucket", lambda *_: bucket)
        self.weights = BaseWeights(folder, self._desired)

    def _desired(self) -> DesiredState | None:
        self.tried.set()
        return self.document

    def follow(self, mirror: Mirror | None) -> None:
        self.document = DesiredState(base=Base(name=MODEL, mirror=mirror), bucket=BUCKET)

    def await_start(self) -> None:
        self.weights.thread.join(20)
        assert self.weights.obstacle is None


def test_without_a_mirror_vllm_may_start_at_once(monkeypatch: pytest.MonkeyPatch, bucket: Bucket) -> None:
    assert Pod(monkeypatch, bucket, None).weights.obstacle is None


def test_vllm_waits_until_the_weights_are_there(
    monkeypatch: pytest.MonkeyPatch, bucket: Bucket, mirrored: Mirror, folder: Path
) -> None:
    pod = Pod(monkeypatch, bucket, folder)
    assert pod.tried.wait(20)
    assert pod.weights.obstacle

    pod.follow(mirrored)
    pod.await_start()
    assert base_weights.is_complete(folder)


def test_a_restarted_agent_needs_no_document_for_weights_that_are_there(
    monkeypatch: pytest.MonkeyPatch, bucket: Bucket, mirrored: Mirror, folder: Path
) -> None:
    base_weights.fetch(bucket, MODEL, mirrored, folder)
    assert Pod(monkeypatch, bucket, folder).weights.obstacle is None


def test_a_pod_never_fetches_other_weights_than_its_vllm_loads(
    monkeypatch: pytest.MonkeyPatch, bucket: Bucket, mirrored: Mirror, folder: Path
) -> None:
    pod = Pod(monkeypatch, bucket, folder)
    with recording(bucket) as urls:
        pod.follow(mirrored.model_copy(update={"version": "v2"}))
        pod.tried.clear()
        assert pod.tried.wait(20)
        assert pod.weights.obstacle
        assert urls == []
    pod.follow(mirrored)
    pod.await_start()


def test_s3_being_down_at_the_start_is_waited_out(
    monkeypatch: pytest.MonkeyPatch, bucket: Bucket, mirrored: Mirror, folder: Path
) -> None:
    failing = iter([CatalogUnavailable("down"), ObjectMissing("not there"), OSError("disk"), KeyError("a bug")])
    fetch = base_weights.fetch

    def fetch_in_trouble(*arguments: Any) -> None:
        if error := next(failing, None):
            raise error
        fetch(*arguments)

    monkeypatch.setattr(base_weights, "fetch", fetch_in_trouble)
    pod = Pod(monkeypatch, bucket, folder)
    pod.follow(mirrored)
    pod.await_start()
    assert base_weights.is_complete(folder)
