"""A stack's settings from its files, for commands that need no Pulumi: defaults from Pulumi.yaml, values from
Pulumi.{stack}.yaml. What is encrypted there stays unknown; no sum depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from loraserve.contract.addresses import PROJECT
from loraserve.planning.stack_settings import InvalidSettings, Settings, parse


def read(path: Path) -> Settings:
    """The settings of a stack file, which lies beside the project's Pulumi.yaml. Raises InvalidSettings."""
    defaults = _config(path.with_name("Pulumi.yaml"))
    values = {key: declared.get("default") for key, declared in defaults.items() if isinstance(declared, dict)}
    given = {key: value for key, value in _config(path).items() if not _is_secret(value)}
    return parse({key: value for key, value in (values | given).items() if value is not None})


def _config(path: Path) -> dict[str, Any]:
    """The project's own keys, without their namespace."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = (document or {}).get("config") or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        raise InvalidSettings([f"{path} is not a readable stack file ({error}): name a Pulumi.<stack>.yaml"]) from None
    prefix = f"{PROJECT}:"
    return {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}


def _is_secret(value: object) -> bool:
    return isinstance(value, dict) and set(value) == {"secure"}
