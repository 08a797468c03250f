"""`loraserve dashboard`: the panels that Grafana has, in a browser, from any Prometheus; nothing is fetched from elsewhere."""

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from loraserve.monitoring import dashboards
from loraserve.monitoring.metrics import SCRAPE_SECONDS
from loraserve.monitoring.panels import Dashboard, Look, Panel
from loraserve.operator.access.local_page import LocalHandler, LocalServer
from loraserve.operator.access.prometheus import Prometheus, PrometheusUnavailable
from loraserve.operator.stack import figures

_FILES = {
    "/": ("index.html", "text/html"),
    "/dashboard.js": ("dashboard.js", "text/javascript"),
    "/dashboard.css": ("dashboard.css", "text/css"),
}
_PLOTLY = "/plotly.js"
_BOARDS = {board.uid: board for board in dashboards.ALL}
_POINTS = 240
"""On a line: more than its pixels can tell apart are of no use."""
_SHORTEST_STEP, _SHORTEST_RANGE, _LONGEST_RANGE = 15, 5 * 60, 15 * 86400


class DashboardServer(LocalServer):
    """Draws what `prometheus` has. Raises PortTaken; ModuleNotFoundError without plotly."""

    def __init__(self, prometheus: Prometheus, port: int) -> None:
        self.prometheus = prometheus
        self.plotly = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
        super().__init__(port, _Handler)


def drawn(board: Dashboard, prometheus: Prometheus, seconds: int, now: float) -> dict[str, Any]:
    """A page's panels over the last `seconds`, and the alerts. Raises PrometheusUnavailable."""
    step = max(_SHORTEST_STEP, seconds // _POINTS)
    end = now // step * step
    with ThreadPoolExecutor(8) as asking:
        panels = asking.map(lambda panel: _panel(panel, prometheus, end - seconds, end, step), board.panels)
        return {"panels": list(panels), "alerts": _alerts(prometheus)}


def _panel(panel: Panel, prometheus: Prometheus, start: float, end: float, step: int) -> dict[str, Any]:
    # Grafana's own rule for the window of a rate.
    window = max(4 * SCRAPE_SECONDS, step + SCRAPE_SECONDS)
    found = []
    for query in panel.queries:
        expression = query.expression.replace("$__rate_interval", f"{window}s")
        expression = expression.replace("$__range", f"{end - start:.0f}s")
        if panel.look is Look.NUMBER:
            found.append((query, prometheus.now(expression)))
        else:
            found.append((query, prometheus.during(expression, start, end, step)))
    told = {"title": panel.title, "whenBad": panel.when_bad}
    if panel.look is Look.NUMBER:
        return told | {"numbers": figures.numbers(panel, found)}
    return told | {"figure": figures.figure(panel, found, start, end, step)}


def _alerts(prometheus: Prometheus) -> list[dict[str, str]]:
    """Those that fire: name, severity, and what it says; what is said by several windows of a burn rate, once."""
    found: dict[tuple[str, str, str], str] = {}
    for alert in prometheus.alerts():
        severity, name = alert["labels"].get("severity", ""), alert["labels"]["alertname"]
        if alert["state"] == "firing" and severity in ("critical", "warning"):
            told = (severity, name, alert["annotations"].get("summary", ""))
            found[told] = min(alert["activeAt"], found.get(told, alert["activeAt"]))
    return [
        {"name": name, "severity": severity, "summary": summary, "since": since}
        for (severity, name, summary), since in sorted(found.items())
    ]


class _Handler(LocalHandler):
    server: DashboardServer  # pyright: ignore[reportIncompatibleVariableOverride]
    # plotly.js writes styles of its own into the page, and draws a picture of a chart that is to be saved.
    protection: Mapping[str, str] = {
        **LocalHandler.protection,
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src data: blob:; connect-src 'self'",
    }

    def do_GET(self) -> None:
        if not self.is_ours():
            return
        address = urlsplit(self.path)
        board = _BOARDS.get(address.path.removeprefix("/boards/"))
        if address.path in _FILES:
            name, kind = _FILES[address.path]
            self.send_content(Path(__file__).with_name("dashboard").joinpath(name).read_bytes(), kind)
        elif address.path == _PLOTLY:
            self.send_content(self.server.plotly, "text/javascript")
        elif address.path == "/boards":
            self._send_json([{"uid": each.uid, "title": each.title} for each in dashboards.ALL])
        elif board:
            self._send_board(board, parse_qs(address.query))
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _send_board(self, board: Dashboard, asked: Mapping[str, list[str]]) -> None:
        try:
            seconds = min(max(int(asked.get("seconds", ["3600"])[0]), _SHORTEST_RANGE), _LONGEST_RANGE)
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        try:
            self._send_json(drawn(board, self.server.prometheus, seconds, time.time()))
        except PrometheusUnavailable as error:
            self._send_json({"problem": str(error)}, HTTPStatus.BAD_GATEWAY)

    def _send_json(self, content: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_content(json.dumps(content).encode(), "application/json", status)
