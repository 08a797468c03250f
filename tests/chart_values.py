"""Which values each chart takes, by our own record of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

RECORD: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
"""`version` and `values` by chart; see the file's first lines."""
_TYPES = {"boolean": bool, "list": list, "map": dict, "number": (int, float), "string": str}


def problems(values: Mapping[str, Any], taken: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Why a chart that takes these does not take the values: keys that it has not, and wrong types."""
    for key, value in values.items():
        expected, path = taken.get(key), f"{at}{key}"
        if expected is None:
            yield f"{path}: no such key"
        elif isinstance(expected, str):
            if not isinstance(value, _TYPES[expected]):
                yield f"{path}: {value!r} is no {expected}"
        elif isinstance(value, dict):
            yield from problems(value, expected, f"{path}/")
        else:
            yield f"{path}: {value!r} is no map"


def record_errors(taken: Mapping[str, Any], defaults: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """What the record says and a chart's own values.yaml does not; a key without a default is of any type."""
    for key, expected in taken.items():
        path = f"{at}{key}"
        if key not in defaults:
            yield f"{path}: the chart has no such key"
        elif isinstance(expected, dict):
            yield from record_errors(expected, defaults[key], f"{path}/")
        elif defaults[key] is not None and not isinstance(defaults[key], _TYPES[expected]):
            yield f"{path}: the chart's own is {defaults[key]!r}, no {expected}"
