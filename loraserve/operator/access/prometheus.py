"""Prometheus' HTTP API, as far as an operator's commands ask it."""

from __future__ import annotations

import ipaddress
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from loraserve.contract.addresses import MONITORING_NAMESPACE, PROMETHEUS_PORT, PROMETHEUS_SERVICE
from loraserve.errors import LoraserveError
from loraserve.operator.access.kubectl import Kubectl

_TIMEOUT_SECONDS = 30


class PrometheusUnavailable(LoraserveError):
    """It does not answer, or not as Prometheus does."""


@dataclass(frozen=True)
class Series:
    """One line: its labels, and what it was at each time (seconds since 1970)."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def latest(self) -> float:
        return self.points[-1][1]


@dataclass(frozen=True)
class Prometheus:
    """At its base URL. Its methods raise PrometheusUnavailable."""

    url: str

    def now(self, expression: str) -> list[Series]:
        """Each series with one point."""
        found = self._get("query", query=expression)["result"]
        return [Series(each["metric"], (_point(each["value"]),)) for each in found]

    def during(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """Looked at every `step` seconds."""
        found = self._get("query_range", query=expression, start=start, end=end, step=step)["result"]
        return [Series(each["metric"], tuple(map(_point, each["values"]))) for each in found]

    def alerts(self) -> list[dict[str, Any]]:
        """Those that fire or are about to, in Prometheus' own form."""
        return self._get("alerts")["alerts"]

    def _get(self, path: str, **parameters: str | float) -> Any:
        address = f"{self.url.rstrip('/')}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with _opener(address).open(address, timeout=_TIMEOUT_SECONDS) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            said = error.read(300).decode(errors="replace")
            raise PrometheusUnavailable(f"Prometheus at {self.url} answers {error.code}: {said}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PrometheusUnavailable(
                f"{self.url} does not answer as Prometheus does ({error}); name another address"
            ) from None


@contextmanager
def reached(url: str | None, context: str | None) -> Iterator[Prometheus]:
    """The one at `url`, else the stack's own by `kubectl port-forward`, for as long as it is used. Raises KubectlFailed."""
    if url:
        yield Prometheus(url)
        return
    with Kubectl(context).forward(MONITORING_NAMESPACE, f"service/{PROMETHEUS_SERVICE}", PROMETHEUS_PORT) as forwarded:
        yield Prometheus(forwarded)


def _point(value: tuple[float, str]) -> tuple[float, float]:
    return float(value[0]), float(value[1])


def _opener(address: str) -> urllib.request.OpenerDirector:
    """A forwarded port is on this machine, where no proxy leads."""
    host = urllib.parse.urlsplit(address).hostname or ""
    return urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if _is_here(host) else []))


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
