"""Rules as Prometheus itself evaluates them (promtool, at the chart's version): silent first, then firing, then the edge."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from infra.monitoring.rules import rule_file
from local.tools.toolchain import Tool, ensure
from loraserve.contract.addresses import SERVING_NAMESPACE
from loraserve.monitoring.rules import Alert, groups
from loraserve.planning.cost import HourlyCost
from loraserve.planning.objectives import Objective

GROUPS = groups({"legal": Objective(availability=0.5)}, cost=HourlyCost(0.2, 1.0))
ALERTS = {rule.name for group in GROUPS for rule in group.rules if isinstance(rule, Alert)}
REQUESTS = 'loraserve_gateway_requests_total{model="faq",version="v1",outcome="%s"}'
BUCKET = 'loraserve_gateway_time_to_first_token_seconds_bucket{model="faq",version="v1",le="%s"}'
COUNT = 'loraserve_gateway_time_to_first_token_seconds_count{model="faq",version="v1"}'
REPLICAS = f'kube_deployment_spec_replicas{{namespace="{SERVING_NAMESPACE}",deployment="vllm"}}'
GPU_NODE = 'kube_node_status_allocatable{node="gpu-1",resource="nvidia_com_gpu",unit="integer"}'
UNSCHEDULABLE = f'kube_pod_status_unschedulable{{namespace="{SERVING_NAMESPACE}",pod="vllm-0"}}'
DEFERRED = 'vllm:num_requests_waiting_by_reason{reason="deferred"}'


@dataclass(frozen=True)
class Case:
    """Series in promtool's notation, one value a step, and minutes at which the alert must be silent or fire."""

    alert: str
    meaning: str
    series: dict[str, str]
    silent: tuple[int, ...] = ()
    firing: tuple[int, ...] = ()
    step: int = 1
    """Minutes between two values, and between two looks at the rules."""


def steady(per_minute: float, minutes: int = 100) -> str:
    return f"0+{per_minute}x{minutes}"


