"""Rules as Prometheus evaluates them: what wakes a person, and the series that alerts and panels share.

Nothing here fires at zero replicas without a request. A counter's first event is seen because each of its series is
there, at 0, from the process's start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from loraserve.contract.addresses import GATEWAY, SERVING_NAMESPACE, VLLM, VLLM_SERVICE
from loraserve.monitoring.metrics import COLD_START_PHASE, FAILURES, FIRST_TOKEN, REQUESTS, increase, rate
from loraserve.planning.cold_start import FROM_ZERO
from loraserve.planning.cost import HourlyCost
from loraserve.planning.objectives import Objective

RUNBOOK = "docs/runbook.md"


class Severity(StrEnum):
    CRITICAL = "critical"
    """Somebody is woken."""
    WARNING = "warning"
    """Somebody looks the next day."""


@dataclass(frozen=True)
class Alert:
    name: str
    expression: str
    summary: str
    """One sentence; `{{ $labels.x }}` is a label's value."""
    lasting: str = "0s"
    """How long it must hold."""
    severity: Severity = Severity.WARNING
    labels: Mapping[str, str] = field(default_factory=dict)
    """What tells it from others of its name: Prometheus ends a rule whose series another one has written."""

    @property
    def runbook(self) -> str:
        return f"{RUNBOOK}#{self.name.lower()}"


@dataclass(frozen=True)
class Record:
    """A series that Prometheus computes: of one number, or of an expression."""

    name: str
    expression: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    name: str
    rules: tuple[Alert | Record, ...]


_FAILED = f'outcome=~"{"|".join(FAILURES)}"'
_AWAKE = "max (loraserve_vllm_up) == 1"
_REPLICAS = f'sum (kube_deployment_spec_replicas{{namespace="{SERVING_NAMESPACE}", deployment="{VLLM}"}})'
_GPU_NODES = 'count (kube_node_status_allocatable{resource="nvidia_com_gpu"} > 0)'
_DEFERRED = 'sum (vllm:num_requests_waiting_by_reason{reason="deferred"})'
_WAITING = "sum (loraserve_gateway_waiting)"
FEWEST_REQUESTS = 10
"""In the long window: below, one error would be a burn rate that nobody can act on."""
KEY_NOTICE_DAYS = 3
"""Before a key ends: time for its tenant to take another."""
_AVAILABILITY = "loraserve:objective:availability"
_FIRST_TOKEN_SHARE = "loraserve:objective:first_token_share"
_FIRST_TOKEN_BUCKET = "loraserve:objective:first_token_bucket"
WRITTEN_TOKEN_WEIGHT = 4
"""What a written token takes of the GPU, in read ones. Modelled after list prices of hosted models, not measured."""
_WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_PAGES = ((14.4, "1h", "5m", "2m"), (6.0, "6h", "30m", "15m"))
_TICKETS = ((3.0, "1d", "2h", "1h"), (1.0, "3d", "6h", "3h"))
"""Burn rate, long and short window, lasting: those of the SRE workbook, for a budget of 30 days."""


def groups(objectives: Mapping[str, Objective], *, cost: HourlyCost | None) -> tuple[Group, ...]:
    """All rules of a stack. `objectives` of models with their own; no cost where prices are not known.

    They name no other model: a new adapter changes none of them.
    """
    return (
        Group("loraserve-cost", tuple(_costs(cost))),
        Group("loraserve-objectives", (*_objectives(objectives), *_error_ratios())),
        Group("loraserve-burn-rates", tuple(_burn_rates())),
        Group("loraserve-gateway", _gateway()),
        Group("loraserve-adapters", _adapters()),
        Group("loraserve-vllm", _vllm()),
        Group("loraserve-nodes", _nodes()),
    )


def _costs(cost: HourlyCost | None) -> Iterable[Record]:
    if cost:
        yield Record("loraserve:idle_dollars_per_hour", f"vector({cost.idle:.4f})")
        yield Record("loraserve:gpu_dollars_per_hour", f"vector({cost.gpu_node:.4f})")
    read, written = (
        increase("loraserve_gateway_tokens_total", "tenant", where=f'{{direction="{direction}"}}', window="1h")
        for direction in ("in", "out")
    )
    yield Record("loraserve:weighted_tokens:increase1h", f"{read} + {WRITTEN_TOKEN_WEIGHT} * {written}")


