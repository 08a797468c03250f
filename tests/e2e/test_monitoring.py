"""Panels and alerts name series that the running processes export, with the labels that they have there."""

from __future__ import annotations

import json

import httpx
import pytest

from infra.names import AGENT_PORT, GATEWAY, GATEWAY_METRICS_PORT, GATEWAY_PORT, VLLM
from local.cluster.keda import METRICS_FILE
from loraserve.monitoring.metrics import ALL, TARGET_LABELS, Source
from tests.e2e.conftest import Served, eventually
from tests.exposition import exported

ELSEWHERE = {
    "loraserve_adapter_quarantined",
    "loraserve_gateway_canary_callers",
    "loraserve_gateway_evaluation_failed",
    "loraserve_gateway_evaluation_score",
    "loraserve_gateway_evaluation_timestamp_seconds",
    "loraserve_gateway_key_expires_timestamp_seconds",
    "loraserve_gateway_tenant_waiting",
    "loraserve_gateway_waiting",
}
"""Without a series until something happens that this module does not make happen; the unit tests do."""


@pytest.mark.parametrize("source", [Source.VLLM, Source.AGENT, Source.GATEWAY, Source.KEDA], ids=lambda each: each.name)
def test_what_panels_and_alerts_read_is_exported(served: Served, source: Source) -> None:
    said = {metric.name: set(metric.labels) for metric in ALL.values() if metric.source is source}

    def is_said_truly() -> bool:
        stream_an_answer(served)
        real = scrape(served, source)
        seen = {name: real[name] - TARGET_LABELS for name in said if name in real}
        assert seen == {name: labels for name, labels in said.items() if name in seen}
        assert said.keys() - seen.keys() <= ELSEWHERE
        return True

    eventually(is_said_truly, limit_s=60, every_s=2)


def stream_an_answer(served: Served) -> None:
    """By an adapter: some series come with its first request."""
    asked = {"model": "faq", "prompt": "Hello", "max_tokens": 8, "stream": True}
    headers = {"Authorization": f"Bearer {served.key}"}
    with httpx.Client(base_url=served.address(GATEWAY, GATEWAY_PORT), trust_env=False, timeout=60) as http:
        http.post("/v1/completions", json=asked, headers=headers).raise_for_status()


def scrape(served: Served, source: Source) -> dict[str, set[str]]:
    """Names of samples, each with its labels, from where Prometheus looks for them."""
    found: dict[str, set[str]] = {}
    for target in targets(served, source):
        for name, labels in exported(httpx.get(f"http://{target}/metrics", trust_env=False).text).items():
            found.setdefault(name, set()).update(labels)
    return found


def targets(served: Served, source: Source) -> list[str]:
    if source is Source.KEDA:
        (group,) = json.loads((served.machine.keda_state / METRICS_FILE).read_text())
        return group["targets"]
    app, port = (GATEWAY, GATEWAY_METRICS_PORT) if source is Source.GATEWAY else (VLLM, AGENT_PORT)
    addresses = served.kubectl("get", "pods", f"--selector=app={app}", "--output", "jsonpath={.items[*].status.podIP}")
    return [f"{address}:{port}" for address in addresses.split()]
