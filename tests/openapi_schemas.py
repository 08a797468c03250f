"""JSON schemas, one a kind, of what an API server says of itself: its own kinds and those of custom resources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from local.cluster.kubectl import kubectl

NAMES = "{{ .Group }}_{{ .ResourceKind }}_{{ .ResourceAPIVersion }}.json"
"""As kubeconform calls a kind's file; the core group it calls by its version."""
_PREFIX = "#/components/schemas/"


def write(kubeconfig: Path, folder: Path) -> int:
    """One file for each kind in OpenAPI v3; a field that a kind does not know is an error. Returns how many."""
    written = 0
    for path, place in _get(kubeconfig, "/openapi/v3")["paths"].items():
        document = _get(kubeconfig, place["serverRelativeURL"])
        definitions: dict[str, Any] = {
            name: _strict(schema) for name, schema in document.get("components", {}).get("schemas", {}).items()
        }
        for name, schema in definitions.items():
            for kind in schema.get("x-kubernetes-group-version-kind", []):
                version, group = kind["version"], kind["group"]
                if path not in (f"api/{version}", f"apis/{group}/{version}"):
                    continue  # what all groups share names all of them
                file = folder / f"{group or version}_{kind['kind'].lower()}_{version}.json"
                file.write_text(json.dumps({"$ref": f"#/$defs/{name}", "$defs": definitions}))
                written += 1
    return written


def _get(kubeconfig: Path, url: str) -> dict[str, Any]:
    return json.loads(kubectl(kubeconfig, "get", "--raw", url))


def _strict(schema: Any) -> Any:
    """The same, closed where it names its fields and opens itself to no others."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _strict(value) for key, value in schema.items()}
    if isinstance(reference := closed.get("$ref"), str):
        closed["$ref"] = reference.replace(_PREFIX, "#/$defs/")
    opens = "additionalProperties" in closed or closed.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(closed.get("properties"), dict) and not opens:
        closed["additionalProperties"] = False
    return closed
