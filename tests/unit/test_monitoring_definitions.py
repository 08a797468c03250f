"""Panels and rules use metrics that exist, with labels that they have; every alert tells what to do."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra.monitoring.grafana import dashboard_json
from local.paths import CHECKOUT
from loraserve.agent.metrics import Metrics as AgentMetrics
from loraserve.gateway import errors
from loraserve.gateway.metrics import FALLBACK_REASONS, Metrics
from loraserve.gateway.record import Record as RequestRecord
from loraserve.monitoring import dashboards
from loraserve.monitoring.metrics import ALL, FAILURES, OK, TARGET_LABELS, Source
from loraserve.monitoring.panels import Dashboard, Query
from loraserve.monitoring.rules import RUNBOOK, Alert, Record, groups
from loraserve.planning.cost import HourlyCost
from loraserve.planning.objectives import FIRST_TOKEN_BOUNDS, Objective
from tests.exposition import exported
from tests.unit.verdicts import verdict_of

GROUPS = groups({"faq": Objective()}, cost=HourlyCost(0.2, 1.0))
RULES = [rule for group in GROUPS for rule in group.rules]
RECORDED = {rule.name for rule in RULES if isinstance(rule, Record)}
ALERTS = [rule for rule in RULES if isinstance(rule, Alert)]
QUERIES = [query for dashboard in dashboards.ALL for panel in dashboard.panels for query in panel.queries]


def parse(expression: str) -> Any:
    filled = expression.replace("$__rate_interval", "2m").replace("$__range", "1h")
    return promql_parser.parse(filled)


def nodes(node: Any) -> Iterator[Any]:
    """An expression's parts, itself included."""
    yield node
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        if (child := getattr(node, name, None)) is not None and not isinstance(child, str):
            yield from nodes(child)
    for child in getattr(node, "args", None) or ():
        yield from nodes(child)


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """Each series that is read, with the labels that it is chosen by."""
    return [
        (str(node.name), {matcher.name for matcher in node.matchers.matchers})
        for node in nodes(parse(expression))
        if isinstance(node, promql_parser.VectorSelector)
    ]


def grouped(expression: str) -> set[str]:
    """Labels that it sums or joins by."""
    listed = re.findall(r"(?:by|on|ignoring|group_left) \(([^)]*)\)", expression)
    return {label for labels in listed for label in labels.replace(" ", "").split(",") if label}


@pytest.mark.parametrize("expression", [rule.expression for rule in RULES] + [query.expression for query in QUERIES])
def test_every_metric_and_label_exists(expression: str) -> None:
    labels: set[str] = set()
    for name, chosen_by in selectors(expression):
        if name.startswith("loraserve:"):
            assert name in RECORDED, f"no rule records {name}"
            labels |= {"model", "tenant", "le"}
            continue
        metric = ALL[name]
        assert chosen_by <= metric.labels | TARGET_LABELS, f"{name} has no label {chosen_by - metric.labels}"
        labels |= metric.labels | TARGET_LABELS
    assert grouped(expression) <= labels, f"no series has {grouped(expression) - labels}"


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.legend)
def test_a_line_is_named_after_labels_that_it_has(query: Query) -> None:
    assert set(re.findall(r"{{(\w+)}}", query.legend)) <= grouped(query.expression)


@pytest.mark.parametrize(
    "expression", [query.expression for query in QUERIES if "histogram_quantile" in query.expression]
)
def test_quantiles_are_summed_by_bucket(expression: str) -> None:
    assert "le" in grouped(expression)


