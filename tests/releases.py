"""The releases of this project, each a commit of its history."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

import pytest

from local.paths import CHECKOUT


@dataclass(frozen=True)
class Release:
    tag: str
    commit: str

    @property
    def version(self) -> str:
        return self.tag.removeprefix("v")

    def __str__(self) -> str:
        return self.tag


def _read() -> list[Release]:
    lines = (CHECKOUT / "tests/releases.txt").read_text().splitlines()
    return [Release(*line.split()) for line in lines if not line.startswith("#")]


RELEASES = _read()
"""Oldest first."""


def git(*arguments: str) -> bytes:
    """What it prints. Skips the test where this checkout lacks the history."""
    if not (CHECKOUT / ".git").exists():
        pytest.skip("this is not a clone: there is no history to look into")
    command = ["git", "-C", str(CHECKOUT)]
    shallow = subprocess.run([*command, "rev-parse", "--is-shallow-repository"], check=True, capture_output=True)
    if shallow.stdout.strip() == b"true":
        pytest.skip("this clone is shallow: `git fetch --unshallow` brings the history")
    return subprocess.run([*command, *arguments], check=True, capture_output=True).stdout
