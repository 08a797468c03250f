"""What a rule is: one function and its two examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Check = Callable[["Declared"], Iterable[str]]
"""Yields each thing that is wrong, and what to do about it."""


@dataclass(frozen=True)
class Declared:
    """A resource as the engine is asked for it; properties are spelled as the provider spells them."""

    type: str
    properties: Mapping[str, Any]
    protected: bool = False
    production: bool = True


@dataclass(frozen=True)
class Rule:
    name: str
    description: str
    check: Check
    violating: Declared
    conforming: Declared


RULES: list[Rule] = []


def rule(*, violating: Declared, conforming: Declared) -> Callable[[Check], Check]:
    """Adds the decorated function to the pack: its name is the rule's, its docstring says what must hold."""

    def add(check: Check) -> Check:
        RULES.append(Rule(check.__name__.replace("_", "-"), check.__doc__ or "", check, violating, conforming))
        return check

    return add


def listed(value: Any) -> list[Any]:
    """Several, one, or none of something, as policy documents and providers write it."""
    if value is None:
        return []
    return [value] if isinstance(value, str | Mapping) else list(value)


def is_on(value: Any) -> bool:
    """Some properties are booleans spelled as text."""
    return value is True or value == "true"


def each(properties: Mapping[str, Any], *keys: str) -> Iterator[Any]:
    """All items of the lists at these keys."""
    for key in keys:
        yield from listed(properties.get(key))