def test_the_gateway_exports_what_is_said_of_it() -> None:
    metrics = Metrics()
    metrics.declare({"faq": ["v1", "v2"]}, ["acme"])
    metrics.follow(lambda: {"faq": 1}, lambda: {"acme": 1}, lambda: 1)
    metrics.tokens.labels("acme", "faq", "v1", "in")
    for histogram in (metrics.first_token, metrics.inter_token, metrics.duration):
        histogram.labels("faq", "v1")
    metrics.wait.labels("faq")
    metrics.cold_start_phase.labels("pod")
    metrics.refused.labels("keys")
    metrics.take_ends({("acme", "1f"): datetime.now(UTC)})
    metrics.evaluations.take({("faq", "v2"): verdict_of("v2")})
    real = exported(metrics.exposition().decode())
    assert {name: labels for name, labels in real.items() if labels != ALL[name].labels} == {}
    assert real.keys() == {name for name, metric in ALL.items() if metric.source is Source.GATEWAY}


def test_the_agent_exports_what_is_said_of_it() -> None:
    real = exported(AgentMetrics().exposition())
    said = {name for name, metric in ALL.items() if metric.source is Source.AGENT}
    assert real.keys() <= said


def scrape(adapters: int, tenants: int) -> tuple[int, int]:
    """Series and bytes of a gateway whose tenants have used every adapter."""
    metrics = Metrics()
    names = [f"adapter-{number:02}" for number in range(adapters)]
    callers = [f"tenant-{number:02}" for number in range(tenants)]
    metrics.declare({name: ["v1"] for name in names} | {"organisation/base": []}, callers)
    metrics.follow(lambda: Counter(names), lambda: Counter(callers), lambda: 1)
    for name in names:
        metrics.wait.labels(name)
        for histogram in (metrics.first_token, metrics.inter_token, metrics.duration):
            histogram.labels(name, "v1")
        for caller in callers:
            for direction in ("in", "out"):
                metrics.tokens.labels(caller, name, "v1", direction)
    text = metrics.exposition().decode()
    return sum(1 for line in text.splitlines() if not line.startswith("#")), len(text)


def test_a_scrape_is_bounded_by_what_is_declared() -> None:
    """docs/alerting.md states the numbers."""
    series, size = scrape(50, 20)
    assert series < 8_000
    assert size < 750_000
    for adapters, tenants, most in ((1, 0, 150), (0, 1, 115)):
        fewer, still_fewer = (scrape(50 - step * adapters, 20 - step * tenants)[0] for step in (1, 2))
        assert series - fewer == fewer - still_fewer <= most


def test_failures_are_exactly_the_errors_that_are_not_the_callers() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ApiError)]
    assert {kind.code for kind in kinds if kind.status >= 500} | {"vllm_500"} == set(FAILURES)


def test_fallbacks_have_a_series_for_each_error_that_a_caller_is_spared() -> None:
    spared = (errors.AdapterLoading, errors.AdapterUnavailable, errors.Asleep, errors.UpstreamTimeout)
    assert {error.code for error in spared} == set(FALLBACK_REASONS)


@pytest.mark.parametrize(
    ("tokens", "outcome", "counted"), [(0, OK, 1), (1, OK, 1), (2, OK, 0), (None, OK, 0), (1, "vllm_error", 0)]
)
def test_an_answer_of_nothing_but_its_end_is_counted(tokens: int | None, outcome: str, counted: int) -> None:
    metrics = Metrics()
    metrics.declare({"faq": ["v1"]}, ["acme"])
    record = RequestRecord(
        "/v1/completions", "1f", model="faq", served="faq@v1", outcome=outcome, completion_tokens=tokens
    )
    record.finish(metrics)
    assert f'empty_answers_total{{model="faq",version="v1"}} {counted}.0' in metrics.exposition().decode()


def test_a_key_that_was_replaced_is_told_of_no_more() -> None:
    metrics = Metrics()
    metrics.take_ends({("acme", "1f"): datetime(2026, 12, 24, tzinfo=UTC)})
    assert 'expires_timestamp_seconds{key="1f",tenant="acme"} 1.7980704e+09' in metrics.exposition().decode()
    metrics.take_ends({("acme", "2f"): datetime(2026, 12, 24, tzinfo=UTC)})
    assert 'key="1f"' not in metrics.exposition().decode()


