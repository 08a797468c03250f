"""The Pulumi CLI on one stack of one state folder, and this project's own command beside it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from local import commands
from local.commands import CommandError
from local.engine import plugins, receipt, workspace
from local.engine.cloud import Cloud
from local.engine.workspace import Cluster
from local.paths import CHECKOUT
from local.tools.toolchain import Tool, ensure
from loraserve.operator.stack import leftovers


class PulumiCli:
    """Runs in a project folder below `state`, with an environment that reaches this stack and nothing else."""

    def __init__(self, state: Path, stack: str, cloud: Cloud, cluster: Cluster) -> None:
        self._state = state
        self._cli = str(workspace.cli(state))
        self._stack = stack
        self._cloud = cloud
        self._project = state / "project"
        self._environment = workspace.environment(state, cloud, cluster)
        workspace.lay_out_project(self._project)
        workspace.write_stack_file(self._project, stack, {})

    def take_over(self) -> None:
        """Makes the stack where there is none, and takes up after an update that was killed (docs/operations.md)."""
        plugins.end(self._state / "pulumi")
        workspace.restore_checkpoint(self._state, self._stack)
        self._call("stack", "select", "--create", self._stack)
        with suppress(CommandError):  # nothing was running
            self._call("cancel", "--yes", "--stack", self._stack)
        export = self._call("stack", "export", "--stack", self._stack)
        if json.loads(export)["deployment"].get("pending_operations"):
            left = leftovers.find(self._stack, leftovers.StackState.read(export, self._stack), self._cloud.client)
            receipt.delete(left, self._cloud.client)
            self._call("refresh", "--yes", "--skip-preview", "--clear-pending-creates", "--stack", self._stack)

    def run(self, *arguments: str) -> None:
        """Shows the CLI's own output. Raises CommandError."""
        commands.shown([self._cli, *arguments, "--stack", self._stack], cwd=self._project, env=self._environment)

    def output(self, name: str) -> Any:
        """One of the stack's outputs."""
        return json.loads(self._call("stack", "output", "--json", "--stack", self._stack))[name]

    def resource_count(self) -> int:
        exported = self._call("stack", "export", "--stack", self._stack)
        resources = json.loads(exported or "{}").get("deployment", {}).get("resources") or []
        return sum(1 for resource in resources if resource.get("custom"))

    def loraserve(self, *arguments: str) -> Any:
        """Runs `loraserve` against this stack's AWS; returns the YAML that it printed. Raises CommandError."""
        command = _loraserve(*arguments)
        return yaml.safe_load(commands.output(command, cwd=CHECKOUT, env=self._environment, shows_errors=True))

    def show(self, *arguments: str) -> None:
        """Runs `loraserve` on this stack and shows what it prints. Raises CommandError."""
        commands.shown(_loraserve(*arguments), cwd=CHECKOUT, env=self._environment)

    def shell(self, command: Sequence[str], more: Mapping[str, str]) -> int:
        """Runs a command for which `loraserve`, `aws`, `kubectl` and `pulumi` mean this stack. Returns its exit code."""
        programs = self._state / "programs"
        programs.mkdir(exist_ok=True)
        own = programs / "loraserve"
        own.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(CHECKOUT))} exec {shlex.join(_loraserve())} "$@"\n')
        own.chmod(0o755)
        folders = [programs, Path(self._cli).parent, ensure(Tool.KUBECTL)[Tool.KUBECTL].parent]
        path = os.pathsep.join([*map(str, folders), self._environment.get("PATH", os.defpath)])
        stack_file = {"STACK_FILE": str(workspace.stack_file(self._project, self._stack))}
        return subprocess.run(
            command, env={**self._environment, **stack_file, **more, "PATH": path}, check=False
        ).returncode

    def _call(self, *arguments: str) -> str:
        return commands.output([self._cli, *arguments], cwd=self._project, env=self._environment)


def _loraserve(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "loraserve", *arguments]
