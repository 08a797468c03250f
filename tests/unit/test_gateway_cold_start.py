"""A start from zero: its phases, and what clients that have to come back are told."""

from __future__ import annotations

import pytest

from loraserve.contract.agent_state import AgentState
from loraserve.gateway.cold_start import BUSY_SECONDS, PHASES, UNKNOWN_SECONDS, ColdStarts
from loraserve.gateway.metrics import Metrics
from loraserve.gateway.pods import Pod, Pods
from tests.unit.gateway_world import BASE
from tests.unit.test_gateway_pods import Fleet


class Start:
    """A clock, and pods that appear when told."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.pods: Pods = self.fleet.pods
        self.metrics = Metrics()
        self.waiting = 1
        self.cold_starts = ColdStarts(
            self.pods, self.metrics, 450, waiting=lambda: self.waiting, clock=lambda: self.fleet.now
        )

    def after(self, seconds: float) -> None:
        self.fleet.now += seconds

    def says(self, state: AgentState | None) -> None:
        """There is a pod; its agent says so (None: nothing yet)."""
        pod = self.pods._pods.setdefault("a", Pod("a"))
        if state:
            pod.hear(state, self.fleet.now)
        self.cold_starts.observe()

    def seen(self, name: str) -> float:
        exposition = self.metrics.exposition().decode()
        return next((float(line.split()[-1]) for line in exposition.splitlines() if line.startswith(name)), 0.0)


@pytest.fixture
def start() -> Start:
    return Start()


def test_every_phase_is_measured_and_the_next_estimate_is_what_was_seen(start: Start) -> None:
    start.cold_starts.begin()
    for seconds, state in (
        (90, None),
        (30, AgentState(base=BASE)),
        (60, AgentState(base=BASE, loaded=())),
        (5, AgentState(base=BASE, loaded=(), ready=True)),
    ):
        start.after(seconds)
        start.says(state)

    measured = {p: start.seen(f'loraserve_gateway_cold_start_phase_seconds_sum{{phase="{p}"}}') for p in PHASES}
    assert measured == {"pod": 90, "agent": 30, "model": 60, "adapters": 5}
    assert start.seen("loraserve_gateway_cold_starts_total") == 1
    start.pods._pods.clear()
    start.cold_starts.begin()
    assert start.cold_starts.remaining() == 185


def test_the_time_left_shrinks_while_the_start_goes_on(start: Start) -> None:
    start.cold_starts.begin()
    start.after(400)
    assert start.cold_starts.remaining() == 50


def test_a_late_start_is_asked_after_now_and_then_and_a_busy_model_soon(start: Start) -> None:
    start.cold_starts.begin()
    start.after(500)
    assert start.cold_starts.remaining() == UNKNOWN_SECONDS
    start.says(AgentState(base=BASE, loaded=(), ready=True))
    assert start.cold_starts.remaining() == BUSY_SECONDS


def test_a_start_that_nobody_waits_for_any_more_does_not_count(start: Start) -> None:
    start.cold_starts.begin()
    start.after(10_000)  # the client has long left
    start.cold_starts.begin()
    assert start.cold_starts.remaining() == 450


def test_who_joins_a_start_does_not_begin_it_anew(start: Start) -> None:
    start.cold_starts.begin()
    start.after(100)
    start.waiting = 2
    start.cold_starts.begin()
    assert start.cold_starts.remaining() == 350


def test_waiting_for_an_adapter_of_an_awake_model_is_no_cold_start(start: Start) -> None:
    start.says(AgentState(base=BASE, loaded=(), ready=True))
    start.cold_starts.begin()
    start.says(AgentState(base=BASE, loaded=(), ready=True))
    assert start.seen("loraserve_gateway_cold_starts_total") == 0
