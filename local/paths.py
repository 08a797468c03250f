"""Where things lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def cache_dir() -> Path:
    """Where built tools are kept: $LORASERVE_CACHE, else `loraserve` in the user's cache folder."""
    if chosen := os.environ.get("LORASERVE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loraserve"