ONE_IN_FIVE = {REQUESTS % "ok": steady(8), REQUESTS % "upstream_error": steady(2)}
CASES = (
    Case(
        "AvailabilityBurnsFast",
        "one request in five fails",
        ONE_IN_FIVE,
        silent=(1,),
        firing=(70,),
    ),
    Case(
        "AvailabilityBurnsFast",
        "callers' own mistakes are not ours",
        {REQUESTS % "ok": steady(8), REQUESTS % "invalid_request": steady(8), REQUESTS % "upstream_error": steady(0)},
        silent=(70, 95),
    ),
    Case(
        "AvailabilityBurnsFast",
        "one failure of four requests in an hour wakes nobody",
        {REQUESTS % "ok": "0x30 1 2 3x60", REQUESTS % "upstream_error": "0x31 1x60"},
        silent=(33, 40, 90),
    ),
    Case(
        "AvailabilityBurnsFast",
        "a gateway that restarts counts from 0 again: no failures come from that",
        {REQUESTS % "ok": "0+10x60 0+10x60", REQUESTS % "upstream_error": "0x120"},
        silent=(59, 62, 119),
    ),
    Case(
        "AvailabilityBurnsFast",
        "one in five fails of a model from which no more is expected",
        {name.replace("faq", "legal"): values for name, values in ONE_IN_FIVE.items()},
        silent=(70, 95),
    ),
    Case("AvailabilityBurnsFast", "no request at all", {REQUESTS % "ok": "0x100"}, silent=(70, 95)),
    Case(
        "AvailabilityBurnsSlowly",
        "4% fail for days",
        {REQUESTS % "ok": "0+960x450", REQUESTS % "upstream_error": "0+40x450"},
        silent=(30,),
        firing=(1600, 4400),
        step=10,
    ),
    Case(
        "FirstTokenBurnsFast",
        "every stream begins after 10 s",
        {BUCKET % "5.0": "0x100", BUCKET % "10.0": "0x100", BUCKET % "+Inf": steady(5), COUNT: steady(5)},
        silent=(1,),
        firing=(70,),
    ),
    Case(
        "FirstTokenBurnsFast",
        "every stream begins within its objective",
        {BUCKET % "5.0": steady(5), BUCKET % "+Inf": steady(5), COUNT: steady(5)},
        silent=(70, 95),
    ),
    Case(
        "FirstTokenBurnsSlowly",
        "a quarter begins late, for days",
        {BUCKET % "5.0": "0+750x200", BUCKET % "+Inf": "0+1000x200", COUNT: "0+1000x200"},
        silent=(30,),
        firing=(1600,),
        step=10,
    ),
    Case(
        "GatewayDown",
        "it was there, then it is not",
        {f'up{{namespace="{SERVING_NAMESPACE}",service="gateway",pod="a"}}': "1x10 0x30"},
        silent=(5, 12),
        firing=(20,),
    ),
    Case("GatewayDown", "it was never there", {"up": "1x40"}, silent=(1,), firing=(20,)),
    Case(
        "GatewayDown",
        "one of two is down",
        {
            f'up{{namespace="{SERVING_NAMESPACE}",service="gateway",pod="a"}}': "1x40",
            f'up{{namespace="{SERVING_NAMESPACE}",service="gateway",pod="b"}}': "0x40",
        },
        silent=(20, 40),
    ),
    Case(
        "GatewayRefusesRequests",
        "the very first refusal",
        {REQUESTS % "model_starting": "0x20 1x40"},
        silent=(20, 40),
        firing=(22,),
    ),
    Case(
        "WaitingRoomNearlyFull",
        "nine of ten places",
        {'loraserve_gateway_waiting{model="faq"}': "0x5 900x10", "loraserve_gateway_waiting_limit": "1000x20"},
        silent=(5,),
        firing=(10,),
    ),
    Case(
        "QueueGrows",
        "awake, and ever more wait",
        {'loraserve_gateway_waiting{model="faq"}': "0+5x40", "loraserve_vllm_up": "1x40"},
        silent=(2,),
        firing=(20,),
    ),
    Case(
        "QueueGrows",
        "a start from zero: they wait for it",
        {'loraserve_gateway_waiting{model="faq"}': "0+5x40", "loraserve_vllm_up": "0x40"},
        silent=(20, 40),
    ),
    Case(
        "ColdStartOverBudget",
        "a start of 15 minutes, the first ever",
        {
            "loraserve_gateway_cold_starts_total": "0x20 1x20",
            'loraserve_gateway_cold_start_phase_seconds_sum{phase="pod"}': "0x10 700x30",
            'loraserve_gateway_cold_start_phase_seconds_sum{phase="model"}': "0x20 200x20",
        },
        silent=(19,),
        firing=(22,),
    ),
    Case(
        "ColdStartOverBudget",
        "a start within it",
        {
            "loraserve_gateway_cold_starts_total": "0x20 1x20",
            'loraserve_gateway_cold_start_phase_seconds_sum{phase="pod"}': "0x20 300x20",
        },
        silent=(19, 22, 40),
    ),
    Case(
        "StartCacheMissed",
        "one pod compiled although there is a start cache",
        {'loraserve_start_cache{use="miss"}': "0x10 1x20", 'loraserve_start_cache{use="hit"}': "1x10 0x20"},
        silent=(9,),
        firing=(13,),
    ),
    Case(
        "StartCacheMissed",
        "one started with it, another stack has none",
        {'loraserve_start_cache{use="hit"}': "1x20", 'loraserve_start_cache{use="none"}': "1x20"},
        silent=(19,),
    ),
    Case(
        "KeyExpires",
        "it ends after three days and ten minutes, and then has",
        {'loraserve_gateway_key_expires_timestamp_seconds{tenant="acme",key="1f"}': f"{3 * 86400 + 600}x500"},
        silent=(5, 4340),
        firing=(20, 4320),
        step=10,
    ),
    Case(
        "DocumentRefused",
        "keys that cannot be read",
        {'loraserve_gateway_document_refused{document="keys"}': "0x5 1x20"},
        silent=(5,),
        firing=(10,),
    ),
    Case(
        "UsageNotWritten",
        "S3 refuses; one write that failed and was made up for tells nobody",
        {"loraserve_gateway_usage_unwritten": "0x5 1x5 0x10 1x30"},
        silent=(5, 15, 30),
        firing=(45,),
    ),
    Case(
        "AdapterAnsweredByBase",
        "the first fallback ever",
        {'loraserve_gateway_fallbacks_total{model="faq",reason="adapter_unavailable"}': "0x20 1x30"},
        silent=(20, 40),
        firing=(22,),
    ),
    Case(
        "AdapterQuarantined",
        "one version, and none after it was taken out",
        {
            'loraserve_adapter_quarantined{adapter="faq",version="v1",cause="DigestMismatch"}': "_x5 1x10 stale",
        },
        silent=(4, 20),
        firing=(7,),
    ),
    Case(
        "EvaluationFailed",
        "worse, as both gateways read, until the next evaluation",
        {
            f'loraserve_gateway_evaluation_failed{{model="faq",version="v2",pod="{pod}"}}': "_x5 0x4 1x10 0x10"
            for pod in ("a", "b")
        },
        silent=(3, 8, 22),
        firing=(11, 19),
    ),
    Case(
        "EvaluationFailed",
        "a version that goes takes its verdict along",
        {'loraserve_gateway_evaluation_failed{model="faq",version="v2"}': "1x5 stale"},
        silent=(8,),
        firing=(3,),
    ),
    Case(
        "SwapStuck",
        "fetching for a quarter of an hour",
        {
            'loraserve_adapter_state{adapter="faq",version="v2",state="fetching",pod="a"}': "0x5 1x30",
            'loraserve_adapter_state{adapter="faq",version="v1",state="ready",pod="a"}': "1x40",
            'loraserve_vllm_up{pod="a"}': "1x40",
            'loraserve_vllm_up{pod="b"}': "0x40",
        },
        silent=(5, 10),
        firing=(20,),
    ),
    Case(
        "SwapStuck",
        "vLLM of the only pod is down, which VllmDoesNotAnswer tells",
        {
            'loraserve_adapter_state{adapter="faq",version="v1",state="loading",pod="a"}': "1x40",
            'loraserve_vllm_up{pod="a"}': "0x40",
            'loraserve_vllm_up{pod="b"}': "1x40",
        },
        silent=(12, 20, 40),
    ),
    Case("AgentOutOfSync", "one of two pods", {'loraserve_desired_followed{pod="a"}': "1x5 0x20"}, (5, 8), (15,)),
    Case(
        "SlotsThrash",
        "a third waits for a slot",
        {DEFERRED: "5x20", "vllm:num_requests_running": "10x20"},
        silent=(2,),
        firing=(10,),
    ),
    Case("SlotsThrash", "nobody asks", {DEFERRED: "0x20", "vllm:num_requests_running": "0x20"}, silent=(10, 20)),
    Case("VllmDoesNotAnswer", "gone for 20 minutes", {'loraserve_vllm_up{pod="vllm-0"}': "1x5 0x30"}, (5, 15), (25,)),
    Case("KvCacheSaturated", "full", {"vllm:kv_cache_usage_perc": "0.5x5 0.99x20"}, (5, 8), (15,)),
    Case("RequestsPreempted", "one a second", {"vllm:num_preemptions_total": "0x10 0+60x20"}, (9,), (25,)),
    Case(
        "VllmNotScraped",
        "a replica, and no metrics",
        {REPLICAS: "1x40", f'up{{namespace="{SERVING_NAMESPACE}",service="vllm-service"}}': "1x5 0x40"},
        silent=(5, 15),
        firing=(30,),
    ),
    Case("VllmNotScraped", "asleep: nothing is missing", {REPLICAS: "0x60"}, silent=(30, 60)),
    Case("GpuNodeIdle", "a node without a replica", {GPU_NODE: "1x60", REPLICAS: "0x60"}, silent=(10,), firing=(45,)),
    Case("GpuNodeIdle", "a node that serves", {GPU_NODE: "1x60", REPLICAS: "1x60"}, silent=(10, 45)),
    Case("GpuNodeIdle", "no node, no replica", {REPLICAS: "0x60"}, silent=(10, 45)),
    Case("GpuNodeDoesNotArrive", "pending for long", {UNSCHEDULABLE: "0x5 1x30"}, (5, 10), (20,)),
    Case("GpuError", "an Xid", {'DCGM_FI_DEV_XID_ERRORS{Hostname="n",gpu="0"}': "0x5 79x10"}, (5,), (7,)),
    Case(
        "ScalingFails",
        "KEDA cannot read",
        {'keda_scaled_object_errors_total{scaledObject="vllm"}': "0x5 0+1x20"},
        silent=(4,),
        firing=(20,),
    ),
)


