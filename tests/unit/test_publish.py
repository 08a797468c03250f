import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraserve.catalog import adapters
from loraserve.catalog.bucket import Bucket
from loraserve.contract.desired_state import Adapter
from loraserve.operator.cli import main
from tests.stack_values import CHECKOUT
from tests.unit.adapters_and_vllm import BASE, BUCKET, write_adapter

pytest_plugins = ["tests.unit.catalog_fixtures"]
pytestmark = pytest.mark.usefixtures("few_clients")


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
    publish(write_adapter(tmp_path / "peft"))

    assert publish(write_adapter(tmp_path / "other", fill=b"\x02")) == 1
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


STACK_FILE = str(CHECKOUT / "Pulumi.local.yaml")
"""Of a base model that is 256 wide."""


def test_check_says_that_a_folder_can_be_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_adapter(tmp_path / "peft")
    (folder / "tokenizer_config.json").write_text("{}")

    assert main(["check", str(folder)]) == 0

    output = capsys.readouterr()
    assert "rank 8 on k_proj, o_proj, q_proj, v_proj, trained on mistralai/Mistral-7B-v0.1" in output.out
    assert "Note: tokenizer_config.json: not published" in output.err
    assert "Not compared with a base model" in output.err


def test_check_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(write_adapter(tmp_path / "peft", init_lora_weights="pissa"))]) == 1
    assert "init_lora_weights 'pissa', which changes the base model's weights" in capsys.readouterr().err


def test_check_and_publish_compare_with_the_base_model_of_a_stack_file(
    s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_adapter(tmp_path / "peft")

    assert main(["check", str(folder), "--stack-file", STACK_FILE]) == 1
    assert "_proj of loraserve/tiny-mistral is 256 wide there" in capsys.readouterr().err

    assert publish(folder, "--stack-file", STACK_FILE) == 1
    assert "Contents" not in s3.list_objects_v2(Bucket=BUCKET), "a version is not burnt on the wrong base"


def test_check_says_what_base_model_a_folder_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack_output = json.dumps(BASE.model_dump(mode="json", by_alias=True, exclude_none=True))

    assert main(["check", str(write_adapter(tmp_path / "peft")), "--base", stack_output]) == 0

    output = capsys.readouterr()
    assert output.out.endswith("fits acme/tiny\n")
    assert output.err == ""


def test_check_compares_with_a_base_model_that_is_known_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_adapter(tmp_path / "peft")

    assert main(["check", str(folder), "--base", "Qwen/Qwen3-8B"]) == 1
    assert "_proj of Qwen/Qwen3-8B is 4096 wide there" in capsys.readouterr().err
    assert main(["check", str(folder), "--base", "nobody/knows-this"]) == 1
    assert "a hub id that `loraserve base-model` knows" in capsys.readouterr().err


def test_a_pipeline_reads_what_check_and_publish_say_as_json(
    s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_adapter(tmp_path / "peft")

    assert main(["check", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rank"], facts["fits"], facts["notes"]) == (8, None, [])

    assert publish(folder, "--json") == 0
    entry = Adapter.model_validate(json.loads(capsys.readouterr().out))
    assert (entry.name, entry.rank) == ("rag-qa", 8)
