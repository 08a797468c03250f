"""Who is on call: a webhook that Alertmanager calls, and a list of what was done to the stack, and when."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from local.progress import console

_LOOK_S = 1


@dataclass(frozen=True)
class Cause:
    """What was done, and when, on the monotonic clock."""

    words: str
    at: float


@dataclass
class OnCall:
    url: str
    """Where alerts are sent."""
    arrived: dict[str, float] = field(default_factory=dict)
    """When each alert came first."""
    causes: dict[str, Cause] = field(default_factory=dict)
    """By the alert that should follow."""

    def caused(self, words: str, *alerts: str) -> None:
        """From now on these are expected."""
        now = time.monotonic()
        self.causes |= {alert: Cause(words, now) for alert in alerts}

    def wait(self, *alerts: str, limit_s: float) -> None:
        """Returns when they have come, or when the time is over."""
        deadline = time.monotonic() + limit_s
        while self.missing(alerts) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)

    def missing(self, alerts: Iterable[str]) -> list[str]:
        return [alert for alert in alerts if alert not in self.arrived]

    def seconds(self, alert: str) -> float | None:
        """From its cause to its arrival; None where it did not come."""
        return self.arrived[alert] - self.causes[alert].at if alert in self.arrived else None

    def hear(self, told: dict[str, Any]) -> None:
        """One call of Alertmanager's."""
        now = time.monotonic()
        for alert in told["alerts"]:
            name = alert["labels"]["alertname"]
            if alert["status"] == "firing" and name not in self.arrived:
                self.arrived[name] = now
                after = (
                    f"{self.seconds(name):.0f} s after: {self.causes[name].words}"
                    if name in self.causes
                    else "uncaused"
                )
                console.print(f"  {name}: {after}; {alert['annotations']['summary']}", markup=False)


@contextmanager
def on_call() -> Iterator[OnCall]:
    """Listens on this machine for as long as it is used."""

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            listener.hear(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as server:
        listener = OnCall(f"http://127.0.0.1:{server.server_port}/")
        Thread(target=server.serve_forever, daemon=True).start()
        yield listener
        server.shutdown()
