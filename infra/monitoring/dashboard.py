"""The serving dashboard: one function per panel, every metric seen on a running vLLM."""

from __future__ import annotations

from grafana_foundation_sdk.builders import common, prometheus, timeseries
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendPlacement, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef

from infra.monitoring import metrics

_UID = "loraserve-serving"
_HEIGHT = 8
_HALF_WIDTH = 12
_PROMETHEUS = DataSourceRef(type_val="prometheus", uid="prometheus")


def dashboard_json() -> str:
    """The dashboard as Grafana reads it."""
    board = (
        dashboards.Dashboard("vLLM serving")
        .uid(_UID)
        .tags(["loraserve", "vllm"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .with_panel(time_to_first_token())
        .with_panel(request_rate())
        .with_panel(running_and_waiting())
        .with_panel(kv_cache_use())
        .with_panel(token_rates())
    )
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build())


def time_to_first_token() -> timeseries.Panel:
    """How long a caller waits before the answer begins."""
    return _panel("Time to first token, P99", "s").with_target(
        _query(metrics.quantile(0.99, metrics.TIME_TO_FIRST_TOKEN), "P99")
    )


def request_rate() -> timeseries.Panel:
    """Finished requests per second."""
    return _panel("Requests per second", "reqps").with_target(
        _query(metrics.per_second(metrics.REQUESTS_FINISHED), "finished")
    )


def running_and_waiting() -> timeseries.Panel:
    """Requests in the batch, and those that wait for a place in it."""
    return (
        _panel("Requests running and waiting", "short")
        .with_target(_query(f"sum({metrics.REQUESTS_RUNNING})", "running"))
        .with_target(_query(f"sum({metrics.REQUESTS_WAITING})", "waiting"))
    )


def kv_cache_use() -> timeseries.Panel:
    """Share of the KV cache in use, the fullest replica."""
    return (
        _panel("KV cache in use", "percentunit")
        .min(0)
        .max(1)
        .with_target(_query(f"max({metrics.KV_CACHE_USAGE})", "fullest replica"))
    )


def token_rates() -> timeseries.Panel:
    """Tokens read and tokens written per second."""
    return (
        _panel("Tokens per second", "short")
        .with_target(_query(metrics.per_second(metrics.PROMPT_TOKENS), "prompt"))
        .with_target(_query(metrics.per_second(metrics.GENERATION_TOKENS), "generation"))
    )


def _panel(title: str, unit: str) -> timeseries.Panel:
    legend = common.VizLegendOptions().show_legend(True).placement(LegendPlacement.BOTTOM)
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI)
    return (
        timeseries.Panel()
        .title(title)
        .unit(unit)
        .height(_HEIGHT)
        .span(_HALF_WIDTH)
        .datasource(_PROMETHEUS)
        .legend(legend)
        .tooltip(tooltip)
    )


def _query(expression: str, legend: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(legend[:1].upper())