def _objectives(objectives: Mapping[str, Objective]) -> Iterable[Record]:
    for model, objective in objectives.items():
        labels = {"model": model}
        yield Record(f"{_AVAILABILITY}:own", f"vector({objective.availability})", labels)
        yield Record(f"{_FIRST_TOKEN_SHARE}:own", f"vector({objective.first_token_share})", labels)
        yield Record(f"{_FIRST_TOKEN_BUCKET}:own", "vector(1)", labels | {"le": _bound(objective)})
    default, asked, streamed = Objective(), f"group by (model) ({REQUESTS})", f"group by (model) ({FIRST_TOKEN}_count)"
    for name, others in (
        (_AVAILABILITY, f"{asked} * {default.availability}"),
        (_FIRST_TOKEN_SHARE, f"{streamed} * {default.first_token_share}"),
        (_FIRST_TOKEN_BUCKET, f'label_replace({streamed}, "le", "{_bound(default)}", "", "")'),
    ):
        yield Record(name, f"{name}:own or on (model) {others}" if objectives else others)


def _bound(objective: Objective) -> str:
    """As the bucket's label has it."""
    return str(float(objective.first_token_seconds))


def _error_ratios() -> Iterable[Record]:
    for window in _WINDOWS:
        bad = increase(REQUESTS, "model", where=f"{{{_FAILED}}}", window=window)
        all_ = increase(REQUESTS, "model", window=window)
        yield Record(f"loraserve:requests:increase{window}", all_)
        yield Record(f"loraserve:errors:ratio{window}", f"{bad} / ({all_} > 0)")
        in_time = (
            f"sum by (model) (increase({FIRST_TOKEN}_bucket[{window}]) "
            f"* on (model, le) group_left () {_FIRST_TOKEN_BUCKET})"
        )
        streams = increase(f"{FIRST_TOKEN}_count", "model", window=window)
        yield Record(f"loraserve:streams:increase{window}", streams)
        yield Record(f"loraserve:late:ratio{window}", f"1 - {in_time} / ({streams} > 0)")


def _burn_rates() -> Iterable[Alert]:
    kinds = (
        ("Availability", "errors", "requests", _AVAILABILITY, "of {{ $labels.model }} fail through no fault of theirs"),
        ("FirstToken", "late", "streams", _FIRST_TOKEN_SHARE, "of {{ $labels.model }} begin later than its objective"),
    )
    for kind, bad, counted, objective, words in kinds:
        for name, severity, speeds in (
            (f"{kind}BurnsFast", Severity.CRITICAL, _PAGES),
            (f"{kind}BurnsSlowly", Severity.WARNING, _TICKETS),
        ):
            for burn, long, short, lasting in speeds:
                limit = f"on (model) {burn} * (1 - {objective})"
                yield Alert(
                    name,
                    f"loraserve:{bad}:ratio{long} > {limit} and on (model) loraserve:{bad}:ratio{short} > {limit} "
                    f"and on (model) loraserve:{counted}:increase{long} > {FEWEST_REQUESTS}",
                    f"{{{{ $value | humanizePercentage }}}} of the {'requests' if counted == 'requests' else 'streams'} {words}.",
                    lasting,
                    severity,
                    {"long": long, "short": short},
                )


def _gateway() -> tuple[Alert, ...]:
    started = increase("loraserve_gateway_cold_starts_total", window="1h")
    took = increase(f"{COLD_START_PHASE}_sum", window="1h")
    return (
        Alert(
            "GatewayDown",
            f'absent (up{{namespace="{SERVING_NAMESPACE}", service="{GATEWAY}"}} == 1)',
            "No gateway answers Prometheus: nobody is served.",
            "5m",
            Severity.CRITICAL,
        ),
        Alert(
            "GatewayRefusesRequests",
            f"{increase(REQUESTS, 'outcome', where=f'{{{_FAILED}}}', window='10m')} > 0",
            "Clients get {{ $labels.outcome }}.",
        ),
        Alert(
            "WaitingRoomNearlyFull",
            f"{_WAITING} / sum (loraserve_gateway_waiting_limit) > 0.8",
            "{{ $value | humanizePercentage }} of the places for requests that wait are taken.",
            "1m",
        ),
        Alert(
            "QueueGrows",
            f"{_WAITING} > 10 and deriv(sum (loraserve_gateway_waiting)[10m:30s]) > 0 and on () {_AWAKE}",
            "{{ $value }} requests wait though vLLM is awake, and they become more.",
            "5m",
        ),
        Alert(
            "ColdStartOverBudget",
            f"{took} / ({started} > 0) > {FROM_ZERO.high:g}",
            "A start from zero took {{ $value | humanizeDuration }}.",
        ),
        Alert(
            "DocumentRefused",
            "max by (document) (loraserve_gateway_document_refused) > 0",
            "The gateway keeps its last good {{ $labels.document }}: the new one cannot be used.",
            "1m",
            Severity.CRITICAL,
        ),
        Alert(
            "KeyExpires",
            f"min by (tenant, key) (loraserve_gateway_key_expires_timestamp_seconds) - time() < {KEY_NOTICE_DAYS} * 86400 > 0",
            "Key {{ $labels.key }} of {{ $labels.tenant }} ends in {{ $value | humanizeDuration }}.",
        ),
        Alert(
            "UsageNotWritten",
            "max (loraserve_gateway_usage_unwritten) > 0",
            "What tenants use is not written into the ledger: a gateway that ends now takes it along.",
            "15m",
        ),
    )


