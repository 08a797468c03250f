"""Lineage stands beside a version: added to, never changed, and nothing that knows versions notices it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from loraserve.catalog import adapters, garbage, lineage, listing
from loraserve.catalog.bucket import Bucket, VersionExists
from loraserve.catalog.versions import VersionId
from loraserve.operator.cli import main
from tests.unit.adapters_and_vllm import BUCKET, write_adapter

pytest_plugins = ["tests.unit.catalog_fixtures"]
pytestmark = pytest.mark.usefixtures("few_clients")

ID = VersionId("llm-models", "rag-qa", "v1")
DATA = f"sha256:{'a' * 64}"


def publish(folder: Path, *more: str) -> int:
    return main(["publish", str(folder), "--bucket", BUCKET, "--model", "rag-qa", "--version", "v1", *more])


def keys(s3: Any) -> set[str]:
    return {item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])}


def test_publish_records_when_by_whom_and_from_what(bucket: Bucket, tmp_path: Path) -> None:
    told = tmp_path / "lineage.json"
    told.write_text(json.dumps({"code": "0" * 40, "note": "first", "training": {"rank": 8}}))

    assert (
        publish(write_adapter(tmp_path / "peft"), "--data-digest", DATA, "--lineage", str(told), "--note", "new") == 0
    )

    [record] = lineage.read(bucket, ID)
    assert record.origin == lineage.Origin(data=DATA, code="0" * 40, note="new", training={"rank": 8})
    assert record.principal == "arn:aws:sts::123456789012:user/moto", "as AWS reports it"
    assert datetime.now(UTC) - record.at < timedelta(minutes=1)
    assert record.digest == listing.read_manifest(bucket, ID)[1]


def test_a_version_has_one_digest_whatever_is_recorded_beside_it(bucket: Bucket, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "peft")
    alone = adapters.publish(bucket, folder, "rag-qa", "v1").digest

    publish(folder, "--note", "the same bytes, told of")

    assert adapters.publish(bucket, folder, "rag-qa", "v1").digest == alone


def test_equal_words_are_recorded_once_and_others_are_added(s3: Any, bucket: Bucket, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "peft")
    publish(folder, "--note", "one")
    before = keys(s3)

    publish(folder, "--note", "one")
    assert keys(s3) == before

    publish(folder, "--note", "two")
    assert [record.origin.note for record in lineage.read(bucket, ID) if record.origin] == ["one", "two"]
    assert before < keys(s3)


def test_a_record_cannot_be_changed(s3: Any, bucket: Bucket, tmp_path: Path) -> None:
    publish(write_adapter(tmp_path / "peft"))
    [key] = [key for key in keys(s3) if key.startswith("lineage/")]
    with pytest.raises(VersionExists):
        bucket.create(key, b"{}")


def test_nothing_that_knows_versions_notices_it(s3: Any, bucket: Bucket, tmp_path: Path) -> None:
    entry = adapters.publish(bucket, write_adapter(tmp_path / "peft"), "rag-qa", "v1")
    before = listing.versions(bucket)

    lineage.record(bucket, ID, "promoted", entry.digest, from_stack="dev", to_stack="prod")

    assert listing.versions(bucket) == before, "neither files nor the time of the last change"
    listing.verify(bucket, before[0], lambda *_: None)
    assert {path.name for path in adapters.fetch(bucket, entry, tmp_path).iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    }
    later = datetime.now(UTC) + timedelta(days=100)
    found = garbage.find_garbage(bucket, set(), later, timedelta(days=30))
    assert [version.id for version in found.versions] == [ID]
    garbage.delete(bucket, found, set)
    assert [key.split("/")[0] for key in keys(s3)] == ["lineage"], "it outlives the version"


def test_show_tells_it(bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(write_adapter(tmp_path / "peft"), "--data-digest", DATA, "--note", "from the wiki")
    capsys.readouterr()

    assert main(["show", "rag-qa", "v1", "--bucket", BUCKET]) == 0
    output = capsys.readouterr()
    assert f"published by arn:aws:sts::123456789012:user/moto: data {DATA}; note from the wiki" in output.err
    assert output.out.startswith("- name: "), "only the entry is for a script"

    main(["show", "rag-qa", "v1", "--bucket", BUCKET, "--json"])
    [record] = json.loads(capsys.readouterr().out)["lineage"]
    assert record["origin"] == {"data": DATA, "note": "from the wiki"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"dataset": "x"}', "dataset: is not a known key"),
        ('{"data": "x"}', "data: must be 'sha256:'"),
        ("[]", "is no lineage"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_bad_lineage_is_refused_before_anything_is_uploaded(
    s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, reason: str
) -> None:
    told = tmp_path / "lineage.json"
    told.write_text(content)
    assert publish(write_adapter(tmp_path / "peft"), "--lineage", str(told)) == 1
    assert reason in capsys.readouterr().err
    assert not keys(s3)
