"""What a stack runs of this program, as one object: its output `release`, to be compared with another stack's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infra import charts, pinned_images, versions
from loraserve.planning import checkout


def describe(our_image: Any, vllm_image: str | None) -> dict[str, Any]:
    """Versions and images by name; `our_image` and a `vllm_image` of the stack's own are what its pods run."""
    project, digests = Path(__file__).parents[1], pinned_images.recorded()
    images = {}
    for reference in pinned_images.REFERENCES:
        repository, _, tag = reference.rpartition(":")
        images[repository] = "@".join(filter(None, (tag, digests.get(reference))))
    return {
        "commit": checkout.commit(project),
        "program": checkout.program(project),
        "kubernetes": versions.KUBERNETES,
        "nodes": versions.NODE_RELEASE,
        "vllm": vllm_image or versions.VLLM,
        "loraserve": our_image,
        "charts": {chart.name: chart.version for chart in charts.ALL},
        "images": images,
    }