def _adapters() -> tuple[Alert, ...]:
    return (
        Alert(
            "AdapterAnsweredByBase",
            f"{increase('loraserve_gateway_fallbacks_total', 'model', window='10m')} > 0",
            "The base model answers for {{ $labels.model }}.",
        ),
        Alert(
            "AdapterQuarantined",
            "max by (adapter, version, cause) (loraserve_adapter_quarantined) > 0",
            "{{ $labels.adapter }} {{ $labels.version }} is not served: {{ $labels.cause }}.",
        ),
        Alert(
            "EvaluationFailed",
            "max by (model, version) (loraserve_gateway_evaluation_failed) > 0",
            "By its last evaluation {{ $labels.model }} {{ $labels.version }} is worse than what it was compared with.",
        ),
        Alert(
            "SwapStuck",
            # Without vLLM all of them wait: that is an alert of its own.
            'max by (adapter, version, state) (loraserve_adapter_state{state=~"fetching|loading|probing|draining"} '
            "and on (pod) loraserve_vllm_up == 1) > 0",
            "{{ $labels.adapter }} {{ $labels.version }} does not get past {{ $labels.state }}.",
            "10m",
        ),
        Alert(
            "AgentOutOfSync",
            "min (loraserve_desired_followed) == 0",
            "A pod does not follow the newest desired state: what was declared last is not served.",
            "5m",
        ),
        Alert(
            "SlotsThrash",
            f"{_DEFERRED} / (sum (vllm:num_requests_running) + {_DEFERRED} > 0) > 0.2",
            "{{ $value | humanizePercentage }} of the requests wait for another adapter's slot.",
            "5m",
        ),
    )


def _vllm() -> tuple[Alert, ...]:
    return (
        Alert(
            "VllmDoesNotAnswer",
            "min by (pod) (loraserve_vllm_up) == 0",
            "vLLM in {{ $labels.pod }} does not answer its agent.",
            "15m",
            Severity.CRITICAL,
        ),
        Alert(
            "StartCacheMissed",
            'max by (use) (loraserve_start_cache{use=~"miss|other|refused|unavailable"}) > 0',
            "A vLLM has compiled anew, some two minutes of its start: the start cache is a case of '{{ $labels.use }}'.",
            "1m",
        ),
        Alert(
            "KvCacheSaturated",
            "max (vllm:kv_cache_usage_perc) > 0.95",
            "The KV cache is {{ $value | humanizePercentage }} full: requests wait or start again.",
            "5m",
        ),
        Alert(
            "RequestsPreempted",
            f"{rate('vllm:num_preemptions_total', window='5m')} > 0.1",
            "{{ $value | printf `%.1f` }} requests a second are thrown out of the batch and start again.",
            "5m",
        ),
        Alert(
            "VllmNotScraped",
            f'{_REPLICAS} > 0 unless on () sum (up{{namespace="{SERVING_NAMESPACE}", service="{VLLM_SERVICE}"}} == 1)',
            "Prometheus has no metrics of vLLM although it should run.",
            "15m",
        ),
    )


def _nodes() -> tuple[Alert, ...]:
    return (
        Alert(
            "GpuNodeIdle",
            f"{_GPU_NODES} > ({_REPLICAS} or on () vector(0))",
            "More GPU nodes run than replicas of vLLM: they cost money and do nothing.",
            "30m",
        ),
        Alert(
            "GpuNodeDoesNotArrive",
            f'max by (pod) (kube_pod_status_unschedulable{{namespace="{SERVING_NAMESPACE}", pod=~"{VLLM}-.*"}}) > 0',
            "{{ $labels.pod }} waits for a GPU node.",
            "10m",
            Severity.CRITICAL,
        ),
        Alert(
            "GpuError",
            "max by (Hostname, gpu) (DCGM_FI_DEV_XID_ERRORS) > 0",
            "GPU {{ $labels.gpu }} of {{ $labels.Hostname }} reports Xid {{ $value }}.",
        ),
        Alert(
            "ScalingFails",
            f"{increase('keda_scaled_object_errors_total', 'scaledObject', window='10m')} > 0",
            "KEDA cannot read how many requests wait: nothing wakes up, or goes to sleep.",
            "5m",
        ),
    )
