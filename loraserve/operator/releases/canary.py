"""`loraserve canary`: is a canary worse than the stable version? The unit is the caller, since callers are assigned.

A mean of requests is a ratio of sums over callers (failures / requests, seconds / requests), and its variance follows
from how the callers' residuals differ (linearised ratio estimator: Cochran, Sampling Techniques, 3rd ed., 6.13). A caller whose requests
went to several gateways is several callers there; by Cauchy-Schwarz the true sum of squares is at most as
many times larger as there are gateways, which is what is taken: intervals are too wide rather than too narrow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from loraserve.contract.served_name import ServedName
from loraserve.errors import LoraserveError
from loraserve.monitoring.metrics import CANARY, DURATION, quantile
from loraserve.operator.access.prometheus import Prometheus

FEWEST_CALLERS = 10
"""On each side, below which a variance between callers says little."""
_Z = 1.96


class NotJudged(LoraserveError):
    """Prometheus knows no canary of this name; the message says what to do."""


class Advice(StrEnum):
    PROMOTE = "promote"
    WAIT = "wait"
    ROLL_BACK = "roll back"


@dataclass(frozen=True)
class Margins:
    """What a canary may be worse by."""

    errors: float
    """Of the share of requests that fail: 0.01 is one in a hundred."""
    latency: float
    """Of the stable version's mean seconds: 0.1 is a tenth."""
    quality: float = 0.02
    """Of the share of sampled answers that have a fault."""


@dataclass(frozen=True)
class Side:
    """One version: its callers' sums, by moment."""

    version: str
    sums: Mapping[str, float]
    gateways: int
    p95_seconds: float | None = None

    @property
    def callers(self) -> int:
        """At least so many: one who was seen by every gateway is counted by each."""
        return math.ceil(self.sums["callers"] / self.gateways)

    @property
    def requests(self) -> float:
        return self.sums["requests"]

    def mean(self, what: str) -> float:
        """Of `failures`, `seconds` or, of sampled answers, `faults` by request."""
        return self.sums[what] / self.requests

    def interval(self, what: str) -> tuple[float, float]:
        """Of the mean, 95%."""
        mean, known = self.mean(what), self.callers
        if mean == 0:
            return 0, 3 / known  # nothing seen has no variance: the rule of three, a caller being one observation
        squares = (
            self.sums[f"{what}_squared"]
            - 2 * mean * self.sums[f"{what}_requests"]
            + mean**2 * self.sums["requests_squared"]
        )
        variance = self.gateways * max(squares, 0) * known / (known - 1) / self.requests**2
        half = _student(known - 1) * math.sqrt(variance)
        return max(mean - half, 0), mean + half


@dataclass(frozen=True)
class Difference:
    """Canary less stable, with a 95% interval."""

    value: float
    low: float
    high: float
    margin: float

    @property
    def advice(self) -> Advice:
        if self.high < self.margin:
            return Advice.PROMOTE
        return Advice.ROLL_BACK if self.low > self.margin else Advice.WAIT


@dataclass(frozen=True)
class Judgement:
    stable: Side
    canary: Side
    errors: Difference | None
    latency: Difference | None
    advice: Advice
    reason: str
    sampled: tuple[Side, Side] | None = None
    """Stable and canary, of sampled answers."""
    quality: Difference | None = None

    @property
    def share(self) -> float:
        """The canary's, of the requests."""
        return self.canary.requests / (self.canary.requests + self.stable.requests)

    def plain(self) -> dict[str, Any]:
        """For a machine."""
        sides = {
            role: {
                "version": side.version,
                "callers": side.callers,
                "requests": side.requests,
                "failed": side.mean("failures"),
                "meanSeconds": side.mean("seconds"),
                "p95Seconds": side.p95_seconds,
            }
            for role, side in (("stable", self.stable), ("canary", self.canary))
        }
        differences = {"errors": self.errors, "latency": self.latency, "quality": self.quality}
        told = {name: each and asdict(each) for name, each in differences.items()}
        if self.sampled:
            for role, side in zip(("stable", "canary"), self.sampled, strict=True):
                sides[role] |= {"sampled": side.requests, "sampledCallers": side.callers, "faults": side.mean("faults")}
        return sides | told | {"share": self.share, "advice": self.advice, "reason": self.reason}


