"""The only reader of the stack's configuration: it is validated once, before anything is changed.

The settings themselves are in `loraserve/planning/stack_settings.py`, the rules between them in `settings_rules.py` beside
it. Checks that need AWS (account, zones) are in `preflight.py`.
"""

from __future__ import annotations

from typing import Any

import pulumi
from pulumi.runtime import config as runtime_config

from infra.errors import ConfigError
from infra.names import PROJECT
from loraserve.contract.addresses import stack_name_problem
from loraserve.planning.settings_parser import TOKEN_IN_CLEAR, InvalidSettings, decode, in_clear, parse
from loraserve.planning.stack_settings import Settings


def load() -> Settings:
    """Reads this stack's configuration. Raises ConfigError with every problem found."""
    values, accounts, found = _configured(f"{PROJECT}:"), _allowed_accounts(), []
    if len(accounts) != 1:
        found.append("aws:allowedAccountIds must name exactly one account: the one this stack file is for")
    if "hubToken" in values and not runtime_config.is_config_secret(f"{PROJECT}:hubToken"):
        found.append(TOKEN_IN_CLEAR)
    if problem := stack_name_problem(pulumi.get_stack()):
        found.append(problem)
    try:
        settings = parse(values, allowed_accounts=accounts, found=found)
    except InvalidSettings as error:
        raise ConfigError(error.problems) from None
    kept = [key for key, secrets in settings.kept_secret.items() if secrets]
    if bare := [key for key in kept if not runtime_config.is_config_secret(f"{PROJECT}:{key}")]:
        raise ConfigError([in_clear(key) for key in bare])
    return settings


def allowed_account() -> str:
    """The one AWS account this stack may touch, as `load` found it (the provider enforces it too)."""
    (account,) = _allowed_accounts()
    return account


def _allowed_accounts() -> list[str]:
    ids = decode(_configured("aws:").get("allowedAccountIds", "[]"))
    return [str(account) for account in ids] if isinstance(ids, list) else []


def _configured(namespace: str) -> dict[str, Any]:
    """All configured values of a namespace; pulumi.Config reads one key at a time, which cannot find a misspelt one."""
    merged = runtime_config.get_config_env() | runtime_config.CONFIG.get()
    return {key.removeprefix(namespace): value for key, value in merged.items() if key.startswith(namespace)}
