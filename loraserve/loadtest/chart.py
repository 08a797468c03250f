"""Line charts as SVG inside of an HTML page: no script, nothing from elsewhere. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 260, 60, 130, 14, 36
_COLOURS = ("#2166ac", "#e08214", "#b2182b", "#1b7837", "#762a83")
_STEPS = (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10)
"""A quarter of each has few digits."""

Points = Sequence[tuple[float, float]]


def line_chart(title: str, x_label: str, y_label: str, lines: Mapping[str, Points], marks: Mapping[str, float]) -> str:
    """`marks` are vertical lines by what they are called, at a value of x."""
    xs = [x for points in lines.values() for x, _ in points] + list(marks.values())
    right, top = (_rounded(max(values, default=0)) for values in (xs, [y for ps in lines.values() for _, y in ps]))
    place = _Place(right, top)
    parts = [_axis(place, x_label, y_label)]
    for row, (name, x) in enumerate(marks.items()):
        parts.append(
            f'<line class="mark" x1="{place.x(x)}" x2="{place.x(x)}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
            f'<text x="{place.x(x) + 3}" y="{_TOP + 10 + 12 * (row % 3)}">{escape(name)}</text>'
        )
    for row, (name, points) in enumerate(lines.items()):
        colour, at = _COLOURS[row % len(_COLOURS)], _TOP + 14 * row + 8
        path = " ".join(f"{place.x(x)},{place.y(y)}" for x, y in points)
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>'
            f'<text x="{_WIDTH - _RIGHT + 8}" y="{at}" fill="{colour}">{escape(name)}</text>'
        )
    label = f'role="img" aria-label="{escape(title)}"'
    return f'<h3>{escape(title)}</h3><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" {label}>{"".join(parts)}</svg>'


class _Place:
    """From values to points of the drawing."""

    def __init__(self, right: float, top: float) -> None:
        self.right = right
        self.top = top

    def x(self, value: float) -> float:
        return round(_LEFT + value / self.right * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        return round(_HEIGHT - _BOTTOM - value / self.top * (_HEIGHT - _TOP - _BOTTOM), 1)


def _axis(place: _Place, x_label: str, y_label: str) -> str:
    parts = []
    for part in range(5):
        x, y = place.right * part / 4, place.top * part / 4
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{place.y(y)}" y2="{place.y(y)}"/>'
            f'<text x="{_LEFT - 6}" y="{place.y(y) + 4}" text-anchor="end">{y:,g}</text>'
            f'<text x="{place.x(x)}" y="{_HEIGHT - _BOTTOM + 14}" text-anchor="middle">{x:,g}</text>'
        )
    middle = (_WIDTH + _LEFT - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(12 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _rounded(value: float) -> float:
    """A little more, with few digits."""
    if value <= 0:
        return 1.0
    size = 10 ** math.floor(math.log10(value))
    return next(step * size for step in _STEPS if step * size >= value * 0.999)
