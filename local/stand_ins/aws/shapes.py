"""Between Pulumi's property shapes (camelCase, plain tags) and those of the AWS APIs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

_TO_AWS = {"id": "ID", "sseAlgorithm": "SSEAlgorithm"}
_FROM_AWS = {aws: pulumi for pulumi, aws in _TO_AWS.items()}
_MAPS = frozenset({"tags", "tagsAll", "labels"})


def pascal(value: Any) -> Any:
    """`{"cidrBlock": ...}` as `{"CidrBlock": ...}`, at every depth; tags become AWS's list of pairs."""
    return _renamed(value, lambda key: _TO_AWS.get(key) or key[0].upper() + key[1:], to_aws=True)


def camel(value: Any) -> Any:
    """The reverse of `pascal`."""
    return _renamed(value, lambda key: _FROM_AWS.get(key) or key[0].lower() + key[1:], to_aws=False)


def _renamed(value: Any, rename: Callable[[str], str], to_aws: bool) -> Any:
    if isinstance(value, list):
        return [_renamed(item, rename, to_aws) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if not isinstance(value, Mapping):
        return value
    return {
        rename(key): (tag_list(item) if to_aws else tag_map(item))
        if key in ("tags", "Tags")
        else _renamed(item, rename, to_aws)
        for key, item in value.items()
    }


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as the pairs that most AWS APIs take."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tag_map(tags: Iterable[Mapping[str, str]] | None) -> dict[str, str]:
    """Tags from AWS's pairs, without AWS's own."""
    return {tag["Key"]: tag["Value"] for tag in tags or [] if not tag["Key"].startswith("aws:")}


def pick(source: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The named entries of `source` that are there."""
    return {key: source[key] for key in keys if source.get(key) is not None}


def observed(wanted: Any, found: Any, key: str = "") -> Any:
    """`found` cut down to what `wanted` speaks of, and `wanted` itself where the two mean the same."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping) and key not in _MAPS:
        return {name: observed(item, found[name], name) if name in found else item for name, item in wanted.items()}
    if isinstance(wanted, list) and isinstance(found, list):
        if _sorted(wanted) == _sorted(found):
            return wanted
        if len(wanted) == len(found):
            return [observed(*pair) for pair in zip(wanted, found, strict=True)]
    return wanted if _same(wanted, found) else found


def _same(wanted: Any, found: Any) -> bool:
    """Whether two spellings of one value agree: numbers and flags as text, JSON with other spacing."""
    if wanted == found or str(wanted).lower() == str(found).lower():
        return True
    return _parsed_json(wanted) is not None and _parsed_json(wanted) == _parsed_json(found)


def _parsed_json(value: Any) -> Any:
    """A JSON document given as text or as the structure itself; None where it is neither."""
    if not isinstance(value, str):
        return value if isinstance(value, Mapping | list) else None
    try:
        return json.loads(value)
    except ValueError:
        return None


def _sorted(values: list[Any]) -> list[str]:
    return sorted(json.dumps(value, sort_keys=True) for value in values)