def test_what_alerts_count_is_there_at_zero_and_goes_with_its_declaration() -> None:
    metrics = Metrics()
    metrics.declare({"faq": ["v1"], "base": []}, ["acme"])
    before = metrics.exposition().decode()
    for outcome in (OK, *FAILURES):
        assert f'requests_total{{model="faq",outcome="{outcome}",version="v1"}} 0.0' in before
        assert f'tenant_requests_total{{outcome="{outcome}",tenant="acme"}} 0.0' in before
    assert f'tenant_requests_total{{outcome="{errors.RateLimited.code}",tenant="acme"}} 0.0' in before
    for model, version in (("faq", "v1"), ("base", "base")):
        assert f'time_to_first_token_seconds_count{{model="{model}",version="{version}"}} 0.0' in before
        assert f'time_to_first_token_seconds_bucket{{le="5.0",model="{model}",version="{version}"}} 0.0' in before
    metrics.requests.labels("faq", "v1", "rate_limit_exceeded").inc()

    metrics.declare({"faq": ["v2"], "base": []}, ["umbrella"])

    after = metrics.exposition().decode()
    assert not re.search(r'version="v1"|tenant="acme"', after)
    assert 'version="v2"' in after


def test_versions_and_tenants_that_are_not_declared_share_one_label() -> None:
    metrics = Metrics()
    metrics.declare({"faq": ["v2"]}, ["acme"])
    assert [metrics.version("faq", served) for served in ("faq@v2", "faq@v1", "org/base", None)] == [
        "v2",
        "other",
        "base",
        "none",
    ]
    assert [metrics.tenant(name) for name in ("acme", "nobody", None)] == ["acme", "other", "other"]


def test_an_objective_is_a_bound_that_is_measured() -> None:
    buckets = {labels["le"] for labels in _bucket_labels()}
    assert {str(float(bound)) for bound in FIRST_TOKEN_BOUNDS} <= buckets
    with pytest.raises(ValueError, match="must be one of"):
        Objective.model_validate({"firstTokenSeconds": 3})


def _bucket_labels() -> list[dict[str, str]]:
    metrics = Metrics()
    metrics.first_token.labels("faq", "v1")
    families = text_string_to_metric_families(metrics.exposition().decode())
    return [
        sample.labels
        for family in families
        for sample in family.samples
        if sample.name == "loraserve_gateway_time_to_first_token_seconds_bucket"
    ]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_alert_has_its_heading_in_the_runbook(alert: Alert) -> None:
    headings = re.findall(r"^### (\w+)$", Path(CHECKOUT / RUNBOOK).read_text(), re.MULTILINE)
    assert alert.name in headings
    assert alert.runbook == f"{RUNBOOK}#{alert.name.lower()}"
    assert set(re.findall(r"\$labels\.(\w+)", alert.summary)) <= grouped(alert.expression) | {"model"}


def test_links_within_the_runbook_lead_somewhere() -> None:
    text = Path(CHECKOUT / RUNBOOK).read_text()
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


@pytest.mark.parametrize("dashboard", dashboards.ALL, ids=lambda dashboard: dashboard.uid)
def test_grafana_gets_every_panel_with_what_to_do(dashboard: Dashboard) -> None:
    board = json.loads(dashboard_json(dashboard))
    assert [panel["title"] for panel in board["panels"]] == [panel.title for panel in dashboard.panels]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        assert panel["description"].endswith((".", "?"))
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)), "Grafana drops a query whose id is taken"
    cells = [
        {(x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
        for p in (panel["gridPos"] for panel in board["panels"])
    ]
    assert not any(one & other for one, other in combinations(cells, 2)), "panels overlap"


def test_pages_have_names_of_their_own() -> None:
    assert len({dashboard.uid for dashboard in dashboards.ALL}) == len(dashboards.ALL)
