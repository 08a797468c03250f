"""A run's result: as JSON, and as one HTML page that needs nothing else. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, Self

from pydantic import TypeAdapter

from loraserve.loadtest.accounting import Outcome, Quantile, Summary, quantiles
from loraserve.loadtest.chart import Points, line_chart
from loraserve.loadtest.saturation import Saturation
from loraserve.loadtest.schedule import Phase

SLICE_SECONDS = 10.0
_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-size: 12px } th, td { padding: 2px 8px; text-align: right; vertical-align: top; border-bottom: 1px solid #ddd }
span { white-space: nowrap }
th:first-child, td:first-child { text-align: left } svg { width: 100%; font-size: 11px } .grid { stroke: #eee } .mark { stroke: #888; stroke-dasharray: 4 }
.ok { color: #1b7837 } .bad { color: #b2182b }
"""


@dataclass(frozen=True)
class Slice:
    """Calls that were due within SLICE_SECONDS of `begin`; seconds."""

    begin: float
    due: int
    succeeded: int
    first_token: tuple[Quantile, ...]


@dataclass(frozen=True)
class Result:
    """`problems` is what a threshold forbids; without any the run has passed."""

    scenario: str
    url: str
    began: str
    seed: int
    phases: tuple[Phase, ...]
    wake_seconds: Mapping[str, float]
    """By model, until its first answer."""
    summaries: tuple[Summary, ...]
    timeline: tuple[Slice, ...]
    saturation: Saturation | None
    problems: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Of that JSON. Raises ValueError."""
        return TypeAdapter(cls).validate_json(text)


def timeline(outcomes: Sequence[Outcome]) -> tuple[Slice, ...]:
    slices: dict[int, list[Outcome]] = {}
    for one in outcomes:
        slices.setdefault(int(one.call.due // SLICE_SECONDS), []).append(one)
    return tuple(
        Slice(at * SLICE_SECONDS, len(mine), len(answered), quantiles(one.first_token for one in answered))
        for at, mine in sorted(slices.items())
        for answered in [[one for one in mine if one.error is None]]
    )


def page(result: Result) -> str:
    """The HTML."""
    verdict = (
        "".join(f'<li class="bad">{escape(problem)}</li>' for problem in result.problems)
        or '<li class="ok">every threshold holds</li>'
    )
    woken = ", ".join(f"{model} {seconds:.1f} s" for model, seconds in result.wake_seconds.items())
    charts = "".join(_saturation_charts(result.saturation) if result.saturation else _timeline_charts(result))
    heads = "<th>what</th><th>calls</th><th>succeeded</th><th>goodput</th><th>late</th>" + "".join(
        f"<th>{name} p50 / p95 / p99 ms</th>" for name in ("first token", "between tokens", "end to end")
    )
    heads += "<th>errors</th>"
    rows = "".join(_row(summary) for summary in result.summaries)
    title = f"Load test: {escape(result.scenario)}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><p>{escape(result.url)}, {escape(result.began)}, seed {result.seed}; first answers after {escape(woken)}."
        " Latencies count from when a call was due, so what waited in the client is in them."
        f"</p><ul>{verdict}</ul>{_saturation_words(result.saturation)}{charts}"
        f"<h3>By phase, model and version</h3><table><tr>{heads}</tr>{rows}</table>"
        "<p>In brackets the 95% interval of the order statistics; … : too few calls to bound that side.</p></html>"
    )


def _saturation_words(found: Saturation | None) -> str:
    if not found:
        return ""
    beyond = "" if found.reached else " at least (no step failed)"
    return (
        f"<p>Knee: {found.knee:g} requests/s{beyond}. Operating point, 70% of it: {found.operating_rate:.2f} requests/s, "
        f"which is {found.requests_per_replica} requests at once on a replica (requestsPerReplica).</p>"
    )


def _timeline_charts(result: Result) -> Iterator[str]:
    begins, at = dict[str, float](), 0.0
    for phase in result.phases:
        begins[phase.name], at = at, at + phase.seconds
    rates = {
        "due": [(part.begin, part.due / SLICE_SECONDS) for part in result.timeline],
        "succeeded": [(part.begin, part.succeeded / SLICE_SECONDS) for part in result.timeline],
    }
    yield line_chart("Requests a second", "seconds", "requests/s", rates, begins)
    first = _quantile_lines([(part.begin, part.first_token) for part in result.timeline])
    yield line_chart("Time to first token", "seconds", "ms", first, begins)


def _saturation_charts(found: Saturation) -> Iterator[str]:
    marks = {"knee": found.knee, "operating point": found.operating_rate}
    for name, of in _LATENCIES.items():
        lines = _quantile_lines([(step.rate, of(step)) for step in found.steps])
        yield line_chart(f"{name} over the rate", "requests/s", "ms", lines, marks)
    answered = {"answered": [(step.rate, step.answered_rate) for step in found.steps]}
    yield line_chart("Answers a second over the rate", "requests/s", "answers/s", answered, marks)
    if use := [(step.rate, step.gpu_use * 100) for step in found.steps if step.gpu_use is not None]:
        yield line_chart("GPU use over the rate", "requests/s", "%", {"GPU": use}, marks)


_LATENCIES = {
    "Time to first token": lambda step: step.summary.first_token,
    "End to end": lambda step: step.summary.end_to_end,
}


def _quantile_lines(found: Sequence[tuple[float, tuple[Quantile, ...]]]) -> dict[str, Points]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for x, values in found:
        for one in values:
            lines.setdefault(f"p{one.q * 100:g}", []).append((x, one.value * 1000))
    return dict(lines)


def _row(summary: Summary) -> str:
    name = ", ".join(filter(None, (summary.phase, summary.model, summary.version))) or "all"
    cells = [escape(name), str(summary.calls), str(summary.succeeded), f"{summary.goodput:.1%}", str(summary.late)]
    cells += [_told(found) for found in (summary.first_token, summary.between_tokens, summary.end_to_end)]
    cells.append(", ".join(f"<span>{count} {escape(error)}</span>" for error, count in summary.errors.items()))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _told(found: tuple[Quantile, ...]) -> str:
    return " / ".join(f"<span>{_ms(one.value)} [{_ms(one.low)}-{_ms(one.high)}]</span>" for one in found)


def _ms(seconds: float | None) -> str:
    return "…" if seconds is None else f"{seconds * 1000:.0f}"
