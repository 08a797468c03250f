"""Asks the served models a question, as an application would: through the gateway, with an API key."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from infra.names import GATEWAY, GATEWAY_PORT, SERVING_NAMESPACE
from local.cluster import kubectl
from local.processes import Process, ProcessError

_START_SECONDS = 60
_ANSWER_SECONDS = 600
"""A sleeping model is woken first."""


class GatewayLost(ProcessError):
    """Nobody answered, as while the gateway is just starting."""


class Endpoint:
    """The OpenAI-compatible endpoint of a running stack."""

    def __init__(self, url: str, key: str) -> None:
        self.variables = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": key}
        """As OpenAI's clients and `loraserve` read them."""
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=_ANSWER_SECONDS, trust_env=False
        )

    def models(self) -> list[str]:
        """Every name that can be asked. Raises ProcessError."""
        answer = self._http.get("/v1/models")
        return [model["id"] for model in _checked(answer).json()["data"]]

    def ask(self, model: str, question: str, max_tokens: int = 40) -> str:
        """The model's answer, the likeliest at each step. Raises ProcessError."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        try:
            answer = self._http.post("/v1/chat/completions", json=body)
        except httpx.HTTPError as error:
            raise GatewayLost(f"The gateway did not answer: {error or type(error).__name__}") from error
        return _checked(answer).json()["choices"][0]["message"]["content"].strip()


@contextlib.contextmanager
def endpoint(kubeconfig: Path, key: str, namespace: str = SERVING_NAMESPACE) -> Iterator[Endpoint]:
    """Forwards a free port of this machine to the gateway for as long as it is used. Raises ProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        forward = _forward(kubeconfig, namespace, Path(folder))
        try:
            yield Endpoint(f"http://{_address(forward)}", key)
        finally:
            forward.stop()


def _forward(kubeconfig: Path, namespace: str, folder: Path) -> Process:
    """A process that listens and forwards. Raises GatewayLost."""
    service = ["--namespace", namespace, "port-forward", f"service/{GATEWAY}", f":{GATEWAY_PORT}"]
    command = kubectl.command(kubeconfig, *service)
    deadline = time.monotonic() + _START_SECONDS
    while True:
        forward = Process.start("port-forward", command, folder, die_with_parent=True)
        try:
            forward.wait_until(lambda started=forward: bool(_address(started)))
        except ProcessError as error:
            forward.stop()
            if time.monotonic() > deadline:
                raise GatewayLost(f"The gateway cannot be reached: {error}") from None
            time.sleep(1)  # the gateway, or its node, is just starting
        else:
            return forward


def _address(forward: Process) -> str | None:
    """Where it listens; None before it does."""
    listening = re.search(r"127\.0\.0\.1:\d+", forward.log.read_text())
    return listening[0] if listening else None


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.text.strip()
    raise ProcessError(f"The model answered {answer.status_code}: {message}")
