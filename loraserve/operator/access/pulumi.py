"""Pulumi as an operator has it: one stack, through its CLI. `loraserve` itself needs none."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraserve.errors import LoraserveError


class PulumiFailed(LoraserveError):
    """Pulumi is not there, or does not know the stack."""


@dataclass(frozen=True)
class Pulumi:
    """`folder` is the project's, `profile` one of ~/.aws/config instead of the environment's credentials."""

    folder: Path
    stack: str
    profile: str | None = None

    @staticmethod
    def installed() -> bool:
        return shutil.which("pulumi") is not None

    def outputs(self) -> dict[str, Any]:
        """Of the stack's last `up`. Raises PulumiFailed."""
        done = self._run("stack", "output", "--json", capture_output=True)
        if done.returncode:
            raise PulumiFailed(f"pulumi stack output --stack {self.stack}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def preview(self) -> None:
        """On stderr, as it comes. Raises PulumiFailed."""
        if self._run("preview", "--non-interactive", stdout=2).returncode:
            raise PulumiFailed(f"`pulumi preview --stack {self.stack}` failed: see above; its stack file is edited")

    def _run(self, *words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | ({"AWS_PROFILE": self.profile} if self.profile else {})
        command = ["pulumi", *words, "--stack", self.stack]
        try:
            return subprocess.run(command, cwd=self.folder, env=environment, text=True, check=False, **options)
        except FileNotFoundError:
            raise PulumiFailed(
                "pulumi is not installed here; name buckets with --bucket, --from-bucket, --to-bucket"
            ) from None
