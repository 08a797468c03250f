"""The real Pulumi CLI on one stack of a project folder, and what each of its runs did."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Refused(Exception):
    """The CLI ended with an error; the text is all that it printed."""


@dataclass(frozen=True)
class Changes:
    """What one run did: operation by `type name`, how many resources met each operation, and all that was printed."""

    operations: dict[str, str]
    counts: dict[str, int]
    output: str

    @property
    def touched(self) -> dict[str, str]:
        """Everything but what stayed the same or was only read."""
        return {name: op for name, op in self.operations.items() if op not in ("same", "read")}

    @classmethod
    def read(cls, events: Path, output: str) -> Changes:
        """From the events that the engine has written, one JSON object a line."""
        operations: dict[str, str] = {}
        counts: dict[str, int] = {}
        for event in map(json.loads, events.read_text().splitlines()):
            if metadata := event.get("resourcePreEvent", {}).get("metadata"):
                kind, name = metadata["urn"].split("::")[2:]
                replaced = metadata["op"] in ("create-replacement", "delete-replaced")
                operations[f"{kind.split('$')[-1]} {name}"] = "replace" if replaced else metadata["op"]
            counts |= event.get("summaryEvent", {}).get("resourceChanges", {})
        return cls(operations, counts, output)


class PulumiStack:
    """One stack; it is made where it is missing. `environment` is the CLI's whole environment."""

    def __init__(self, project: Path, name: str, cli: Path, environment: Mapping[str, str]) -> None:
        self.project = project
        self.name = name
        self._cli = cli
        # Without debug commands it writes no events.
        self.environment = {**environment, "PULUMI_DEBUG_COMMANDS": "true"}
        self.select()

    def select(self) -> None:
        """Makes the stack where it is missing. Raises Refused."""
        self._checked("stack", "select", "--create", self.name)

    def up(self, *flags: str) -> Changes:
        """Raises Refused, as the next three do."""
        return self._changes("up", "--yes", "--skip-preview", *flags)

    def preview(self, *flags: str) -> Changes:
        return self._changes("preview", *flags)

    def refresh(self) -> Changes:
        return self._changes("refresh", "--yes", "--skip-preview")

    def destroy(self) -> Changes:
        return self._changes("destroy", "--yes", "--skip-preview")

    def outputs(self) -> dict[str, Any]:
        """Of the last `up`, secrets shown."""
        return json.loads(self._checked("stack", "output", "--json", "--show-secrets", "--stack", self.name))

    def set_secret(self, key: str, value: str) -> None:
        self._checked("config", "set", "--secret", key, value, "--stack", self.name)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the CLI on this stack, whatever comes of it."""
        return self._run(*self.command(*arguments))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The CLI in a process group of its own, for a test that looks at it, or kills it, while it runs."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.project,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def command(self, *arguments: str) -> list[str]:
        return [str(self._cli), *arguments, "--stack", self.name, "--non-interactive"]

    def _changes(self, *arguments: str) -> Changes:
        events = self.project / f"{self.name}.events"
        events.unlink(missing_ok=True)
        output = self._checked(*arguments, "--event-log", str(events), "--stack", self.name)
        return Changes.read(events, output)

    def _checked(self, *arguments: str) -> str:
        done = self._run(str(self._cli), *arguments, "--non-interactive")
        if done.returncode:
            raise Refused(done.stdout + done.stderr)
        return done.stdout

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=self.project, env=self.environment, text=True, capture_output=True)
