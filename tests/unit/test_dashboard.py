"""The page of `loraserve dashboard`: Grafana's panels, drawn from what a Prometheus answers."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from plotly.graph_objects import Figure

from loraserve.monitoring import dashboards
from loraserve.monitoring.panels import Dashboard, Look, Panel, Query, Unit
from loraserve.operator.access.prometheus import Prometheus, PrometheusUnavailable, Series
from loraserve.operator.stack import dashboard_server
from loraserve.operator.stack.dashboard_server import DashboardServer, drawn
from loraserve.operator.stack.figures import figure, in_words, numbers

NOW = 1_800_000_000.0
ALERT = {
    "state": "firing",
    "labels": {"alertname": "GatewayDown", "severity": "critical"},
    "annotations": {"summary": "No gateway answers."},
    "activeAt": "2027-01-15T08:00:00Z",
}


@dataclass
class Answers:
    """In the place of a Prometheus: two lines for whatever is asked."""

    asked: list[str] = field(default_factory=list)
    broken: bool = False

    def now(self, expression: str) -> list[Series]:
        return [Series(each.labels, each.points[-1:]) for each in self.during(expression, NOW - 60, NOW, 15)]

    def during(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        if self.broken:
            raise PrometheusUnavailable("it is gone")
        self.asked.append(expression)
        times = [start + step * number for number in range(int((end - start) / step) + 1)]
        labels = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", expression)))) - {"le"}
        return [
            Series({label: f"{label}-{line}" for label in labels}, tuple((time, 0.1 + line) for time in times))
            for line in (0, 1)
        ]

    def alerts(self) -> list[dict[str, Any]]:
        return [ALERT, ALERT | {"state": "pending"}, ALERT | {"labels": {"alertname": "Watchdog", "severity": "none"}}]


def panel(look: Look = Look.LINES, unit: Unit = Unit.SECONDS, **more: Any) -> Panel:
    return Panel("Latency", unit, (Query("up", "{{pod}}"),), "It is slow.", look=look, **more)


def line(*points: tuple[float, float], pod: str = "a") -> Series:
    return Series({"pod": pod}, points)


def draw(shown: Panel, *lines: Series) -> dict[str, Any]:
    return figure(shown, [(shown.queries[0], lines)], NOW, NOW + 60, 15)


@pytest.mark.parametrize("board", dashboards.ALL, ids=lambda board: board.uid)
def test_every_panel_of_a_page_is_drawn_and_plotly_takes_it(board: Dashboard) -> None:
    prometheus = Answers()
    told = drawn(board, cast(Prometheus, prometheus), 3600, NOW)
    assert [each["title"] for each in told["panels"]] == [each.title for each in board.panels]
    assert len(prometheus.asked) == sum(len(each.queries) for each in board.panels)
    assert not any("$" in expression for expression in prometheus.asked), "what Grafana would fill in"
    for each in told["panels"]:
        if "figure" in each:
            Figure(each["figure"])
            assert all(line["name"] for line in each["figure"]["data"])
            assert {len(line["x"]) for line in each["figure"]["data"]} == {241}
        else:
            assert all(number["text"] for number in each["numbers"])
    assert told["alerts"] == [
        {"name": "GatewayDown", "severity": "critical", "summary": "No gateway answers.", "since": ALERT["activeAt"]}
    ]


def test_what_several_windows_of_a_rule_tell_is_told_once_and_what_is_critical_first() -> None:
    warning = {"labels": {"alertname": "QueueGrows", "severity": "warning"}}
    again = {"labels": ALERT["labels"] | {"long": "6h"}, "activeAt": "2999-01-01T00:00:00Z"}

    class Several(Answers):
        def alerts(self) -> list[dict[str, Any]]:
            return [ALERT | warning, ALERT | again, ALERT]

    told = drawn(dashboards.ALL[0], cast(Prometheus, Several()), 3600, NOW)["alerts"]
    assert [(each["name"], each["since"]) for each in told] == [
        ("GatewayDown", ALERT["activeAt"]),
        ("QueueGrows", ALERT["activeAt"]),
    ]


def test_a_longer_time_has_no_more_points_and_a_wider_window() -> None:
    prometheus = Answers()
    (first, *_) = drawn(dashboards.ALL[0], cast(Prometheus, prometheus), 86400, NOW)["panels"]
    assert len(first["figure"]["data"][0]["x"]) == 241
    assert "[390s]" in prometheus.asked[0]


def test_a_hole_in_the_data_stays_a_hole() -> None:
    (drawn_line,) = draw(panel(), line((NOW, 1), (NOW + 15, 2), (NOW + 60, math.nan)))["data"]
    assert drawn_line["y"] == [1, 2, None, None]
    assert drawn_line["name"] == "a"


def test_of_many_lines_those_at_zero_are_left_out() -> None:
    at_zero = [line((NOW, 0), pod=str(number)) for number in range(8)]
    assert len(draw(panel(), *at_zero[:3], line((NOW, 1)))["data"]) == 4
    assert [each["name"] for each in draw(panel(), *at_zero, line((NOW, 1)))["data"]] == ["a"]
    assert draw(panel(), *at_zero)["data"]
    assert not draw(panel(), line((NOW, math.nan)))["data"], "what is no number is no data"


def test_where_it_looks_bad_is_a_dashed_line_that_does_not_flatten_the_others() -> None:
    for value, top in ((0.1, 0.1), (4, 5), (9, 9)):
        layout = draw(panel(warn=5), line((NOW, value)))["layout"]
        assert layout["shapes"][0]["y0"] == 5
        assert layout["yaxis"]["range"] == [0, pytest.approx(top, rel=0.1)]


def test_a_share_ends_at_its_maximum_and_stacked_lines_lie_on_each_other() -> None:
    lines = line((NOW, 0.1)), line((NOW, 0.2), pod="b")
    for more, top in (({"maximum": 1}, 1), ({}, 0.3)):
        drawn_panel = draw(panel(Look.STACKED, Unit.SHARE, **more), *lines)
        assert drawn_panel["layout"]["yaxis"]["range"] == [0, pytest.approx(top, rel=0.1)]
        assert {each["stackgroup"] for each in drawn_panel["data"]} == {"all"}


@pytest.mark.parametrize("unit", Unit)
def test_every_unit_is_drawn(unit: Unit) -> None:
    Figure(draw(panel(unit=unit), line((NOW, 1))))
    assert in_words(1, unit)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.25, Unit.SECONDS, "250 ms"),
        (12.34, Unit.SECONDS, "12.3 s"),
        (7200, Unit.SECONDS, "2 h"),
        (0.123, Unit.SHARE, "12.3%"),
        (0.1523, Unit.DOLLARS, "$0.15"),
        (1234567, Unit.COUNT, "1,234,567"),
        (3.01, Unit.COUNT, "3"),
        (0.5, Unit.COUNT, "0.50"),
        (72, Unit.WATT, "72 W"),
    ],
)
def test_a_number_in_words(value: float, unit: Unit, text: str) -> None:
    assert in_words(value, unit) == text


def test_a_number_looks_bad_from_its_warning_on_and_what_is_none_is_left_out() -> None:
    shown = panel(Look.NUMBER, Unit.COUNT, warn=2)
    found = numbers(
        shown, [(shown.queries[0], [line((NOW, 2)), line((NOW, 1), pod="b"), line((NOW, math.nan), pod="c")])]
    )
    assert [(each["name"], each["bad"]) for each in found] == [("a", True), ("b", False)]


@pytest.fixture
def prometheus() -> Answers:
    return Answers()


@pytest.fixture
def browser(prometheus: Answers) -> Iterator[httpx.Client]:
    with (
        DashboardServer(cast(Prometheus, prometheus), 0) as server,
        httpx.Client(base_url=server.url, trust_env=False) as client,
    ):
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield client
        server.shutdown()


def test_the_page_finds_all_that_it_loads_on_this_machine(browser: httpx.Client) -> None:
    page = browser.get("/")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert set(loaded) - {"data:,"} == {"dashboard.css", "plotly.js", "dashboard.js"}
    assert all(browser.get(f"/{name}").is_success for name in loaded if name != "data:,")
    folder = Path(dashboard_server.__file__).with_name("dashboard")
    assert not any(re.search(r"https?://", file.read_text()) for file in folder.iterdir())
    assert "plotly.js v" in browser.get("/plotly.js").text[:100]
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_pages_are_listed_and_each_is_given(browser: httpx.Client) -> None:
    boards = browser.get("/boards").json()
    assert [board["title"] for board in boards] == [board.title for board in dashboards.ALL]
    assert browser.get(f"/boards/{boards[0]['uid']}", params={"seconds": 900}).json()["panels"]
    assert browser.get("/boards/nothing").status_code == 404
    assert browser.get(f"/boards/{boards[0]['uid']}", params={"seconds": "an hour"}).status_code == 400


def test_a_prometheus_that_is_gone_is_told(browser: httpx.Client, prometheus: Answers) -> None:
    prometheus.broken = True
    answer = browser.get(f"/boards/{dashboards.ALL[0].uid}")
    assert (answer.status_code, answer.json()) == (502, {"problem": "it is gone"})


def test_a_name_that_was_made_to_point_here_is_refused(browser: httpx.Client) -> None:
    assert browser.get("/", headers={"Host": "evil.example:8091"}).status_code == 421


def test_what_does_not_answer_as_prometheus_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr("urllib.request.OpenerDirector.open", refuse)
    with pytest.raises(PrometheusUnavailable, match=r"http://nobody:9090 does not answer as Prometheus"):
        Prometheus("http://nobody:9090").now("up")


def test_prometheus_own_form_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(_: object, address: str, **__: object) -> Any:
        asked.append(address)
        result = [{"metric": {"pod": "a"}, "values": [[NOW, "1.5"], [NOW + 15, "NaN"]]}]
        (tmp_path / "answer").write_text(json.dumps({"data": {"result": result}}))
        return (tmp_path / "answer").open()

    monkeypatch.setattr("urllib.request.OpenerDirector.open", answer)
    (series,) = Prometheus("http://here:9090").during("up", NOW, NOW + 15, 15)
    assert (series.labels, series.points[0]) == ({"pod": "a"}, (NOW, 1.5))
    assert math.isnan(series.latest)
    assert asked[0].startswith("http://here:9090/api/v1/query_range?query=up&start=1800000000.0")
