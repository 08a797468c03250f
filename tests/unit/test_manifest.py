"""Manifests as they lie in buckets today: what is published stays readable, and keeps its digest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraserve.catalog import adapters, base_weights
from loraserve.catalog.bucket import Bucket
from loraserve.catalog.files import digest_of
from loraserve.catalog.manifest import AdapterManifest, BaseManifest, Manifest
from loraserve.contract.base_model import Mirror
from loraserve.contract.desired_state import Adapter
from loraserve.operator.cli import main
from tests.unit.adapters_and_vllm import BUCKET

pytest_plugins = ["tests.unit.catalog_fixtures"]

ADAPTER = (
    '{"alpha":16.0,"baseModel":"mistralai/Mistral-7B-v0.1","createdAt":"2026-11-28T04:00:00.123456Z","dtypes":["F32"],'
    '"files":{"adapter_config.json":{"parts":["511235d63343b5b073134c11bd42ce7059036708273a0f5081589fa1143c6030"],'
    '"size":133},"adapter_model.safetensors":{"parts":'
    '["21f56edc5268313bcbe6d4a705d95d7d6023ffed06a3995b1037ba5a50348641"],"size":325}},"probePrompts":["What is S3?"],'
    '"rank":2,"schemaVersion":1,"targetModules":["q_proj"]}'
)
TIMELESS_ADAPTER = ADAPTER.replace('"createdAt":"2026-11-28T04:00:00.123456Z",', "")
ADAPTER_DIGEST = "sha256:a958390e2bae89822f4cbbe647a5715cc1f047c51d7cdd242b29c33237fc9618"
BASE = (
    '{"files":{"config.json":{"parts":["44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"],"size":2},'
    '"model.safetensors":{"parts":["44668ee3ef9e1225d1aaf8fdc959828bba3f15e3257178f8bf5d2b54c9a4320f"],"size":137},'
    '"tokenizer.model":{"parts":["0c4d8838ea18d7e0083b5a1bdf00dc9f8d55d6aa4f9ecd17598d4ec20651ae50"],"size":3}},'
    '"model":"acme/tiny-7B","schemaVersion":1,"version":"v1"}'
)
BASE_DIGEST = "sha256:f2d8f639ea027af316e91c197f48bfe691878a04359b8c166ce8f603b270d07a"

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
PEFT_CONFIG = {
    "peft_type": "LORA",
    "base_model_name_or_path": "mistralai/Mistral-7B-v0.1",
    "r": 2,
    "lora_alpha": 16,
    "target_modules": ["q_proj"],
}


def float32(shapes: dict[str, list[int]]) -> bytes:
    """A safetensors file, byte by byte as the recorded digests have it."""
    header, end = {}, 0
    for name, (rows, columns) in shapes.items():
        begin, end = end, end + 4 * rows * columns
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"\x01" * end


ADAPTER_FILES = {
    "adapter_config.json": json.dumps(PEFT_CONFIG).encode(),
    "adapter_model.safetensors": float32({f"{LAYER}.lora_A.weight": [2, 4], f"{LAYER}.lora_B.weight": [4, 2]}),
}
BASE_FILES = {
    "config.json": b"{}",
    "model.safetensors": float32({"w": [4, 4]}),
    "tokenizer.model": b"\x0a\x0e\x0a",
}


def folder_of(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


def put(s3: Any, prefix: str, files: dict[str, bytes], manifest: str) -> None:
    for file, content in {**files, "manifest.json": manifest.encode()}.items():
        s3.put_object(Bucket=BUCKET, Key=f"{prefix}/{file}", Body=content)


@pytest.fixture
def published(s3: Any) -> None:
    put(s3, "llm-models/rag-qa/v1", ADAPTER_FILES, ADAPTER)
    put(s3, "base-models/acme/tiny-7B/v1", BASE_FILES, BASE)


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[[str], Any]:
    def shown(model: str) -> Any:
        """What `loraserve show` prints for the stack config."""
        assert main(["show", model, "v1", "--bucket", BUCKET]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    return shown


@pytest.mark.parametrize(
    ("schema", "text", "digest"), [(AdapterManifest, ADAPTER, ADAPTER_DIGEST), (BaseManifest, BASE, BASE_DIGEST)]
)
def test_a_published_manifest_keeps_its_bytes(schema: type[Manifest], text: str, digest: str) -> None:
    assert schema.parse(text.encode()).to_json().decode() == text
    assert digest_of(text.encode()) == digest


def test_equal_files_have_one_digest_in_every_bucket_at_any_time(bucket: Bucket, tmp_path: Path) -> None:
    peft, model = folder_of(ADAPTER_FILES, tmp_path / "peft"), folder_of(BASE_FILES, tmp_path / "model")

    adapter = adapters.publish(bucket, peft, "rag-qa", "v1", probe_prompts=["What is S3?"])

    assert adapter.digest == digest_of(TIMELESS_ADAPTER.encode())
    assert adapters.publish(bucket, peft, "faq", "v7", probe_prompts=["What is S3?"]).digest == adapter.digest
    assert base_weights.publish(bucket, model, "acme/tiny-7B", "v1").digest == BASE_DIGEST


@pytest.mark.usefixtures("published")
def test_a_published_adapter_is_shown_and_fetched(
    bucket: Bucket, shown: Callable[[str], Any], disk: Path, tmp_path: Path
) -> None:
    adapter = Adapter.model_validate(shown("rag-qa")[0])

    folder = adapters.fetch(bucket, adapter, disk)

    assert adapter.digest == ADAPTER_DIGEST
    assert {file: (folder / file).read_bytes() for file in ADAPTER_FILES} == ADAPTER_FILES


@pytest.mark.usefixtures("published")
def test_a_published_base_model_is_shown_and_fetched(
    bucket: Bucket, shown: Callable[[str], Any], disk: Path, tmp_path: Path
) -> None:
    mirror = Mirror.model_validate(shown("acme/tiny-7B")["loraserve:baseModelMirror"])

    base_weights.fetch(bucket, "acme/tiny-7B", mirror, disk / mirror.folder_name)

    assert mirror.digest == BASE_DIGEST
    assert {file: (disk / mirror.folder_name / file).read_bytes() for file in BASE_FILES} == BASE_FILES


@pytest.mark.usefixtures("published")
def test_published_versions_of_both_kinds_are_listed_and_verified(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("list", "verify"):
        assert main([command, "--bucket", BUCKET]) == 0
        told = capsys.readouterr().out
        assert "rag-qa" in told
        assert "acme/tiny-7B" in told


def test_a_version_that_was_published_with_its_time_keeps_its_digest_when_it_is_published_again(
    s3: Any, bucket: Bucket, tmp_path: Path
) -> None:
    put(s3, "llm-models/rag-qa/v1", ADAPTER_FILES, ADAPTER)
    peft = folder_of(ADAPTER_FILES, tmp_path / "peft")

    again = adapters.publish(bucket, peft, "rag-qa", "v1", probe_prompts=["What is S3?"])

    assert again.digest == ADAPTER_DIGEST


def test_an_adapter_published_before_a_field_was_added_is_pinned_by_its_own_bytes(
    s3: Any, bucket: Bucket, shown: Callable[[str], Any], disk: Path
) -> None:
    older = ADAPTER.replace('"probePrompts":["What is S3?"],', "")
    put(s3, "llm-models/rag-qa/v1", ADAPTER_FILES, older)

    adapter = Adapter.model_validate(shown("rag-qa")[0])

    assert adapter.digest == digest_of(older.encode())
    assert adapters.fetch(bucket, adapter, disk).is_dir()
