"""Panels as the page draws them: figures of plotly.js, and numbers in words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import zip_longest
from typing import Any

from loraserve.monitoring.panels import Look, Panel, Query, Unit
from loraserve.operator.access.prometheus import Series

_AXES = {
    Unit.SECONDS: ("~s", "", "s"),
    Unit.SHARE: (".3~%", "", ""),
    Unit.PERCENT: (",~r", "", " %"),
    Unit.REQUESTS_PER_SECOND: (",~r", "", " req/s"),
    Unit.PER_SECOND: (",~r", "", "/s"),
    Unit.COUNT: (",~r", "", ""),
    Unit.MEBIBYTES: (",~r", "", " MiB"),
    Unit.WATT: (",~r", "", " W"),
    Unit.CELSIUS: (",~r", "", " °C"),
    Unit.DOLLARS: (",~r", "$", ""),
}
"""How d3 writes a number, and what stands before and behind it."""
_COLOURS = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#17becf",
    "#bcbd22",
    "#7f7f7f",
    "#393b79",
)
"""Not red, which is the line from which on it looks bad."""
_BAD = "#d62728"
_FEW = 5
"""Lines that are all told apart."""
Lines = Iterable[tuple[Query, Sequence[Series]]]


def figure(panel: Panel, found: Lines, start: float, end: float, step: float) -> dict[str, Any]:
    """`data` and `layout` of plotly.js; without data where there is nothing to draw."""
    style, before, behind = _AXES[panel.unit]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name(query, series),
            "line": {"color": _COLOURS[number % len(_COLOURS)], "width": 2},
            "hovertemplate": f"{before}%{{y:{_rounded(style)}}}{behind}",
            **_points(series, step),
            **({"stackgroup": "all"} if panel.look is Look.STACKED else {}),
        }
        for number, (query, series) in enumerate(_telling(_each(found)))
    ]
    layout = {
        "height": 260,
        "margin": {"l": 20, "r": 12, "t": 8, "b": 28},
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "hovermode": "x unified",
        "showlegend": True,
        "legend": {"orientation": "h", "y": -0.18, "yanchor": "top"},
        "xaxis": {
            "type": "date",
            "range": [_moment(start), _moment(end)],
            "tickformat": "%H:%M" if end - start <= 86400 else "%d %b",
            "gridcolor": "#f0f0f0",
            "ticklabelstandoff": 4,
        },
        "yaxis": {
            "range": [0, 1.05 * _top(panel, [line["y"] for line in data])],
            "tickformat": style,
            "tickprefix": before,
            "ticksuffix": behind,
            "automargin": True,
            "gridcolor": "#e5e5e5",
        },
    }
    if panel.warn is not None:
        across = {"xref": "paper", "x0": 0, "x1": 1, "y0": panel.warn, "y1": panel.warn}
        layout["shapes"] = [{"type": "line", "line": {"color": _BAD, "width": 1.5, "dash": "dash"}, **across}]
    return {"data": data, "layout": layout}


def _top(panel: Panel, lines: Sequence[Sequence[float | None]]) -> float:
    """Of the axis. From where on it looks bad is seen once it is near: it flattens no line far below it."""
    if panel.maximum is not None:
        return panel.maximum
    known = [[value or 0 for value in line] for line in lines]
    if panel.look is Look.STACKED:
        known = [[sum(at) for at in zip_longest(*known, fillvalue=0)]]
    highest = max((value for line in known for value in line), default=0)
    if panel.warn is not None and highest > panel.warn / 3:
        return max(highest, panel.warn)
    return highest or panel.warn or 1


def numbers(panel: Panel, found: Lines) -> list[dict[str, Any]]:
    """The latest value of each line, in words; `bad` where the panel says that it looks so."""
    return [
        {
            "name": name(query, series),
            "text": in_words(series.latest, panel.unit),
            "bad": panel.warn is not None and series.latest >= panel.warn,
        }
        for query, series in _each(found)
        if math.isfinite(series.latest)
    ]


def name(query: Query, series: Series) -> str:
    """What a line is called."""
    return re.sub(r"{{(\w+)}}", lambda label: series.labels.get(label[1], ""), query.legend).strip()


def in_words(value: float, unit: Unit) -> str:
    match unit:
        case Unit.SHARE:
            return f"{value:.3g}" if value > 1 else f"{value * 100:.3g}%"
        case Unit.SECONDS:
            return _duration(value)
        case Unit.DOLLARS:
            return f"${value:,.2f}"
        case Unit.COUNT:
            # Prometheus extrapolates what it counts: 1.01 is 1.
            return f"{value:,.0f}" if value >= 100 or abs(value - round(value)) < 0.05 else f"{value:.2f}"
        case _:
            return f"{value:,.3g}{_AXES[unit][2]}"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.3g} s"


def _each(found: Lines) -> Iterable[tuple[Query, Series]]:
    for query, many in found:
        for series in sorted(many, key=lambda each: sorted(each.labels.items())):
            yield query, series


def _telling(lines: Iterable[tuple[Query, Series]]) -> list[tuple[Query, Series]]:
    """Those with a number; of many those that ever left 0, since the others only fill the legend."""
    every = [(query, series) for query, series in lines if any(math.isfinite(value) for _, value in series.points)]
    if len(every) <= _FEW:
        return every
    left_zero = [(query, series) for query, series in every if any(value > 0 for _, value in series.points)]
    return left_zero or every[:_FEW]


def _points(series: Series, step: float) -> dict[str, list[Any]]:
    """A hole stays one: nothing is drawn across what was not measured."""
    x: list[str] = []
    y: list[float | None] = []
    before = None
    for time, value in series.points:
        if before is not None and time - before > 1.5 * step:
            x.append(_moment(before + step))
            y.append(None)
        x.append(_moment(time))
        y.append(value if math.isfinite(value) else None)
        before = time
    return {"x": x, "y": y}


def _rounded(style: str) -> str:
    return style if "." in style else style.replace("~", ".3~")


def _moment(time: float) -> str:
    """As this machine's clock shows it, which is the browser's too."""
    return datetime.fromtimestamp(time).isoformat(timespec="seconds")
