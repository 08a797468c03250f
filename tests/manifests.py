"""What the program declares in Kubernetes, as a cluster's API takes it. Charts are left out: the plugin renders them."""

from __future__ import annotations

from typing import Any

from tests.unit.declared import Program

Manifest = dict[str, Any]


def manifests(program: Program) -> list[Manifest]:
    """Named as the plugin would name them."""
    found: list[Manifest] = []
    for resource in program.resources:
        inputs = _whole(resource.inputs)
        if "apiVersion" in inputs and "kind" in inputs:
            found.append(inputs | {"metadata": {"name": resource.name} | inputs.get("metadata", {})})
    return found


def _whole(value: Any) -> Any:
    """The engine's protocol knows floats only."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
