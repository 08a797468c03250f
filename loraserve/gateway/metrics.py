"""The gateway's metrics. Labels are what is declared and fixed words only, so their number is bounded.

What an alert or a panel counts is there at 0 from the start: Prometheus sees no growth in a series that begins at 1.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from loraserve.contract.evaluation import Result, Verdict
from loraserve.contract.served_name import ServedName
from loraserve.gateway.canaries import Canaries
from loraserve.monitoring.metrics import FAILURES, NO_ADAPTER, OK, OVER_LIMIT, SAMPLE_OUTCOMES
from loraserve.planning.objectives import FIRST_TOKEN_BOUNDS

BASE, NONE, OTHER = NO_ADAPTER
"""The version of what the base model answered, also in an adapter's stead; of a request that none answered; and a model,
a version or a tenant that is not declared."""
FALLBACK_REASONS = ("adapter_loading", "adapter_unavailable", "model_starting", "upstream_timeout")
"""The errors that a caller of an adapter may be spared."""
disable_created_metrics()  # a second series for each counter, which nothing reads
_FAST = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_LOADS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60)
_WAITS = (0.1, 1, 5, 15, 30, 60, 120, 240, 360, 480, 600)


class Metrics:
    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "loraserve_gateway_requests",
            "Requests by outcome: ok, client_gone, or the code of the error that the client got.",
            ("model", "version", "outcome"),
            registry=registry,
        )
        self.tenant_requests = Counter(
            "loraserve_gateway_tenant_requests",
            "Requests of each tenant, by outcome.",
            ("tenant", "outcome"),
            registry=registry,
        )
        self.first_token = Histogram(
            "loraserve_gateway_time_to_first_token_seconds",
            "From the request to the first byte of a streamed answer, waiting included.",
            ("model", "version"),
            registry=registry,
            buckets=FIRST_TOKEN_BOUNDS,
        )
        self.inter_token = Histogram(
            "loraserve_gateway_inter_token_latency_seconds",
            "Between two pieces of a streamed answer.",
            ("model", "version"),
            registry=registry,
            buckets=_FAST,
        )
        self.duration = Histogram(
            "loraserve_gateway_request_seconds",
            "From the request to the last byte of its answer, waiting included.",
            ("model", "version"),
            registry=registry,
            buckets=FIRST_TOKEN_BOUNDS,
        )
        self.wait = Histogram(
            "loraserve_gateway_wait_seconds",
            "Time a request was held before it got its place on a pod.",
            ("model",),
            registry=registry,
            buckets=_WAITS,
        )
        self.load_wait = Histogram(
            "loraserve_gateway_adapter_load_wait_seconds",
            "Time a request was held while an adapter was loaded for it.",
            registry=registry,
            buckets=_LOADS,
        )
        self.tokens = Counter(
            "loraserve_gateway_tokens",
            "Tokens read and written, as vLLM counts them; of a stream that was not finished, its pieces and an estimate.",
            ("tenant", "model", "version", "direction"),
            registry=registry,
        )
        self.empty = Counter(
            "loraserve_gateway_empty_answers",
            "Answers of nothing but the token that ends them.",
            ("model", "version"),
            registry=registry,
        )
        self.fallbacks = Counter(
            "loraserve_gateway_fallbacks",
            "Requests to an adapter that the base model answered, by the error that the caller was spared.",
            ("model", "reason"),
            registry=registry,
        )
        self.cold_starts = Counter(
            "loraserve_gateway_cold_starts", "Starts from zero that a request waited for.", registry=registry
        )
        self.cold_start_phase = Histogram(
            "loraserve_gateway_cold_start_phase_seconds",
            "Phases of a start from zero: pod, agent, model, adapters.",
            ("phase",),
            registry=registry,
            buckets=_WAITS,
        )

        self.refused = Gauge(
            "loraserve_gateway_document_refused",
            "1 while the newest text of this document cannot be used, and the last good one stays in force.",
            ("document",),
            registry=registry,
        )
        self.key_expires = Gauge(
            "loraserve_gateway_key_expires_timestamp_seconds",
            "From when on this key is refused; keys without an end have none.",
            ("tenant", "key"),
            registry=registry,
        )
        self.usage_unwritten = Gauge(
            "loraserve_gateway_usage_unwritten",
            "1 while what was used cannot be written into the ledger, and would be lost with this gateway.",
            registry=registry,
        )
        self.samples = Counter(
            "loraserve_gateway_samples",
            "Questions with their answers that were sampled to judge a canary: written, or lost and why.",
            ("outcome",),
            registry=registry,
        )
        for outcome in SAMPLE_OUTCOMES:
            self.samples.labels(outcome)
        self.waiting_limit = Gauge(
            "loraserve_gateway_waiting_limit", "Requests that may be held at once.", registry=registry
        )
        self.canaries = Canaries()
        registry.register(self.canaries)
        self.evaluations = Evaluations()
        registry.register(self.evaluations)
        self._versions: dict[str, frozenset[str]] = {}
        self._tenants: frozenset[str] = frozenset()
        self.declare({}, frozenset())

    def declare(self, versions: Mapping[str, Iterable[str]], tenants: Iterable[str]) -> None:
        """Takes over what may be a label: versions by model, and tenants. What was declared before and is no more goes."""
        before, models, tenants_before = set(self._pairs()), set(self._versions), self._tenants
        self._versions = {model: frozenset(known) for model, known in versions.items()}
        self._tenants = frozenset(tenants)
        self.canaries.declare(self._versions)
        self._forget(before - set(self._pairs()), models - set(self._versions), tenants_before - self._tenants)
        for model, version in self._pairs():
            for outcome in (OK, *FAILURES):
                self.requests.labels(model, version, outcome)
        for model, known in self._versions.items():
            for reason in FALLBACK_REASONS:
                self.fallbacks.labels(model, reason)
            for version in known or (BASE,):
                self.first_token.labels(model, version)
                self.empty.labels(model, version)
        for tenant in (*self._tenants, OTHER):
            for outcome in (OK, *FAILURES, OVER_LIMIT):
                self.tenant_requests.labels(tenant, outcome)

    def take_ends(self, ends: Mapping[tuple[str, str], datetime]) -> None:
        """When keys end, by tenant and public id, in the place of those before."""
        self.key_expires.clear()
        for key, end in ends.items():
            self.key_expires.labels(*key).set(end.timestamp())

    def model(self, name: str) -> str:
        return name if name in self._versions else OTHER

    def version(self, model: str, served: str | None) -> str:
        """The label of who answered a request for `model`."""
        if served is None or model not in self._versions:
            return NONE
        version = ServedName(served).version or BASE
        return version if version == BASE or version in self._versions[model] else OTHER

    def tenant(self, name: str | None) -> str:
        return name if name in self._tenants else OTHER

    def _forget(self, versions: Iterable[tuple[str, str]], models: Iterable[str], tenants: Iterable[str]) -> None:
        for model, version in versions:
            labels = {"model": model, "version": version}
            for metric in (self.requests, self.tokens, self.empty, self.first_token, self.inter_token, self.duration):
                metric.remove_by_labels(labels)
        for model in models:
            self.fallbacks.remove_by_labels({"model": model})
            self.wait.remove_by_labels({"model": model})
        for tenant in tenants:
            self.tenant_requests.remove_by_labels({"tenant": tenant})
            self.tokens.remove_by_labels({"tenant": tenant})

    def _pairs(self) -> Iterator[tuple[str, str]]:
        yield OTHER, NONE
        for model, versions in self._versions.items():
            yield from ((model, version) for version in (*versions, NONE, BASE, OTHER))

    def follow(
        self,
        waiting: Callable[[], Mapping[str, int]],
        by_tenant: Callable[[], Mapping[str, int]],
        running: Callable[[], int],
    ) -> None:
        """Exports, at every scrape, what these then return."""
        self._registry.register(_LoadCollector(waiting, by_tenant, running))

    def exposition(self) -> bytes:
        """In the Prometheus text format."""
        return generate_latest(self._registry)


class Evaluations(Collector):
    """The last verdict of each version, as far as it is known."""

    def __init__(self) -> None:
        self._verdicts: Mapping[tuple[str, str], Verdict] = {}

    def take(self, verdicts: Mapping[tuple[str, str], Verdict]) -> None:
        """By model and version, in the place of those before."""
        self._verdicts = verdicts

    def collect(self) -> Iterable[GaugeMetricFamily]:
        labels = ("model", "version")
        score = GaugeMetricFamily(
            "loraserve_gateway_evaluation_score",
            "The score that decides, 0 to 1, in the last evaluation: the version's own, and of what it was compared with.",
            labels=(*labels, "of"),
        )
        failed = GaugeMetricFamily(
            "loraserve_gateway_evaluation_failed",
            "1 where it was worse by more than the margin, and nobody let it through.",
            labels=labels,
        )
        when = GaugeMetricFamily(
            "loraserve_gateway_evaluation_timestamp_seconds", "When the last evaluation was.", labels=labels
        )
        for pair, verdict in self._verdicts.items():
            score.add_metric([*pair, "version"], verdict.primary.candidate_score)
            score.add_metric([*pair, "compared with"], verdict.primary.score)
            failed.add_metric(pair, verdict.result is Result.FAIL and not verdict.allows_release)
            when.add_metric(pair, verdict.evaluated_at.timestamp())
        return score, failed, when


class _LoadCollector(Collector):
    def __init__(
        self,
        waiting: Callable[[], Mapping[str, int]],
        by_tenant: Callable[[], Mapping[str, int]],
        running: Callable[[], int],
    ) -> None:
        self._waiting = waiting
        self._by_tenant = by_tenant
        self._running = running

    def collect(self) -> Iterable[GaugeMetricFamily]:
        waiting = GaugeMetricFamily("loraserve_gateway_waiting", "Requests that are held.", labels=("model",))
        for model, count in self._waiting().items():
            waiting.add_metric([model], count)
        tenants = GaugeMetricFamily(
            "loraserve_gateway_tenant_waiting", "Requests of this tenant that are held.", labels=("tenant",)
        )
        for tenant, count in self._by_tenant().items():
            tenants.add_metric([tenant], count)
        running = GaugeMetricFamily("loraserve_gateway_running", "Requests that a pod is answering.")
        running.add_metric([], self._running())
        return waiting, tenants, running
