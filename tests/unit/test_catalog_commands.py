"""What an operator sees of the bucket, and what gc takes away."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from loraserve.catalog import adapters, base_weights, garbage
from loraserve.catalog.bucket import Bucket, CatalogUnavailable
from loraserve.catalog.versions import VersionId
from loraserve.contract.base_model import Base, Mirror
from loraserve.contract.desired_state import Adapter, DesiredState, InvalidDesiredState
from loraserve.operator.adapters.catalog_commands import mirror_setting, stack_config_entry
from loraserve.operator.cli import main
from tests.unit.adapters_and_vllm import BUCKET, safetensors_of, write_adapter

pytest_plugins = ["tests.unit.catalog_fixtures"]
pytestmark = pytest.mark.usefixtures("few_clients")

MODEL = "TheBloke/Mistral-7B-v0.1-AWQ"
Run = Callable[..., str]


@pytest.fixture
def v1(bucket: Bucket, tmp_path: Path) -> Adapter:
    return adapters.publish(bucket, write_adapter(tmp_path / "v1"), "rag-qa", "v1")


@pytest.fixture
def v2(bucket: Bucket, tmp_path: Path) -> Adapter:
    return adapters.publish(bucket, write_adapter(tmp_path / "v2", rank=16, lora_alpha=32), "rag-qa", "v2")


@pytest.fixture
def mirror(bucket: Bucket, tmp_path: Path) -> Mirror:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors_of({"w": [4, 4]}))
    return base_weights.publish(bucket, folder, MODEL, "v1")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str, code: int = 0) -> str:
        """What it prints for a script."""
        assert main([*arguments, "--bucket", BUCKET]) == code
        return capsys.readouterr().out

    return run


@pytest.fixture
def stack(tmp_path: Path) -> Callable[..., Path]:
    def stack(*adapters: Adapter, mirror: Mirror | None = None) -> Path:
        """A stack config with what `publish` and `mirror` print."""
        path = tmp_path / "Pulumi.dev.yaml"
        lines = ["loraserve:adapters:", *(stack_config_entry(adapter) for adapter in adapters)] if adapters else []
        if mirror:
            lines += mirror_setting(mirror).splitlines()
        lines = [line for text in lines for line in text.splitlines()]
        path.write_text("config:\n" + "".join(f"  {line}\n" for line in lines))
        (tmp_path / "Pulumi.yaml").write_text(f"config: {{'loraserve:baseModel': {{default: {MODEL}}}}}")
        return path

    return stack


def keys(s3: Any) -> set[str]:
    return {item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])}


def folders(s3: Any) -> set[str]:
    return {key.rpartition("/")[0] for key in keys(s3)}


def damage(s3: Any, key: str) -> None:
    content = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    s3.put_object(Bucket=BUCKET, Key=key, Body=content[:-1] + b"\x7f")


def test_list_tells_versions_from_what_was_never_finished(
    s3: Any, run: Run, v1: Adapter, v2: Adapter, mirror: Mirror
) -> None:
    s3.delete_object(Bucket=BUCKET, Key="llm-models/rag-qa/v2/manifest.json")

    rows = [line.split() for line in run("list").splitlines()[1:]]

    assert [row[:3] for row in rows] == [
        [MODEL, "v1", "base-models"],
        ["rag-qa", "v1", "llm-models"],
        ["rag-qa", "v2", "llm-models,"],
    ]
    assert len(run("list", "rag-qa").splitlines()) == 3


def test_show_prints_the_entry_again(run: Run, v1: Adapter, mirror: Mirror) -> None:
    assert Adapter.model_validate(yaml.safe_load(run("show", "rag-qa", "v1"))[0]) == v1
    [setting] = yaml.safe_load(run("show", MODEL, "v1")).values()
    assert Mirror.model_validate(setting) == mirror


def test_a_version_that_is_not_there_is_named(
    s3: Any, capsys: pytest.CaptureFixture[str], v1: Adapter, run: Run
) -> None:
    for command in (("show", "rag-qa", "v9"), ("verify", "rag-qa", "v9"), ("diff", "rag-qa", "v1", "v9")):
        assert main([*command, "--bucket", BUCKET]) == 1
        assert f"s3://{BUCKET} holds no rag-qa v9" in capsys.readouterr().err


def test_verify_reads_everything_and_names_what_changed(
    s3: Any, run: Run, v1: Adapter, v2: Adapter, mirror: Mirror
) -> None:
    assert run("verify").count(": good") == 3

    damage(s3, "llm-models/rag-qa/v2/adapter_model.safetensors")
    s3.delete_object(Bucket=BUCKET, Key=f"base-models/{MODEL}/v1/config.json")
    s3.put_object(Bucket=BUCKET, Key="llm-models/rag-qa/v2/run.py", Body=b"x")
    told = run("verify", code=1)

    assert "rag-qa v1: good" in told
    assert f"{MODEL} v1: DAMAGED" in told
    assert "v1/config.json does not exist" in told
    assert "v2/adapter_model.safetensors holds other bytes than were published" in told
    assert "v2/run.py is not in the manifest" in told


def test_verify_one_version_looks_at_no_other(s3: Any, run: Run, v1: Adapter, v2: Adapter) -> None:
    damage(s3, "llm-models/rag-qa/v2/adapter_model.safetensors")
    assert run("verify", "rag-qa", "v1") == "rag-qa v1: good\n"


def test_diff_shows_what_differs_and_nothing_else(run: Run, v1: Adapter, v2: Adapter) -> None:
    facts = {line.split()[0]: line.split()[1:] for line in run("diff", "rag-qa", "v1", "v2").splitlines()[1:]}

    assert facts["rank"] == ["8", "16"]
    assert facts["alpha"] == ["16.0", "32.0"]
    assert "adapter_model.safetensors" in facts
    assert facts.keys().isdisjoint({"baseModel", "targetModules", "dtypes", "schemaVersion"})


def test_gc_shows_what_no_stack_names_and_deletes_it_only_when_told(
    s3: Any, run: Run, stack: Callable[..., Path], v1: Adapter, v2: Adapter, mirror: Mirror
) -> None:
    keep = ["--keep", str(stack(v1, mirror=mirror)), "--days", "-1"]

    assert "rag-qa v2" in run("gc", *keep)
    assert "llm-models/rag-qa/v2" in folders(s3)

    run("gc", *keep, "--yes")
    assert folders(s3) == {"llm-models/rag-qa/v1", f"base-models/{MODEL}/v1"}
    assert run("gc", *keep) == ""


def test_gc_leaves_what_is_younger_than_the_grace_period(
    s3: Any, run: Run, stack: Callable[..., Path], v1: Adapter, v2: Adapter
) -> None:
    assert run("gc", "--keep", str(stack(v1)), "--yes") == ""
    assert "llm-models/rag-qa/v2" in folders(s3)


def test_gc_ends_uploads_and_removes_versions_that_were_never_finished(
    s3: Any, run: Run, stack: Callable[..., Path], v1: Adapter
) -> None:
    s3.create_multipart_upload(Bucket=BUCKET, Key="base-models/a/b/v1/model.safetensors")
    s3.put_object(Bucket=BUCKET, Key="llm-models/other/v1/adapter_config.json", Body=b"{}")

    run("gc", "--keep", str(stack(v1)), "--days", "-1", "--yes")

    assert folders(s3) == {"llm-models/rag-qa/v1"}
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=BUCKET)


def test_gc_unpublishes_before_it_deletes(
    bucket: Bucket, s3: Any, v1: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted: list[str] = []
    monkeypatch.setattr(bucket, "delete", deleted.append)
    garbage.delete(bucket, everything(bucket), set)
    assert deleted[0].endswith("/manifest.json")
    assert set(deleted) == keys(s3)


def everything(bucket: Bucket) -> garbage.Garbage:
    return garbage.find_garbage(bucket, set(), datetime.now(UTC), timedelta(days=-1))


def test_gc_looks_again_before_it_deletes(bucket: Bucket, s3: Any, v1: Adapter, v2: Adapter, tmp_path: Path) -> None:
    """What is named, or touched, while somebody still reads what is to go."""
    adapters.publish(bucket, write_adapter(tmp_path / "v3"), "rag-qa", "v3")
    found = everything(bucket)
    s3.put_object(Bucket=BUCKET, Key="llm-models/rag-qa/v2/adapter_config.json", Body=b"{}")

    left = garbage.delete(bucket, found, lambda: {VersionId.of_adapter(v1)})

    assert [str(id) for id in left] == ["rag-qa v1", "rag-qa v2"]
    assert folders(s3) == {"llm-models/rag-qa/v1", "llm-models/rag-qa/v2"}


def test_gc_deletes_nothing_once_a_file_does_not_say_what_to_keep_any_more(
    bucket: Bucket, s3: Any, v1: Adapter, tmp_path: Path
) -> None:
    with pytest.raises(InvalidDesiredState, match="No such file"):
        garbage.delete(bucket, everything(bucket), lambda: garbage.named_versions([tmp_path / "gone.yaml"]))
    assert folders(s3) == {"llm-models/rag-qa/v1"}


def test_gc_keeps_what_a_running_stack_still_follows(
    s3: Any, run: Run, stack: Callable[..., Path], tmp_path: Path, v1: Adapter, v2: Adapter, mirror: Mirror
) -> None:
    document = tmp_path / "desired.json"
    document.write_text(DesiredState(base=Base(name=MODEL, mirror=mirror), bucket=BUCKET, adapters=(v2,)).to_json())
    assert run("gc", "--keep", str(stack(v1)), "--keep", str(document), "--days", "-1") == ""


def test_gc_reads_settings_as_pulumi_config_set_writes_them(tmp_path: Path, v1: Adapter, mirror: Mirror) -> None:
    path = tmp_path / "Pulumi.dev.yaml"
    settings = {
        "loraserve:adapters": json.dumps([v1.model_dump(mode="json", by_alias=True)]),
        "loraserve:baseModel": "acme/own",
        "loraserve:baseModelMirror": mirror.model_dump_json(by_alias=True),
    }
    path.write_text(yaml.safe_dump({"config": settings}))
    assert {str(id) for id in garbage.named_versions([path])} == {"rag-qa v1", "acme/own v1"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("config: {loraserve:nat: gateway}", "names no adapter"),
        ("config: {loraserve:adapters: [{name: a}]}", "model: is missing"),
        ("config: {loraserve:adapters: [", "neither a stack config nor a desired state"),
        ("- a list", "neither a stack config nor a desired state"),
        ("{}", "schema|base: is missing"),
        (None, "No such file"),
    ],
)
def test_gc_deletes_nothing_where_a_file_does_not_say_what_to_keep(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    path = tmp_path / "Pulumi.dev.yaml"
    if content:
        path.write_text(content)
    with pytest.raises(InvalidDesiredState, match=reason):
        garbage.named_versions([path])


def test_gc_acts_as_the_role_it_is_given(
    s3: Any, run: Run, stack: Callable[..., Path], v1: Adapter, v2: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    iam = boto3.client("iam")
    role = iam.create_role(RoleName="gc", AssumeRolePolicyDocument="{}")["Role"]["Arn"]

    run("gc", "--keep", str(stack(v1)), "--days", "-1", "--role", role, "--yes")

    assert folders(s3) == {"llm-models/rag-qa/v1"}


def test_a_role_that_cannot_be_assumed_is_named(s3: Any) -> None:
    with pytest.raises(CatalogUnavailable, match="gc cannot be assumed"):
        Bucket(BUCKET, role="gc")


def test_a_machine_reads_every_answer_as_json(run: Run, stack: Callable[..., Path], v1: Adapter, v2: Adapter) -> None:
    listed = json.loads(run("list", "--json"))
    assert [(each["model"], each["version"], each["published"]) for each in listed] == [
        ("rag-qa", "v1", True),
        ("rag-qa", "v2", True),
    ]
    assert Adapter.model_validate(json.loads(run("show", "rag-qa", "v1", "--json"))["entry"]) == v1
    assert [each["problem"] for each in json.loads(run("verify", "--json"))] == [None, None]
    assert json.loads(run("diff", "rag-qa", "v1", "v2", "--json"))["rank"] == ["8", "16"]
    found = json.loads(run("gc", "--keep", str(stack(v1)), "--days", "-1", "--json"))
    assert [(each["model"], each["version"]) for each in found["versions"]] == [("rag-qa", "v2")]
    assert found["deleted"] is False
