"""A day's GPU hours: what they count, what they hold back, and what never costs any."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from loraserve.gateway.brake import Brake
from loraserve.gateway.errors import HoursSpent
from loraserve.gateway.pods import Pods
from tests.unit.declared import declare, environment_in_pod
from tests.unit.gateway_world import adapter, chat, world


class Day:
    """A clock, and pods by number."""

    def __init__(self, hours: float | None) -> None:
        self.now = datetime(2027, 1, 31, 6, tzinfo=UTC)
        self.all: list[Any] = []
        self.brake = Brake(cast(Pods, self), hours, lambda: self.now)

    def later(self, pods: int, **time: float) -> None:
        """So many pods are there from then on."""
        self.now += timedelta(**time)
        self.all = [object()] * pods
        self.brake.observe()


def test_what_runs_is_counted_by_pod_and_holds_back_the_next_start() -> None:
    day = Day(hours=3)
    day.later(2)
    day.later(0, hours=1.4)
    day.brake.check()
    day.later(1, hours=1)
    day.later(0, hours=0.2)
    with pytest.raises(HoursSpent) as held:
        day.brake.check()
    assert "today's 3 hours" in str(held.value)
    assert "2027-02-01T00:00:00+00:00" in str(held.value), "until when"
    assert "operator can raise gpuHoursPerDay" in str(held.value), "who can lift it"


def test_what_is_there_goes_on_and_the_next_day_begins_anew() -> None:
    day = Day(hours=1)
    day.later(1)
    day.later(1, hours=5)
    day.brake.check()
    day.later(1, hours=13.5)  # half past midnight
    day.later(0)
    day.brake.check()
    day.later(1)
    day.later(0, hours=0.5)
    with pytest.raises(HoursSpent):
        day.brake.check()


def test_nothing_counts_before_a_pod_is_there() -> None:
    day = Day(hours=1)
    day.later(0, hours=2)
    day.brake.check()


def test_without_a_limit_nothing_is_held_back() -> None:
    day = Day(hours=None)
    day.later(1)
    day.later(0, hours=10)
    day.brake.check()


def test_a_request_to_a_sleeping_model_is_refused_and_gives_no_signal(tmp_path: Path) -> None:
    with world(tmp_path, replica_hours_per_day=1e-9) as at:
        at.pods[0].holds("faq@v1")
        at.start(adapter())
        at.wait_for_status("ready")
        assert at.post(chat()).status_code == 200
        at.show_pods(0)
        at.wait_for_status("sleeping")
        answer = at.post(chat())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "gpu_hours_spent")
        assert answer.headers["retry-after"] == "60"
        at.wait_for_load()


def test_who_only_looks_wakes_nothing(tmp_path: Path) -> None:
    with world(tmp_path) as at:
        at.start(adapter(), pods=0)
        with at.client() as http:
            for path in ("/v1/models", "/v1/models/faq", "/health") * 3:
                assert http.get(path).status_code == 200
                assert set(at.inner("/scale").json().values()) == {0}


def test_the_limit_is_told_in_hours_of_a_pod() -> None:
    program = declare("dev", gpuHoursPerDay=8, inferenceReplicas=0)
    (container,) = program.one("apps/v1:Deployment", "gateway").inputs["spec"]["template"]["spec"]["containers"]
    assert float(environment_in_pod(container)["GATEWAY_REPLICA_HOURS_PER_DAY"]) == 8
