"""The only reader of the stack's configuration: it is validated once, before anything is changed.

The settings themselves, and the rules between them, are in `loraserve/planning/stack_settings.py`. Checks that need AWS
(account, zones) are in `preflight.py`.
"""

from __future__ import annotations

from typing import Any

from pulumi.runtime import config as runtime_config

from infra.errors import ConfigError
from infra.names import PROJECT
from loraserve.planning.stack_settings import InvalidSettings, Settings, decode, parse


def load() -> Settings:
    """Reads this stack's configuration. Raises ConfigError with every problem found."""
    values = _configured(f"{PROJECT}:")
    if "hubToken" in values and not runtime_config.is_config_secret(f"{PROJECT}:hubToken"):
        raise ConfigError(
            [f"{PROJECT}:hubToken stands in clear in the stack file: `pulumi config set --secret hubToken`"]
        )
    try:
        return parse(values)
    except InvalidSettings as error:
        raise ConfigError(error.problems) from None


def allowed_account() -> str:
    """The one AWS account this stack may touch (`aws:allowedAccountIds`; the provider enforces it too)."""
    ids = decode(_configured("aws:").get("allowedAccountIds", "[]"))
    if not isinstance(ids, list) or len(ids) != 1:
        raise ConfigError(["aws:allowedAccountIds must name exactly one account: the one this stack file is for"])
    return str(ids[0])


def _configured(namespace: str) -> dict[str, Any]:
    """All configured values of a namespace; pulumi.Config reads one key at a time, which cannot find a misspelt one."""
    merged = runtime_config.get_config_env() | runtime_config.CONFIG.get()
    return {key.removeprefix(namespace): value for key, value in merged.items() if key.startswith(namespace)}
