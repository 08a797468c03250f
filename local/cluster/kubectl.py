"""kubectl, on a kubeconfig of this stack's or on the user's own."""

from __future__ import annotations

from pathlib import Path

from local import commands
from local.tools.toolchain import Tool, ensure


def command(kubeconfig: Path | None, *arguments: str) -> list[str]:
    """Its command line; without a kubeconfig it uses the user's own."""
    place = ["--kubeconfig", str(kubeconfig)] if kubeconfig else []
    return [str(ensure(Tool.KUBECTL)[Tool.KUBECTL]), *place, *arguments]


def kubectl(kubeconfig: Path | None, *arguments: str, stdin: str | None = None) -> str:
    """What it prints. Raises CommandError."""
    return commands.output(command(kubeconfig, *arguments), stdin=stdin)
