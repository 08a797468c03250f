"""What the checks before the first resource found: `up` tells it and stops at failures, `loraserve preflight` reads it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import pulumi

from infra.errors import ConfigError
from loraserve.contract.checks import REPORT_VARIABLE, Check, CheckVerdict, to_json

T = TypeVar("T")


class Report:
    """Checks in the order in which they were made."""

    def __init__(self) -> None:
        self._checks: list[Check] = []

    def need(self, name: str, look: Callable[[], T], passed: Callable[[T], str]) -> T:
        """What the checks after this one cannot do without. Raises as `finish` does where it fails."""
        try:
            found = look()
        except ConfigError as error:
            self._add(name, CheckVerdict.FAIL, error.problems)
            self.finish()
            raise
        self._add(name, CheckVerdict.PASS, [passed(found)])
        return found

    def look(self, name: str, check: Callable[[], Iterable[str] | None], passed: str) -> None:
        """A check that yields warnings and raises ConfigError; `passed` is told where it has nothing to say."""
        before = len(self._checks)
        try:
            for warning in check() or ():
                self._add(name, CheckVerdict.WARN, [warning])
        except ConfigError as error:
            self._add(name, CheckVerdict.FAIL, error.problems)
        if len(self._checks) == before:
            self._add(name, CheckVerdict.PASS, [passed])

    def tell(self, name: str, found: str) -> None:
        """Something to know, such as the price."""
        self._add(name, CheckVerdict.PASS, [found])

    def finish(self) -> None:
        """Raises ConfigError for all failures at once; RunError, whatever was found, in a run that only checks."""
        if file := os.environ.get(REPORT_VARIABLE):
            Path(file).write_text(to_json(self._checks), encoding="utf-8")
            raise pulumi.RunError(f"{REPORT_VARIABLE} is set, so nothing was declared: what was found is in {file}")
        for check in self._checks:
            if check.verdict is CheckVerdict.WARN:
                pulumi.log.warn(check.found)
        if problems := [check.found for check in self._checks if check.verdict is CheckVerdict.FAIL]:
            raise ConfigError(problems)

    def _add(self, name: str, verdict: CheckVerdict, found: Iterable[str]) -> None:
        self._checks += [Check(name, verdict, one) for one in found]
