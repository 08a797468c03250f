"""Dashboards show what exists: every metric was seen on a running vLLM, every quantile is summed by bucket."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest

from infra import names
from infra.monitoring.dashboard import dashboard_json
from infra.monitoring.stack import stack_values
from tests.unit.declared import declare

SEEN_ON_A_RUNNING_VLLM = {
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
}


@pytest.fixture(scope="module")
def panels() -> list[dict[str, Any]]:
    return json.loads(dashboard_json())["panels"]


def test_every_panel_uses_metrics_that_exist(panels: list[dict[str, Any]]) -> None:
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    used = {name for expression in expressions for name in re.findall(r"vllm:\w+", expression)}
    assert used == SEEN_ON_A_RUNNING_VLLM


def test_the_dashboard_has_the_five_specified_panels(panels: list[dict[str, Any]]) -> None:
    assert [panel["title"] for panel in panels] == [
        "Time to first token, P99",
        "Requests per second",
        "Requests running and waiting",
        "KV cache in use",
        "Tokens per second",
    ]


def test_quantiles_sum_by_bucket_and_rates_follow_the_scrape_interval(panels: list[dict[str, Any]]) -> None:
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert all("sum by (le)" in e for e in expressions if "histogram_quantile" in e)
    assert all("$__rate_interval" in e for e in expressions if "rate(" in e)


def test_no_two_panels_overlap(panels: list[dict[str, Any]]) -> None:
    cells = [
        {(x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
        for p in (panel["gridPos"] for panel in panels)
    ]
    assert not any(one & other for one, other in combinations(cells, 2))


def test_lines_of_one_panel_can_be_told_apart(panels: list[dict[str, Any]]) -> None:
    for panel in panels:
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))
        assert panel["options"]["legend"]["showLegend"] is True


def test_vllm_is_scraped_through_the_agent() -> None:
    program = declare("dev")
    endpoint = program.one("monitoring.coreos.com/v1:ServiceMonitor", names.VLLM).inputs["spec"]["endpoints"][0]
    service = program.one("core/v1:Service", names.VLLM_SERVICE).inputs["spec"]
    assert endpoint == {"port": "metrics", "path": "/metrics", "interval": "30s", "scrapeTimeout": "10s"}
    assert {"name": "metrics", "port": 9090, "targetPort": 9090} in service["ports"]


def test_rules_for_a_control_plane_that_eks_hides_are_off() -> None:
    values = stack_values("secret", 0)
    for part in ("kubeScheduler", "kubeControllerManager", "kubeEtcd"):
        assert values[part] == {"enabled": False}
    assert values["defaultRules"]["rules"]["etcd"] is False


def test_the_operator_waits_for_no_helm_hook() -> None:
    operator = stack_values("secret", 0)["prometheusOperator"]
    assert operator["admissionWebhooks"] == {"enabled": False}
    assert operator["tls"] == {"enabled": False}


def test_every_service_monitor_is_taken_whatever_its_labels() -> None:
    spec = stack_values("secret", 0)["prometheus"]["prometheusSpec"]
    assert spec["serviceMonitorSelectorNilUsesHelmValues"] is False


def test_a_volume_does_not_outlive_the_stack() -> None:
    spec = stack_values("secret", 50)["prometheus"]["prometheusSpec"]
    assert spec["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete"
    assert "storageSpec" not in stack_values("secret", 0)["prometheus"]["prometheusSpec"]
