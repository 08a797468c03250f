"""kubectl, on a kubeconfig of this stack's or on the user's own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from local.processes import ProcessError
from local.toolchain import Tool, ensure


def kubectl(kubeconfig: Path | None, *arguments: str, stdin: str | None = None) -> str:
    """What kubectl prints; without a kubeconfig it uses the user's own. Raises ProcessError."""
    place = ["--kubeconfig", str(kubeconfig)] if kubeconfig else []
    command = [str(ensure(Tool.KUBECTL)[Tool.KUBECTL]), *place, *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise ProcessError(f"`kubectl {arguments[0]}` failed: {done.stderr.strip()}")
    return done.stdout
