"""A stack that stands in AWS, as the program finds it."""

from __future__ import annotations

from typing import Any

from infra import names, versions

SYSTEM = f"{names.SYSTEM_NODE_GROUP}-0123abc"


def node_group(least: int, desired: int, most: int, **changes: Any) -> dict[str, Any]:
    sizes = {"minSize": least, "desiredSize": desired, "maxSize": most}
    return {"scalingConfigs": [sizes], "status": "ACTIVE", "releaseVersion": versions.NODE_RELEASE} | changes


def standing(
    *, gpu: dict[str, Any] | None = None, system: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """dev as shipped in zones a and b; other node groups, and what else is otherwise."""
    groups = {names.GPU_NODE_GROUP: gpu or node_group(0, 0, 2), SYSTEM: system or node_group(1, 1, 2)}
    stack = {"cluster": "loraserve-dev", "version": versions.KUBERNETES, "zones": ["eu-central-1a", "eu-central-1b"]}
    return stack | {"groups": groups} | changes
