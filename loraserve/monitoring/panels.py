"""What a dashboard is made of. The same definitions are drawn by Grafana and by the page of `loraserve dashboard`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Unit(StrEnum):
    """Grafana's own identifiers."""

    SECONDS = "s"
    SHARE = "percentunit"
    """0 to 1."""
    PERCENT = "percent"
    """0 to 100."""
    REQUESTS_PER_SECOND = "reqps"
    PER_SECOND = "cps"
    COUNT = "short"
    MEBIBYTES = "mbytes"
    WATT = "watt"
    CELSIUS = "celsius"
    DOLLARS = "currencyUSD"


class Look(StrEnum):
    LINES = "lines"
    STACKED = "stacked"
    NUMBER = "number"
    """The latest value, of each line one."""


@dataclass(frozen=True)
class Query:
    expression: str
    """PromQL; `$__rate_interval` is the window of a rate, `$__range` the time that the page shows."""
    legend: str
    """What a line is called; `{{label}}` is that label's value."""


@dataclass(frozen=True)
class Panel:
    title: str
    unit: Unit
    queries: tuple[Query, ...]
    when_bad: str
    """What a bad value looks like, and what to do then."""
    warn: float | None = None
    """From here on it looks bad, in the panel's unit."""
    look: Look = Look.LINES
    maximum: float | None = None


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    panels: tuple[Panel, ...]
