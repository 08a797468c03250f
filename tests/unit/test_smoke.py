"""`loraserve smoke`: a verdict per line, and each failure says where to go on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest

from local.paths import CHECKOUT
from loraserve.contract.addresses import GATEWAY, PROMETHEUS_SERVICE, VLLM, VLLM_SERVICE
from loraserve.operator.access.kubectl import Kubectl, KubectlFailed
from loraserve.operator.stack.smoke import CheckVerdict, run

KEY = "lsk-test"
PASS, SKIP, FAIL = CheckVerdict.PASS, CheckVerdict.SKIP, CheckVerdict.FAIL


class Stack:
    """A cluster behind kubectl, with a gateway and a Prometheus on one port."""

    def __init__(self) -> None:
        self.pods = [pod(GATEWAY), pod(GATEWAY), pod(VLLM)]
        self.endpoints = {GATEWAY: True, VLLM_SERVICE: True}
        self.services = [PROMETHEUS_SERVICE]
        self.targets = [{"health": "up", "labels": {"job": "gateway"}, "lastError": ""}]
        self.answers = {"org/base": "I am the base.", "faq": "I am faq."}
        self.forwards = True
        self.url = ""

    def run(self, _: str, kind: str, *__: str) -> str:
        items: dict[str, list[Any]] = {
            "pods": self.pods,
            "endpointslices": [endpoint_slice(service, ready) for service, ready in self.endpoints.items()],
            "services": [{"metadata": {"name": name}} for name in self.services],
        }
        return json.dumps({"items": items[kind]})

    @contextmanager
    def forward(self, _: str, target: str, __: int) -> Iterator[str]:
        assert target.startswith("service/"), "kubectl takes a bare name for a pod's"
        if not self.forwards:
            raise KubectlFailed("kubectl port-forward: pod is not running")
        yield self.url

    def page(self, path: str, body: dict[str, Any] | None) -> Any:
        if path == "/health":
            return {"status": "alive"}
        if path == "/v1/models":
            return {"data": [{"id": name, "parent": None if "/" in name else "org/base"} for name in self.answers]}
        if path.startswith("/api/v1/targets"):
            return {"data": {"activeTargets": self.targets}}
        assert body
        return {"choices": [{"text": self.answers[body["model"]]}]}


def pod(app: str, ready: bool = True) -> dict[str, Any]:
    status = {"conditions": [{"type": "Ready", "status": str(ready)}]}
    return {"metadata": {"name": app, "labels": {"app": app}}, "status": status}


def endpoint_slice(service: str, ready: bool) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"kubernetes.io/service-name": service}},
        "endpoints": [{"conditions": {"ready": ready}}],
    }


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack()

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: dict[str, Any] | None) -> None:
            known = self.headers.get("Authorization") == f"Bearer {KEY}" or not self.path.startswith("/v1")
            self.send_response(200 if known else 401)
            self.end_headers()
            self.wfile.write(json.dumps(stack.page(self.path, body) if known else {}).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        stack.url = f"http://127.0.0.1:{server.server_port}"
        yield stack
        server.shutdown()
        thread.join()


def verdicts(stack: Stack, key: str = KEY) -> dict[str, CheckVerdict]:
    return {check.name: check.verdict for check in run(cast(Kubectl, stack), key)}


def said(stack: Stack, name: str, key: str = KEY) -> str:
    (found,) = (check.found for check in run(cast(Kubectl, stack), key) if check.name == name)
    return found


def test_a_stack_that_works_passes(stack: Stack) -> None:
    assert verdicts(stack) == dict.fromkeys(("pods", "endpoints", "health", "answers", "targets"), PASS)
    assert "'I am faq.'" in said(stack, "answers")


def test_a_sleeping_model_is_no_failure(stack: Stack) -> None:
    stack.pods = [pod(GATEWAY)]
    stack.endpoints[VLLM_SERVICE] = False
    assert verdicts(stack)["pods"] is PASS
    assert "scaled to zero" in said(stack, "pods")


def test_a_stack_without_monitoring_is_not_asked_for_targets(stack: Stack) -> None:
    stack.services = []
    assert verdicts(stack)["targets"] is SKIP


@pytest.mark.parametrize(
    ("check", "break_it", "anchor"),
    [
        (
            "pods",
            lambda stack: stack.pods.pop(0) and stack.pods.__setitem__(0, pod(GATEWAY, ready=False)),
            "gatewaydown",
        ),
        ("pods", lambda stack: stack.pods.__setitem__(2, pod(VLLM, ready=False)), "pending-pod"),
        ("endpoints", lambda stack: stack.endpoints.update({GATEWAY: False}), "empty-endpoints"),
        ("health", lambda stack: setattr(stack, "forwards", False), "port-forward"),
        ("answers", lambda stack: stack.answers.update(faq=" "), "quality-drops"),
    ],
)
def test_a_failure_names_the_place_in_the_runbook(stack: Stack, check: str, break_it: Any, anchor: str) -> None:
    break_it(stack)
    assert verdicts(stack)[check] is FAIL
    assert f"docs/runbook.md#{anchor}" in said(stack, check)
    titles = [line.lstrip("# ").lower() for line in (CHECKOUT / "docs/runbook.md").read_text().splitlines()]
    assert anchor in [title.replace(" ", "-") for title in titles]


def test_a_wrong_key_and_a_target_that_is_down_are_said(stack: Stack) -> None:
    assert "401" in said(stack, "answers", key="lsk-wrong")
    stack.targets.append({"health": "down", "labels": {"job": "vllm-service"}, "lastError": "connection refused"})
    assert said(stack, "targets") == "1 of 2 down, such as vllm-service: connection refused"
