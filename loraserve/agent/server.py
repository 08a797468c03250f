"""What the agent answers over HTTP: state, metrics and probes."""

import hmac
import http.server
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import ValidationError

from loraserve.agent.metrics import Metrics, VllmMetrics
from loraserve.agent.reconciler import Reconciler
from loraserve.contract.agent_state import DEMAND_PATH, SETTLED, AdapterStatus, Demand, State
from loraserve.log import event

log = logging.getLogger(__name__)

LONGEST_SILENCE_SECONDS = 120.0
"""More than the slowest pass of the reconciler: it waits for a few short answers of vLLM, and deletes from the disk."""
HOLD_SECONDS = 180.0
"""How long, from vLLM's first answer on, an adapter that is tried again keeps the pod from becoming ready."""
LARGEST_DEMAND_BYTES = 256 << 10
"""Some names for each request that a gateway may hold."""


@dataclass(frozen=True)
class Answer:
    text: str
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


class Readiness:
    """Latches: waits once for every desired and healthy adapter, and depends on vLLM's health alone from then on.

    So a new adapter, or a bad one, never takes a serving pod out of its Service. One that failed for a reason that may
    pass, such as an S3 that is away, is waited for as well, but no longer than HOLD_SECONDS.
    """

    def __init__(self, reconciler: Reconciler, clock: Callable[[], float]) -> None:
        self._reconciler = reconciler
        self._clock = clock
        self._held_since: float | None = None
        self._latched = False

    def obstacle(self) -> str | None:
        """Why the pod must not get requests; None if it may. Asks nobody: it is what the reconciler saw last."""
        report = self._reconciler.report
        if report.base is None and not self._latched:
            return report.problem or "the desired state was not read yet"
        if report.loaded is None:
            return "vLLM does not answer, or is not healthy"
        if not self._latched and (obstacle := self._adapters_obstacle(report.adapters)):
            return obstacle
        if not self._latched:
            log.info(event("ready for requests"))
        self._latched = True
        return None

    def _adapters_obstacle(self, adapters: Sequence[AdapterStatus]) -> str | None:
        if self._held_since is None:
            self._held_since = self._clock()
        held = self._clock() - self._held_since < HOLD_SECONDS
        waiting = [a for a in adapters if a.state not in SETTLED or (held and a.transient)]
        return ", ".join(map(_what_it_does, waiting)) or None


def _what_it_does(adapter: AdapterStatus) -> str:
    if adapter.state is State.QUARANTINED:
        return f"{adapter.served_name} is tried again: {adapter.reason}"
    return f"{adapter.served_name} is {adapter.state}"


class Forerunner(Protocol):
    """What vLLM's container waits for."""

    @property
    def obstacle(self) -> str | None: ...


class AgentApi:
    def __init__(
        self,
        reconciler: Reconciler,
        metrics: Metrics,
        vllm_metrics: VllmMetrics,
        forerunners: Sequence[Forerunner],
        *,
        api_key: str | None = None,
        vital: Sequence[threading.Thread] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`api_key` is vLLM's, and asked of who wants adapters to be loaded; None asks none. `vital` threads never end while
        the agent is well; `clock` is the reconciler's."""
        self._reconciler = reconciler
        self._metrics = metrics
        self._vllm_metrics = vllm_metrics
        self._forerunners = forerunners
        self._api_key = api_key
        self._vital = vital
        self._clock = clock
        self._readiness = Readiness(reconciler, clock)
        self.routes: dict[str, Callable[[], Answer]] = {
            "/v1/state": self.state,
            "/metrics": self.metrics,
            "/startupz": self.startupz,
            "/readyz": self.readyz,
            "/livez": self.livez,
        }

    def state(self) -> Answer:
        """What is known, with its age; vLLM is not asked."""
        known = {"ready": self._readiness.obstacle() is None, "age": self._reconciler.age}
        report = self._reconciler.report.model_copy(update=known)
        return Answer(report.model_dump_json(by_alias=True), content_type="application/json")

    def demand(self, body: bytes, authorization: str) -> Answer:
        """Takes note of what requests wait for and use; answers the state."""
        if self._api_key and not hmac.compare_digest(authorization.encode(), f"Bearer {self._api_key}".encode()):
            return Answer("unauthorized; give vLLM's API key\n", 401)
        try:
            demand = Demand.model_validate_json(body)
        except ValidationError as error:
            return Answer(f"{error}\n", 400)
        self._reconciler.ask(demand.adapters)
        return self.state()

    def metrics(self) -> Answer:
        """vLLM's metrics, where it answers, and the agent's."""
        text = self._vllm_metrics.text() + self._metrics.exposition()
        return Answer(text, content_type="text/plain; version=0.0.4; charset=utf-8")

    def startupz(self) -> Answer:
        """Whether vLLM may start."""
        obstacles = [one.obstacle for one in self._forerunners]
        return _unless("; ".join(filter(None, obstacles)) or None, "started")

    def readyz(self) -> Answer:
        return _unless(self._readiness.obstacle(), "ready")

    def livez(self) -> Answer:
        if ended := [thread.name for thread in self._vital if not thread.is_alive()]:
            return Answer(f"{', '.join(ended)} ended\n", 503)
        silence = self._clock() - self._reconciler.last_sign_of_life
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
            self._send(route() if route else Answer(f"no such page; there are {', '.join(api.routes)}\n", 404))

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != DEMAND_PATH:
                answer = Answer(f"no such page; there is {DEMAND_PATH}\n", 404)
            elif not length.isdecimal() or int(length) > LARGEST_DEMAND_BYTES:
                answer = Answer(f"give a Content-Length of at most {LARGEST_DEMAND_BYTES}\n", 413)
                self.close_connection = True
            else:
                answer = api.demand(self.rfile.read(int(length)), self.headers.get("Authorization", ""))
            self._send(answer)

        def _send(self, answer: Answer) -> None:
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
