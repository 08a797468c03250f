"""Which program a checkout holds."""

import hashlib
import subprocess
from pathlib import Path

DIRTY = "-dirty"
PROGRAM = ("__main__.py", "Pulumi.yaml", "infra", "loraserve", "images", "requirements.txt")
"""What `up` runs and builds; stack files are not of it."""


def commit(folder: Path) -> str | None:
    """`-dirty` where files differ from it; None where there is no checkout."""
    return _git(folder, "describe", "--always", "--abbrev=40", "--exclude=*", f"--dirty={DIRTY}")


def program(folder: Path) -> str | None:
    """The start of a digest of the committed program alone: the same in a commit that changes a stack file.

    `-dirty` where files differ from it; None where there is no checkout. `folder` is the project's.
    """
    listed = _git(folder, "ls-tree", "HEAD", "--", *PROGRAM)
    if not listed:
        return None
    edited = DIRTY if _git(folder, "status", "--porcelain", "--", *PROGRAM) else ""
    return hashlib.sha256(listed.encode()).hexdigest()[:12] + edited


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
