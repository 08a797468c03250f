"""A stack's settings from its files, for commands that need no Pulumi: defaults from Pulumi.yaml, values from
Pulumi.{stack}.yaml. The hub token, which is encrypted there, stays unknown; so do other secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from loraserve.contract.addresses import PROJECT
from loraserve.planning.alerting import ENCRYPTED, without_encryption
from loraserve.planning.settings_parser import TOKEN_IN_CLEAR, InvalidSettings, in_clear, parse
from loraserve.planning.stack_settings import Settings

PROJECT_FILE = "Pulumi.yaml"
LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast where libyaml is there, as it is in every wheel."""
_OWN = f"{PROJECT}:"
_TOKEN = f"{_OWN}hubToken"
_USUAL_REGION = "eu-central-1"


def read(path: Path, text: str | None = None) -> Settings:
    """The settings of a stack file, which lies beside the project's Pulumi.yaml. Raises InvalidSettings.

    `text` is what the file is about to say, where that is another.
    """
    declared, config = config_of(path.with_name(PROJECT_FILE)), config_of(path, text)
    defaults = {
        key: entry["default"] for key, entry in declared.items() if isinstance(entry, dict) and "default" in entry
    }
    encrypted = [key for key, value in config.items() if _is_encrypted(value)]
    found = [
        f"{key} is encrypted in {path}, and it is no secret: set it in clear"
        for key in encrypted
        if key.startswith(_OWN) and key != _TOKEN
    ]
    if _TOKEN in config and _TOKEN not in encrypted:
        found.append(TOKEN_IN_CLEAR)
    given = {key: value for key, value in config.items() if key not in (*encrypted, _TOKEN)}
    values = {key.removeprefix(_OWN): value for key, value in (defaults | given).items() if key.startswith(_OWN)}
    values |= {key: without_encryption(value) for key, value in values.items()}
    if template := values.get("chatTemplateFile"):
        values["chatTemplateFile"] = str(path.parent / str(template))
    accounts = config.get("aws:allowedAccountIds")
    settings = parse(
        values, allowed_accounts=[str(a) for a in accounts] if isinstance(accounts, list) else [], found=found
    )
    if bare := [key for key, secrets in settings.kept_secret.items() if set(secrets) - {ENCRYPTED}]:
        raise InvalidSettings([in_clear(key) for key in bare])
    return settings


def text_of(path: Path) -> str:
    """Raises InvalidSettings."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _not_a_stack_file(path, str(error)) from None


def config_of(path: Path, text: str | None = None) -> dict[str, Any]:
    """The `config` of a Pulumi file, by full key. Raises InvalidSettings."""
    try:
        document = yaml.load(text_of(path) if text is None else text, Loader=LOADER)
    except yaml.YAMLError as error:
        raise _not_a_stack_file(path, str(error)) from None
    config = document.get("config") if isinstance(document, dict) else None
    if not isinstance(config, dict):
        raise _not_a_stack_file(path, "it has no `config`")
    return {str(key): value for key, value in config.items()}


def region_of(path: Path) -> str:
    """Where the stack is, as `aws:region` says, else its usual one. Raises InvalidSettings."""
    return str(config_of(path).get("aws:region", _USUAL_REGION))


def _is_encrypted(value: object) -> bool:
    return isinstance(value, dict) and set(value) == {"secure"}


def _not_a_stack_file(path: Path, reason: str) -> InvalidSettings:
    return InvalidSettings([f"{path} cannot be read as a stack file ({reason}): name a Pulumi.<stack>.yaml"])
