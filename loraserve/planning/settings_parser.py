"""From configuration values to `Settings`, with every problem found in one error."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError, create_model
from pydantic.alias_generators import to_camel

from loraserve.contract.addresses import PROJECT
from loraserve.contract.document import explain
from loraserve.errors import LoraserveError
from loraserve.planning.settings_rules import RULES, local_beside_a_real_account
from loraserve.planning.stack_settings import Settings

_FIELDS = {to_camel(field): field for field in Settings.model_fields}
"""By configuration key."""
_SECRET = {"hubToken", "alerting", "remoteWrite"}

TOKEN_IN_CLEAR = f"{PROJECT}:hubToken stands in clear in the stack file: `pulumi config set --secret hubToken`"


class InvalidSettings(LoraserveError):
    """The stack's configuration cannot be deployed. Each problem names its key and the fix."""

    def __init__(self, problems: Sequence[str]) -> None:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"the stack's configuration needs attention:\n{listed}")
        self.problems = tuple(problems)


def parse(values: Mapping[str, Any], *, allowed_accounts: Collection[str] = (), found: Sequence[str] = ()) -> Settings:
    """Validates configuration values by key without namespace; structured ones may still be JSON text.

    `allowed_accounts` are those of `aws:allowedAccountIds`, `found` is what is known to be wrong already. Raises
    InvalidSettings with every problem: rules between settings are judged as far as their values are valid.
    """
    decoded = {key: decode(value) for key, value in values.items()}
    problems = [*found, *(_unknown_key(key) for key in decoded if key not in _FIELDS)]
    known = {key: value for key, value in decoded.items() if key in _FIELDS}
    try:
        settings = Settings.model_validate(known, by_alias=True, by_name=False)
    except ValidationError as error:
        problems += [f"{PROJECT}:{line}" for line in explain(error, secret=_SECRET).splitlines()]
        settings = _without_invalid(known, {_FIELDS[str(detail["loc"][0])] for detail in error.errors()})
    problems += _broken_rules(settings, allowed_accounts)
    if problems:
        raise InvalidSettings(problems)
    return settings


def in_clear(key: str) -> str:
    """What is wrong with a structured setting whose secrets are not encrypted."""
    return (
        f"{PROJECT}:{key} has addresses or passwords in clear in the stack file: set each with "
        f"`pulumi config set --secret --path {key}.…`"
    )


def decode(value: Any) -> Any:
    """A value as the CLI hands it over, where structured ones are JSON text."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        with suppress(json.JSONDecodeError):
            return json.loads(value)
    return value


def _broken_rules(settings: Settings, allowed_accounts: Collection[str]) -> Iterator[str]:
    for rule in RULES:
        with suppress(_InvalidField):
            yield from rule(settings)
    with suppress(_InvalidField):
        yield from local_beside_a_real_account(settings, allowed_accounts)


class _InvalidField(Exception):
    """A setting was read that has no valid value."""


class _IncompleteSettings(Settings):
    def __getattr__(self, name: str) -> Any:
        if name in Settings.model_fields:
            raise _InvalidField(name)
        raise AttributeError(name)


def _without_invalid(values: Mapping[str, Any], invalid: Collection[str]) -> Settings:
    """Settings that lack these fields; reading one of them raises _InvalidField."""
    valid: Any = {
        name: (field.annotation, field) for name, field in Settings.model_fields.items() if name not in invalid
    }
    part = create_model("ValidSettings", __config__=Settings.model_config, **valid)
    kept = {key: value for key, value in values.items() if _FIELDS[key] not in invalid}
    checked = part.model_validate(kept, by_alias=True, by_name=False)
    incomplete = _IncompleteSettings.model_construct(**dict(checked))
    for name in invalid:  # model_construct fills in defaults
        vars(incomplete).pop(name, None)
    return incomplete


def _unknown_key(key: str) -> str:
    close = difflib.get_close_matches(key, _FIELDS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(sorted(_FIELDS))}"
    return f"{PROJECT}:{key} is not a known key: {hint} (rename it, or `pulumi config rm {key}`)"