@pytest.fixture(scope="module")
def promtool() -> Path:
    return ensure(Tool.PROMTOOL)[Tool.PROMTOOL]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.meaning}")
def test_an_alert_fires_when_it_should_and_not_before(case: Case, promtool: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule_file(GROUPS)))
    test = {
        "interval": f"{case.step}m",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "promql_expr_test": [
            {
                "expr": f'count (count by (alertname) (ALERTS{{alertname="{case.alert}",alertstate="firing"}})) or vector(0)',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": "{}", "value": value}],
            }
            for minutes, value in ((case.silent, 0), (case.firing, 1))
            for minute in minutes
        ],
    }
    # Without an order promtool takes one by chance; Prometheus reads what other groups recorded a step before.
    order = [group.name for group in GROUPS]
    settings = {"rule_files": ["rules.yaml"], "group_eval_order": order, "evaluation_interval": f"{case.step}m"}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(settings | {"tests": [test]}))
    done = subprocess.run([promtool, "test", "rules", "tests.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_all_rules(promtool: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule_file(GROUPS)))
    done = subprocess.run(
        [promtool, "check", "rules", "--lint=all", "rules.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_silent_and_firing() -> None:
    assert {case.alert for case in CASES if case.firing} == ALERTS
    assert {case.alert for case in CASES if case.silent} == ALERTS
