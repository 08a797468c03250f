"""Dashboards as Grafana reads them."""

from __future__ import annotations

from functools import cache
from typing import TypeVar

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphThresholdsStyleMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DashboardLinkType, DataSourceRef, Threshold, ThresholdsMode

from loraserve.monitoring.panels import Dashboard, Look, Panel, Query

P = TypeVar("P", stat.Panel, timeseries.Panel)
_DATASOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
_TAG = "loraserve"
_HEIGHT = 8
_HALF_WIDTH = 12


@cache
def dashboard_json(dashboard: Dashboard) -> str:
    """One file for Grafana's sidecar."""
    board = (
        builders.Dashboard(dashboard.title)
        .uid(dashboard.uid)
        .tags([_TAG])
        .link(builders.DashboardLink("Other pages").type(DashboardLinkType.DASHBOARDS).tags([_TAG]).as_dropdown(True))
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
    )
    for number, panel in enumerate(dashboard.panels, start=1):
        board = board.with_panel(_number(panel, number) if panel.look is Look.NUMBER else _lines(panel, number))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build())


def _number(panel: Panel, number: int) -> stat.Panel:
    drawn = _described(stat.Panel(), panel, number)
    for position, query in enumerate(panel.queries):
        drawn = drawn.with_target(_target(query, position).instant())
    return drawn


def _lines(panel: Panel, number: int) -> timeseries.Panel:
    drawn = (
        _described(timeseries.Panel(), panel, number)
        .legend(common.VizLegendOptions().show_legend(True).placement(LegendPlacement.BOTTOM))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .min(0)
    )
    if panel.maximum is not None:
        drawn = drawn.max(panel.maximum)
    if panel.warn is not None:
        drawn = drawn.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    if panel.look is Look.STACKED:
        drawn = drawn.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(40)
    for position, query in enumerate(panel.queries):
        drawn = drawn.with_target(_target(query, position))
    return drawn


def _described(drawn: P, panel: Panel, number: int) -> P:
    return (
        drawn.id(number)
        .title(panel.title)
        .description(panel.when_bad)
        .unit(panel.unit)
        .no_value("-")
        .height(_HEIGHT)
        .span(_HALF_WIDTH)
        .datasource(_DATASOURCE)
        .thresholds(_thresholds(panel))
    )


def _target(query: Query, position: int) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .expr(query.expression)
        .legend_format(query.legend)
        .ref_id(chr(ord("A") + position))
        .range()
    )


def _thresholds(panel: Panel) -> builders.ThresholdsConfig:
    steps = [Threshold(color="green")]
    if panel.warn is not None:
        steps.append(Threshold(value=panel.warn, color="red"))
    return builders.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
