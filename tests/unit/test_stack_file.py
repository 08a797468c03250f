"""A stack file is read without Pulumi, as the CLI would hand it over, and a bad one gets one clear error."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraserve.planning import stack_file
from loraserve.planning.settings_parser import InvalidSettings, parse
from tests.stack_values import CHECKOUT, stack_values


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the project's own files."""
    for name in ("Pulumi.yaml", "Pulumi.dev.yaml", "Pulumi.local.yaml", "Pulumi.prod.yaml"):
        shutil.copy(CHECKOUT / name, tmp_path)
    return tmp_path


def changed(project: Path, stack: str = "dev", **changes: Any) -> Path:
    """The stack file, with these of the program's keys set, or taken out where None."""
    path = project / f"Pulumi.{stack}.yaml"
    document = yaml.safe_load(path.read_text())
    config = document["config"] | {key if ":" in key else f"loraserve:{key}": value for key, value in changes.items()}
    path.write_text(yaml.safe_dump({"config": {key: value for key, value in config.items() if value is not None}}))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InvalidSettings) as refused:
        stack_file.read(path)
    return str(refused.value)


@pytest.mark.parametrize("stack", ["dev", "local"])
def test_a_stack_file_says_what_the_cli_would_hand_over(stack: str) -> None:
    values = stack_values(stack)
    if template := values["chatTemplateFile"]:
        values["chatTemplateFile"] = str(CHECKOUT / template)
    assert stack_file.read(CHECKOUT / f"Pulumi.{stack}.yaml") == parse(values)


def test_a_choice_in_the_file_wins_over_the_default(project: Path) -> None:
    assert stack_file.read(changed(project, gpuMaxSize=5)).gpu_max_size == 5
    assert stack_file.read(changed(project, gpuMaxSize=None)).gpu_max_size == 2


def test_every_problem_of_a_file_is_told_with_its_key(project: Path) -> None:
    told = refusal(changed(project, "prod", gpuMinSize=3, nat="magic", gpuMaxsize=4))
    assert "loraserve:gpuMaxSize 2 is below gpuMinSize 3" in told
    assert "loraserve:nat: Input should be" in told
    assert "loraserve:gpuMaxsize is not a known key: did you mean gpuMaxSize?" in told
    assert "loraserve:publicAccessCidrs is empty" in told


def test_an_encrypted_token_stays_unknown(project: Path) -> None:
    assert stack_file.read(changed(project, hubToken={"secure": "AAABAF…"})).hub_token is None


def test_a_token_in_clear_is_refused(project: Path) -> None:
    told = refusal(changed(project, hubToken="hf_very_secret"))
    assert "pulumi config set --secret hubToken" in told
    assert "hf_very_secret" not in told


def test_what_alerting_keeps_to_itself_stays_unknown_and_may_not_stand_in_clear(project: Path) -> None:
    slack = {"channel": "#ops", "url": {"secure": "AAABAF…"}}
    assert stack_file.read(changed(project, alerting={"slack": slack})).alerting.reaches_somebody
    store = {"url": "https://x.example.com", "username": "1", "password": {"secure": "AAABAF…"}}
    assert stack_file.read(changed(project, remoteWrite=store)).remote_write
    told = refusal(changed(project, alerting={"slack": slack | {"url": "https://hooks.slack.com/very-secret"}}))
    assert "pulumi config set --secret --path alerting" in told
    assert "very-secret" not in told


def test_any_other_encrypted_value_is_refused_and_not_replaced_by_its_default(project: Path) -> None:
    told = refusal(changed(project, gpuMaxSize={"secure": "AAABAF…"}, nat="magic"))
    assert "loraserve:gpuMaxSize is encrypted" in told
    assert "loraserve:nat" in told


def test_keys_of_others_are_no_concern(project: Path) -> None:
    path = changed(project, **{"aws:profile": "mine", "kubernetes:context": {"secure": "AAABAF…"}})
    assert stack_file.read(path) == parse(stack_values("dev"))


def test_a_chat_template_is_found_beside_the_stack_file(project: Path) -> None:
    (project / "chat.jinja").write_text("{{ messages }}")
    read = stack_file.read(changed(project, chatTemplateFile="chat.jinja"))
    assert read.chat_template_file == str(project / "chat.jinja")


def test_the_local_section_is_refused_in_a_real_accounts_file(project: Path) -> None:
    told = refusal(changed(project, "local", **{"aws:allowedAccountIds": ["111111111111"]}))
    assert "loraserve:local is for an emulated AWS" in told
    assert "111111111111" in told


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("config: [", "while parsing"),
        ("config:\n\taws:region: eu", "cannot start any token"),
        ("", "it has no `config`"),
        ("- a list", "it has no `config`"),
        ("config: [a, list]", "it has no `config`"),
        (b"config: \xff", "can't decode"),
    ],
)
def test_what_is_no_stack_file_is_refused_with_its_path_and_the_reason(
    project: Path, content: str | bytes, reason: str
) -> None:
    path = project / "Pulumi.dev.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    told = refusal(path)
    assert f"{path} cannot be read as a stack file" in told
    assert reason in told


@pytest.mark.parametrize("missing", ["Pulumi.staging.yaml", "Pulumi.yaml"])
def test_a_file_that_is_not_there_is_named(project: Path, missing: str) -> None:
    stack = "dev" if missing == "Pulumi.yaml" else "staging"
    (project / missing).unlink(missing_ok=True)
    told = refusal(project / f"Pulumi.{stack}.yaml")
    assert f"{project / missing} cannot be read as a stack file" in told
    assert "No such file" in told


def test_a_number_as_key_is_no_crash(project: Path) -> None:
    path = project / "Pulumi.dev.yaml"
    path.write_text(path.read_text() + "  3: three\n")
    assert stack_file.read(path) == parse(stack_values("dev"))


def test_the_arithmetic_needs_no_pulumi() -> None:
    script = """
import importlib, pkgutil, sys
import loraserve.planning as room
for module in pkgutil.iter_modules(room.__path__):
    importlib.import_module(f"loraserve.planning.{module.name}")
from pathlib import Path
from loraserve.planning import cost, stack_file
print(cost.describe(stack_file.read(Path("Pulumi.dev.yaml")), "us-east-1", zones=2))
print([name for name in sys.modules if name.split(".")[0].startswith("pulumi")])
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    told, pulumi_modules = ran.stdout.splitlines()
    assert "idle cost: about $" in told
    assert pulumi_modules == "[]"
