"""What a check found, told by the program to `loraserve preflight`, and by commands to people."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

REPORT_VARIABLE = "LORASERVE_PREFLIGHT"
"""Names the file to which a run of the program that only checks writes what it found."""


class CheckVerdict(StrEnum):
    PASS = "pass"
    SKIP = "skip"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    name: str
    verdict: CheckVerdict
    found: str
    """One line; of a warning or a failure, with the next step."""


def to_json(checks: Iterable[Check]) -> str:
    return json.dumps([asdict(check) for check in checks])


def from_json(text: str) -> list[Check]:
    return [Check(one["name"], CheckVerdict(one["verdict"]), one["found"]) for one in json.loads(text)]
