"""Property values as plain Python, and as they travel between the engine and its plugins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from google.protobuf import json_format, struct_pb2
from pulumi.runtime import rpc

Properties = dict[str, Any]

UNKNOWN: str = rpc.UNKNOWN
"""Stands for a value that only the apply will tell."""

_SIGNATURE = "4dabf18193072939515e22adb298388d"
_SECRET_SIGNATURE = "1b47061264138c4ac30d75fd1eb44270"
_RESOURCE_SIGNATURE = "5cf8f73096256a8f31e491e813e4eb8e"


def contains_unknown(value: Any) -> bool:
    """Whether any part of `value` is not known yet."""
    if isinstance(value, Mapping):
        return any(contains_unknown(item) for item in value.values())
    if isinstance(value, list):
        return any(contains_unknown(item) for item in value)
    return value == UNKNOWN


def secret(value: Any) -> Properties:
    """Marks an output as secret: the engine encrypts it in the state and hides it on screen."""
    return {_SIGNATURE: _SECRET_SIGNATURE, "value": value}


def resource_reference(urn: str, resource_id: str) -> Properties:
    """A resource as a property value; an empty id (in a preview) is one that is not known yet."""
    return {_SIGNATURE: _RESOURCE_SIGNATURE, "urn": urn, "id": resource_id or UNKNOWN}


def from_struct(struct: struct_pb2.Struct) -> Properties:
    """A protobuf struct as plain Python: secrets unwrapped, nulls left out, whole numbers as int."""
    return cast(Properties, _plain(json_format.MessageToDict(struct)))


def to_struct(properties: Mapping[str, Any], *secrets_of: struct_pb2.Struct) -> struct_pb2.Struct:
    """Plain Python as a protobuf struct, without None; what is secret in `secrets_of` is marked as secret here too."""
    present = {key: value for key, value in properties.items() if value is not None}
    for model in secrets_of:
        present = _with_secrets(present, json_format.MessageToDict(model))
    return json_format.ParseDict(present, struct_pb2.Struct())


def _is_secret(value: Any) -> bool:
    return isinstance(value, dict) and value.get(_SIGNATURE) == _SECRET_SIGNATURE


def _plain(value: Any) -> Any:
    if _is_secret(value):
        return _plain(value["value"])
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _with_secrets(value: Any, model: Any) -> Any:
    """`value` with every part marked as secret that is secret in `model`."""
    if _is_secret(value):
        return value
    if _is_secret(model):
        return secret(value)
    if isinstance(value, dict) and isinstance(model, dict):
        return {key: _with_secrets(item, model.get(key)) for key, item in value.items()}
    if isinstance(value, list) and isinstance(model, list):
        model = model + [None] * len(value)
        return [_with_secrets(item, part) for item, part in zip(value, model, strict=False)]
    return value
