import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraserve.catalog import adapters
from loraserve.catalog.bucket import Bucket
from loraserve.contract.desired_state import Adapter
from loraserve.operator.cli import main
from tests.unit.adapters_and_vllm import BASE, BUCKET, write_adapter

pytest_plugins = ["tests.unit.catalog_fixtures"]


def publish(folder: Path, *more: str, version: str = "v1") -> int:
    return main(["publish", str(folder), "--bucket", BUCKET, "--model", "rag-qa", "--version", version, *more])


def test_the_printed_entry_is_what_the_agent_can_fetch(
    s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(write_adapter(tmp_path / "peft"), "--name", "aws-rag-qa", version="1.0") == 0

    [entry] = yaml.safe_load(capsys.readouterr().out)
    assert (entry["name"], entry["version"]) == ("aws-rag-qa", "1.0")
    assert adapters.fetch(Bucket(BUCKET), Adapter.model_validate(entry), tmp_path).is_dir()


def test_only_the_entry_goes_to_stdout(s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(write_adapter(tmp_path / "peft"))

    output = capsys.readouterr()
    assert output.out.startswith("- name: ")
    assert "uploading adapter_model.safetensors" in output.err


@pytest.mark.parametrize(
    ("config", "more", "reason"),
    [({"use_dora": True}, [], "use_dora"), ({}, ["--name", "Not A Name"], "name: must be lower-case")],
)
def test_a_refusal_is_one_clear_error(
    s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], more: list[str], reason: str
) -> None:
    assert publish(write_adapter(tmp_path / "peft", **config), *more) == 1

    output = capsys.readouterr()
    assert output.err.startswith("loraserve: ")
    assert reason in output.err
    assert output.out == ""


def test_a_second_publish_of_a_version_says_what_to_do(
    s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_adapter(tmp_path / "peft")
    publish(folder)

    assert publish(folder) == 1
    assert "publish as a new version" in capsys.readouterr().err


def test_publish_compares_with_the_base_model_of_the_stack(
    s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_adapter(tmp_path / "peft", base_model_name_or_path="meta/Llama-3")
    stack_output = json.dumps(BASE.model_dump(mode="json", by_alias=True, exclude_none=True))

    assert publish(folder, "--base", stack_output) == 1
    assert "it was trained on 'meta/Llama-3'" in capsys.readouterr().err


def test_probe_prompts_come_from_the_command_line_and_from_a_file(s3: Any, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Second?\n\nThird?\n")

    publish(write_adapter(tmp_path / "peft"), "--probe-prompt", "First?", "--probe-prompts", str(prompts))

    manifest = json.loads(s3.get_object(Bucket=BUCKET, Key="llm-models/rag-qa/v1/manifest.json")["Body"].read())
    assert manifest["probePrompts"] == ["First?", "Second?", "Third?"]


def test_prompts_that_cannot_be_read_are_named(s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish(write_adapter(tmp_path / "peft"), "--probe-prompts", str(tmp_path / "no-file")) == 1
    assert "no-file cannot be read" in capsys.readouterr().err
