"""The workflow for users runs here, step by step, with tools that only say how they were called: it cannot drift."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from infra import program
from loraserve.operator.cli import cli
from tests.stack_values import CHECKOUT

WORKFLOW: dict[Any, Any] = yaml.safe_load((CHECKOUT / "docs/ci/release.yml").read_text())
TOOL = """#!/bin/bash
printf '%q ' "$(basename "$0")" "$@" >> "$CALLS"; echo >> "$CALLS"
case "$*" in
    "stack output kubeconfigCommand"*) echo aws eks update-kubeconfig --name loraserve-dev ;;
    "stack output "*) echo "the-$3" ;;
    "diff --quiet"*) exit 1 ;;
esac
"""


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[str]]]:
    """What each job's steps call, in order."""
    folder = tmp_path_factory.mktemp("checkout")
    tools = folder / "tools"
    tools.mkdir()
    for name in ("loraserve", "pulumi", "pip", "git", "aws"):
        (tools / name).write_text(TOOL)
        (tools / name).chmod(0o755)
    (folder / "candidate").write_text("faq@v3\n")
    found = {}
    for name, job in WORKFLOW["jobs"].items():
        log = folder / f"{name}.calls"
        script = "\n".join(f"(\n{step['run']}\n)" for step in job["steps"] if "run" in step)
        assert "${{" not in script, "what GitHub fills in comes as a variable, so that no name becomes a command"
        environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(folder), "CALLS": str(log)}
        environment |= {"DEV_ROLE": "arn:dev", "PROD_ROLE": "arn:prod"}
        subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, check=True)
        found[name] = [shlex.split(line) for line in log.read_text().splitlines()]
    found["config"] = [[line] for line in (folder / ".aws/config").read_text().splitlines()]
    return found


def test_every_command_of_ours_exists_with_these_options(calls: dict[str, list[list[str]]]) -> None:
    ours = [call[1:] for job in WORKFLOW["jobs"] for call in calls[job] if call[0] == "loraserve"]
    for words in ours:
        command: click.Command = cli.commands[words[0]]
        with command.make_context(words[0], words[1:]):  # raises what a wrong call raises
            pass
    assert [words[0] for words in ours] == ["check", "evaluate", "verify", "evaluate", "promote", "status"]


def test_a_candidate_is_checked_run_evaluated_then_promoted(calls: dict[str, list[list[str]]]) -> None:
    steps = [" ".join(call) for call in calls["candidate"]]

    def at(start: str) -> int:
        [place] = [number for number, step in enumerate(steps) if step.startswith(start)]
        return place

    evaluated = at("loraserve evaluate evaluations/faq.yaml --candidate faq@v3 --production Pulumi.prod.yaml --output")
    assert at("loraserve check adapters/faq") < at("pulumi up --stack dev") < evaluated < at("loraserve promote faq@v3")
    assert at("loraserve promote") < at("git commit -m Promote faq@v3 to prod -- Pulumi.prod.yaml") < at("git push")
    assert steps[evaluated].endswith("--record --bucket the-adapterBucket --role the-evaluatorRole")
    assert not any("up --stack prod" in step for step in steps)
    assert ["[profile prod]"] in calls["config"]
    assert ["role_arn = arn:prod"] in calls["config"]


def test_a_merge_deploys(calls: dict[str, list[list[str]]]) -> None:
    pulumi = [" ".join(call[1:]) for call in calls["deploy"] if call[0] == "pulumi"]
    assert pulumi[:3] == ["install", "preview --stack prod", "up --stack prod --yes"]


def test_the_outputs_that_it_asks_for_are_exported(calls: dict[str, list[list[str]]]) -> None:
    asked = {call[3] for job in WORKFLOW["jobs"] for call in calls[job] if call[:3] == ["pulumi", "stack", "output"]}
    declared = Path(program.__file__).read_text()
    assert {output for output in asked if f'pulumi.export("{output}"' in declared} == asked
    assert asked == {"adapterBucket", "evaluatorRole", "kubeconfigCommand"}


def test_no_strangers_code_gets_credentials() -> None:
    assert "head.repo.full_name == github.repository" in WORKFLOW["jobs"]["candidate"]["if"]
    assert "pull_request_target" not in WORKFLOW[True], "YAML 1.1 reads `on` as true"
    assert WORKFLOW["permissions"] == {"contents": "read", "id-token": "write"}
