"""What a stack runs of this program, as one object: its output `release`, to be compared with another stack's."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from infra import charts, pinned_images, versions


def describe(our_image: Any, vllm_image: str | None) -> dict[str, Any]:
    """Versions and images by name; `our_image` and a `vllm_image` of the stack's own are what its pods run."""
    digests = pinned_images.recorded()
    images = {}
    for reference in pinned_images.REFERENCES:
        repository, _, tag = reference.rpartition(":")
        images[repository] = "@".join(filter(None, (tag, digests.get(reference))))
    return {
        "commit": commit(Path(__file__).parent),
        "kubernetes": versions.KUBERNETES,
        "nodes": versions.NODE_RELEASE,
        "vllm": vllm_image or versions.VLLM,
        "loraserve": our_image,
        "charts": {chart.name: chart.version for chart in charts.ALL},
        "images": images,
    }


def commit(folder: Path) -> str | None:
    """Of the checkout, `-dirty` where files differ from it; None where there is no checkout."""
    words = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
