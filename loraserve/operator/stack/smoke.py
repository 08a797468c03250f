"""`loraserve smoke`: does a stack do what it is for? Five looks, each with a verdict, from an operator's shell."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from loraserve.contract.addresses import (
    GATEWAY,
    GATEWAY_PORT,
    MONITORING_NAMESPACE,
    PROMETHEUS_PORT,
    PROMETHEUS_SERVICE,
    SERVING_NAMESPACE,
    VLLM,
    VLLM_SERVICE,
)
from loraserve.contract.checks import Check, CheckVerdict
from loraserve.errors import LoraserveError
from loraserve.operator.access.kubectl import Kubectl, KubectlFailed
from loraserve.planning.cold_start import PATIENCE_SECONDS

QUESTION = "Who are you?"
_SECONDS = 10


def run(kubectl: Kubectl, key: str) -> Iterator[Check]:
    """The checks, each as it ends. A sleeping model is woken by the fourth, which takes minutes."""
    yield _checked("pods", lambda: _pods(kubectl))
    yield _checked("endpoints", lambda: _endpoints(kubectl))
    try:
        with kubectl.forward(SERVING_NAMESPACE, f"service/{GATEWAY}", GATEWAY_PORT) as url:
            yield _checked("health", lambda: _health(url))
            yield _checked("answers", lambda: _answers(url, key))
    except KubectlFailed as error:
        yield Check("health", CheckVerdict.FAIL, f"{error}; see docs/runbook.md#port-forward")
    yield _checked("targets", lambda: _targets(kubectl))


def _checked(name: str, look: Callable[[], Check | str]) -> Check:
    try:
        found = look()
    except (LoraserveError, OSError, ValueError, KeyError) as error:
        return Check(name, CheckVerdict.FAIL, str(error) or type(error).__name__)
    return found if isinstance(found, Check) else Check(name, CheckVerdict.PASS, found)


def _pods(kubectl: Kubectl) -> Check | str:
    pods = _items(kubectl, "pods")
    ready = {app: [_is_ready(pod) for pod in pods if _app(pod) == app] for app in (GATEWAY, VLLM)}
    counted = ", ".join(f"{sum(each)} of {len(each)} {app} ready" for app, each in ready.items() if each)
    if not ready[GATEWAY] or not all(ready[GATEWAY]):
        return Check("pods", CheckVerdict.FAIL, f"{counted or 'no gateway'}; see docs/runbook.md#gatewaydown")
    if not ready[VLLM]:
        return f"{counted}; vLLM is scaled to zero, a request wakes it"
    if not any(ready[VLLM]):
        return Check("pods", CheckVerdict.FAIL, f"{counted}; see docs/runbook.md#pending-pod")
    return counted


def _endpoints(kubectl: Kubectl) -> Check | str:
    slices = _items(kubectl, "endpointslices")
    counts = {service: _ready_addresses(slices, service) for service in (GATEWAY, VLLM_SERVICE)}
    told = ", ".join(f"{service} {count}" for service, count in counts.items())
    if not counts[GATEWAY]:
        return Check("endpoints", CheckVerdict.FAIL, f"{told}; see docs/runbook.md#empty-endpoints")
    return told


def _health(url: str) -> str:
    return f"the gateway says {_get(f'{url}/health')['status']}"


def _answers(url: str, key: str) -> Check | str:
    """Of the base model and one adapter: their answers must differ."""
    models = _get(f"{url}/v1/models", key)["data"]
    adapters = [model["id"] for model in models if model.get("parent")]
    (base,) = (model["id"] for model in models if not model.get("parent"))
    told = {name: _answer(url, key, name) for name in (base, *adapters[:1])}
    if any(not answer.strip() for answer in told.values()):
        return Check("answers", CheckVerdict.FAIL, "an answer is empty; see docs/runbook.md#quality-drops")
    return "; ".join(f"{name}: {answer.strip()[:60]!r}" for name, answer in told.items())


def _answer(url: str, key: str, model: str) -> str:
    """A completion: no chat template is needed for it."""
    body = {"model": model, "prompt": QUESTION, "max_tokens": 24, "temperature": 0}
    return _ask(f"{url}/v1/completions", key, body, seconds=PATIENCE_SECONDS)["choices"][0]["text"]


def _targets(kubectl: Kubectl) -> Check | str:
    found = kubectl.run("get", "services", "--namespace", MONITORING_NAMESPACE, "--output=json", "--ignore-not-found")
    names = [item["metadata"]["name"] for item in json.loads(found or '{"items": []}')["items"]]
    if PROMETHEUS_SERVICE not in names:
        return Check("targets", CheckVerdict.SKIP, "no Prometheus here: loraserve:monitoringEnabled is false")
    with kubectl.forward(MONITORING_NAMESPACE, f"service/{PROMETHEUS_SERVICE}", PROMETHEUS_PORT) as url:
        targets = _get(f"{url}/api/v1/targets?state=active")["data"]["activeTargets"]
    down = [f"{target['labels'].get('job')}: {target['lastError']}" for target in targets if target["health"] == "down"]
    if down:
        return Check("targets", CheckVerdict.FAIL, f"{len(down)} of {len(targets)} down, such as {down[0]}")
    return f"{len(targets)} up"


def _items(kubectl: Kubectl, kind: str) -> list[dict[str, Any]]:
    return json.loads(kubectl.run("get", kind, "--namespace", SERVING_NAMESPACE, "--output=json"))["items"]


def _app(pod: dict[str, Any]) -> str | None:
    return pod["metadata"].get("labels", {}).get("app")


def _is_ready(pod: dict[str, Any]) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ()))


def _ready_addresses(slices: Iterable[dict[str, Any]], service: str) -> int:
    return sum(
        endpoint.get("conditions", {}).get("ready") is True
        for each in slices
        if each["metadata"].get("labels", {}).get("kubernetes.io/service-name") == service
        for endpoint in each.get("endpoints") or ()
    )


def _get(url: str, key: str | None = None) -> Any:
    return _ask(url, key, None, seconds=_SECONDS)


def _ask(url: str, key: str | None, body: dict[str, Any] | None, seconds: float) -> Any:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=seconds) as answer:
        return json.load(answer)
