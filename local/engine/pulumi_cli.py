"""The Pulumi CLI on one stack of one state folder, and this project's own command beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from local.cluster.place import Cluster
from local.engine import workspace
from local.engine.cloud import Cloud
from local.paths import CHECKOUT
from local.processes import ProcessError


class PulumiCli:
    """Runs in a project folder below `state`, with an environment that reaches this stack and nothing else."""

    def __init__(self, state: Path, stack: str, cloud: Cloud, cluster: Cluster) -> None:
        self._state = state
        self._cli = str(workspace.cli(state))
        self._stack = stack
        self._project = state / "project"
        self._environment = workspace.environment(state, cloud, cluster)
        workspace.lay_out_project(self._project)
        workspace.write_stack_file(self._project, stack, {})

    def take_over(self) -> None:
        """Makes the stack where there is none, and takes up after an update that was killed (docs/operations.md)."""
        workspace.restore_checkpoint(self._state, self._stack)
        self._call("stack", "select", "--create", self._stack)
        subprocess.run(
            [self._cli, "cancel", "--yes", "--stack", self._stack],
            cwd=self._project,
            env=self._environment,
            capture_output=True,
        )
        export = self._call("stack", "export", "--stack", self._stack)
        if json.loads(export)["deployment"].get("pending_operations"):
            recover = [sys.executable, "-m", "loraserve", "recover", "--yes"]
            subprocess.run(recover, cwd=CHECKOUT, env=self._environment, input=export, text=True, check=False)
            self._call("refresh", "--yes", "--skip-preview", "--clear-pending-creates", "--stack", self._stack)

    def run(self, *arguments: str) -> None:
        """Shows the CLI's own output. Raises ProcessError; the CLI's message stands above it."""
        code = subprocess.call(
            [self._cli, *arguments, "--stack", self._stack], cwd=self._project, env=self._environment
        )
        if code:
            raise ProcessError(f"`pulumi {arguments[0]}` failed, see above; correct it and run the same command again")

    def output(self, name: str) -> Any:
        """One of the stack's outputs."""
        return json.loads(self._call("stack", "output", "--json", "--stack", self._stack))[name]

    def resource_count(self) -> int:
        exported = self._call("stack", "export", "--stack", self._stack)
        resources = json.loads(exported or "{}").get("deployment", {}).get("resources") or []
        return sum(1 for resource in resources if resource.get("custom"))

    def loraserve(self, *arguments: str) -> Any:
        """Runs `loraserve` against this stack's AWS; returns the YAML that it printed. Raises ProcessError."""
        command = [sys.executable, "-m", "loraserve", *arguments]
        done = subprocess.run(command, cwd=CHECKOUT, env=self._environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise ProcessError(f"`loraserve {arguments[0]}` failed, see above")
        return yaml.safe_load(done.stdout)

    def show(self, *arguments: str) -> None:
        """Runs `loraserve` on this stack and shows what it prints."""
        subprocess.call([sys.executable, "-m", "loraserve", *arguments], cwd=CHECKOUT, env=self._environment)

    def _call(self, *arguments: str) -> str:
        answer = subprocess.run(
            [self._cli, *arguments], cwd=self._project, env=self._environment, capture_output=True, text=True
        )
        if answer.returncode:
            raise ProcessError(f"`pulumi {' '.join(arguments)}` failed: {answer.stderr.strip()}")
        return answer.stdout
