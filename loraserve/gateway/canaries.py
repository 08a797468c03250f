"""How a canary's callers fare beside the stable version's: sums over callers, from which an interval can be computed.

Callers are assigned to a version, not requests, so a caller is the unit; names of callers are no labels. What is exported
are sums and sums of squares: with them the variance between callers is known, whoever they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from loraserve.monitoring.metrics import CANARY, CANARY_MOMENTS

MOST_CALLERS = 2_000
"""Of one version in one gateway; later ones are not counted. Some hundred kilobytes."""


class Canaries(Collector):
    """Counts only models of which two versions are declared. Starts anew when their versions change."""

    def __init__(self) -> None:
        self._callers: dict[str, dict[str, dict[bytes, list[float]]]] = {}
        """Requests, failures and seconds by model, version and a digest of the caller."""

    def declare(self, versions: Mapping[str, Iterable[str]]) -> None:
        split = {model: sorted(known) for model, known in versions.items()}
        self._callers = {
            model: before
            if sorted(before := self._callers.get(model, {})) == known
            else {version: {} for version in known}
            for model, known in split.items()
            if len(known) > 1
        }

    def count(self, model: str, version: str, caller: str, seconds: float, failed: bool) -> None:
        """A request that was answered, or failed through no fault of the caller."""
        callers = self._callers.get(model, {}).get(version)
        if callers is None:
            return
        # What a tenant calls its user may have megabytes.
        digest = hashlib.blake2b(caller.encode(errors="surrogatepass"), digest_size=16).digest()
        if digest not in callers and len(callers) >= MOST_CALLERS:
            return
        sums = callers.setdefault(digest, [0, 0, 0])
        for at, value in enumerate((1, failed, seconds)):
            sums[at] += value

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            CANARY,
            "Sums over the callers of a model with a canary, since its versions were declared here.",
            labels=("model", "version", "moment"),
        )
        for model, versions in self._callers.items():
            for version, callers in versions.items():
                for moment, value in zip(CANARY_MOMENTS, _moments(callers.values()), strict=True):
                    family.add_metric([model, version, moment], value)
        yield family


def _moments(callers: Iterable[list[float]]) -> tuple[float, ...]:
    """In the order of CANARY_MOMENTS."""
    sums = [0.0] * len(CANARY_MOMENTS)
    for requests, failures, seconds in callers:
        products = (
            requests * requests,
            failures * failures,
            failures * requests,
            seconds * seconds,
            seconds * requests,
        )
        for at, value in enumerate((1, requests, failures, seconds, *products)):
            sums[at] += value
    return tuple(sums)