def judge(stable: Side, canary: Side, margins: Margins, sampled: tuple[Side, Side] | None = None) -> Judgement:
    """`sampled`: both versions' answers that were looked at; then the canary's have to be as good, too."""
    few = [(side, what) for sides, what in (((stable, canary), ""), (sampled or (), " sampled")) for side in sides]
    few = [(side, what) for side, what in few if side.callers < FEWEST_CALLERS]
    if few:
        told = " and ".join(f"{side.version} {side.callers}{what}" for side, what in few)
        reason = f"too few callers ({told}; {FEWEST_CALLERS} of each are the least)"
        return Judgement(stable, canary, None, None, Advice.WAIT, reason, sampled)
    named = {
        "errors": _difference(stable, canary, "failures", margins.errors),
        "latency": _difference(stable, canary, "seconds", margins.latency * stable.mean("seconds")),
    }
    if sampled:
        named["quality"] = _difference(*sampled, "faults", margins.quality)
    advice, reason = _advice(named)
    return Judgement(stable, canary, named["errors"], named["latency"], advice, reason, sampled, named.get("quality"))


def _advice(named: Mapping[str, Difference]) -> tuple[Advice, str]:
    for advice, reason in (
        (Advice.ROLL_BACK, "{} worse than the margin allows"),
        (Advice.WAIT, "whether {} within the margin is not known yet: more callers narrow the interval"),
    ):
        if found := [name for name, difference in named.items() if difference.advice is advice]:
            told = f"{' and '.join(found)} {'is' if found in (['latency'], ['quality']) else 'are'}"
            return advice, reason.format(told)
    *others, last = named
    return Advice.PROMOTE, f"neither {', '.join(others)} nor {last} are worse by the margin"


def _difference(stable: Side, canary: Side, what: str, margin: float) -> Difference:
    """From both means' intervals, which may be lopsided (MOVER: Zou and Donner, 2008); the sides have no caller in common."""
    one, other = canary.mean(what), stable.mean(what)
    (low, high), (other_low, other_high) = canary.interval(what), stable.interval(what)
    value = one - other
    return Difference(
        value,
        value - math.hypot(one - low, other_high - other),
        value + math.hypot(high - one, other - other_low),
        margin,
    )


def _student(freedom: int) -> float:
    """The 97.5% quantile of Student's t (Abramowitz and Stegun 26.7.5)."""
    terms = (
        _Z**3 + _Z,
        (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 6,
        (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / 6,
    )
    return _Z + sum(term / (4 * freedom) / (4 * freedom) ** at for at, term in enumerate(terms))


def read(prometheus: Prometheus, name: str, stable: str, canary: str, window: str) -> tuple[Side, Side]:
    """Both versions' sums from Prometheus; `window` is that of the 95th percentile. Raises NotJudged and PrometheusUnavailable."""
    where = f"{{model={json.dumps(name)}}}"
    sums: dict[str, dict[str, float]] = {stable: {}, canary: {}}
    for each in prometheus.now(f"sum by (version, moment) ({CANARY}{where})"):
        sums.setdefault(each.labels["version"], {})[each.labels["moment"]] = each.latest
    for version in (stable, canary):
        if not sums[version].get("requests"):
            raise NotJudged(
                f"Prometheus knows no request of {ServedName.of(name, version)} beside the other version: has it run as a canary, and "
                "has anybody called it?"
            )
    counted = prometheus.now(f"count(count by (pod) ({CANARY}{where}))")
    gateways = max((int(each.latest) for each in counted), default=1)
    slow = {
        each.labels["version"]: each.latest
        for each in prometheus.now(quantile(0.95, DURATION, "version", where=where, window=window))
        if not math.isnan(each.latest)
    }
    one, other = (Side(version, sums[version], gateways, slow.get(version)) for version in (stable, canary))
    return one, other
