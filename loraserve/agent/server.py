"""What the agent answers over HTTP: state, metrics and probes."""

import http.server
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from loraserve.agent.base_weights import BaseWeights
from loraserve.agent.metrics import Metrics
from loraserve.agent.reconciler import Reconciler
from loraserve.agent.vllm import USE_METRIC, Vllm, VllmRefused, VllmUnreachable
from loraserve.contract.agent_state import SETTLED
from loraserve.log import event

log = logging.getLogger(__name__)

LONGEST_SILENCE_SECONDS = 300.0
"""More than the slowest single step of the reconciler: a probe, which is three completions, and a pre-warming one."""


@dataclass(frozen=True)
class Answer:
    text: str
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


class Readiness:
    """Latches: waits once for every desired and healthy adapter, and depends on vLLM's health alone from then on.

    So a new adapter, or a bad one, never takes a serving pod out of its Service.
    """

    def __init__(self, reconciler: Reconciler, vllm: Vllm) -> None:
        self._reconciler = reconciler
        self._vllm = vllm
        self._latched = False

    def obstacle(self) -> str | None:
        """Why the pod must not get requests; None if it may."""
        if not self._vllm.healthy():
            return "vLLM is not healthy"
        if not self._latched and (obstacle := self._adapters_obstacle()):
            return obstacle
        if not self._latched:
            log.info(event("ready for requests"))
        self._latched = True
        return None

    def _adapters_obstacle(self) -> str | None:
        report = self._reconciler.report
        if report.base is None:
            return report.problem or "the desired state was not read yet"
        if report.loaded is None:
            return "vLLM was not asked for its adapters yet"
        waiting = [a for a in report.adapters if a.state not in SETTLED]
        return ", ".join(f"{adapter.served_name} is {adapter.state}" for adapter in waiting) or None


class AgentApi:
    def __init__(self, reconciler: Reconciler, vllm: Vllm, metrics: Metrics, base_weights: BaseWeights) -> None:
        self._reconciler = reconciler
        self._vllm = vllm
        self._metrics = metrics
        self._base_weights = base_weights
        self._readiness = Readiness(reconciler, vllm)
        self.routes: dict[str, Callable[[], Answer]] = {
            "/v1/state": self.state,
            "/metrics": self.metrics,
            "/startupz": self.startupz,
            "/readyz": self.readyz,
            "/livez": self.livez,
        }

    def state(self) -> Answer:
        report = self._reconciler.report.model_copy(update={"ready": self._readiness.obstacle() is None})
        return Answer(report.model_dump_json(by_alias=True), content_type="application/json")

    def metrics(self) -> Answer:
        """vLLM's metrics, where it answers, and the agent's.

        Left out is one series per set of adapters that ever was in use at once: there is no end of them, and the agent's
        own metrics say when each adapter was.
        """
        try:
            lines = self._vllm.metrics().splitlines(keepends=True)
        except (VllmUnreachable, VllmRefused):
            lines = []
        exported = "".join(line for line in lines if not line.startswith(f"{USE_METRIC}{{"))
        return Answer(exported + self._metrics.exposition(), content_type="text/plain; version=0.0.4; charset=utf-8")

    def startupz(self) -> Answer:
        """Whether vLLM may start."""
        return _unless(self._base_weights.obstacle, "started")

    def readyz(self) -> Answer:
        return _unless(self._readiness.obstacle(), "ready")

    def livez(self) -> Answer:
        silence = time.monotonic() - self._reconciler.last_sign_of_life
        if silence > LONGEST_SILENCE_SECONDS:
            return Answer(f"the reconciler has been stuck for {silence:.0f} s\n", 503)
        return Answer("alive\n")


def _unless(obstacle: str | None, well: str) -> Answer:
    return Answer(f"{obstacle}\n", 503) if obstacle else Answer(f"{well}\n")


def serve(api: AgentApi, port: int) -> http.server.ThreadingHTTPServer:
    """Answers in the background on all addresses; port 0 takes a free one. Raises OSError if the port is in use."""

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            route = api.routes.get(self.path.partition("?")[0])
            answer = route() if route else Answer(f"no such page; there are {', '.join(api.routes)}\n", 404)
            body = answer.text.encode()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes and scrapes are no events."""

    server = http.server.ThreadingHTTPServer(("", port), Handler)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server
