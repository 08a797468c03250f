"""A request whose adapter no pod holds waits while one loads it: it is never lost, and never told that there is no such model."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from aiohttp import web

from loraserve.contract.agent_state import AdapterStatus, AgentState, State
from loraserve.gateway.errors import AdapterUnavailable
from loraserve.gateway.pods import Pod
from loraserve.gateway.routing import ANY_OTHER, Route
from tests.unit.gateway_world import BASE, World, adapter, chat, error, world
from tests.unit.test_gateway_pods import FAQ, Fleet

DECLARED = ("faq@v1", "legal@v1", "other@v1")


def wanted(fleet: Fleet) -> dict[str, set[str]]:
    """By address, what the pods' agents would be told now."""
    return {pod.address: pod.wanted for pod in fleet.pods.all if pod.wanted}


def test_one_pod_is_asked_the_same_by_every_gateway_and_as_long_as_somebody_waits() -> None:
    fleets = [Fleet(), Fleet()]
    for fleet in fleets:
        for address in "abc":
            fleet.add(address, faq_v2=State.ON_DEMAND)
        assert fleet.served(FAQ) is None
    one, other = (wanted(fleet) for fleet in fleets)
    assert one == other
    ((address, names),) = one.items()
    assert names == {"faq@v2"}
    pod = fleets[0].pods._pods[address]
    assert pod.hurry.is_set()

    pod.hurry.clear()
    demand = pod.demand()
    assert demand
    assert demand.adapters == ("faq@v2",)
    assert pod.demand() is None, "whoever waited may have left"
    fleets[0].served(FAQ)
    assert pod.demand() == demand


def test_a_pod_that_holds_it_or_loads_it_goes_before_one_that_could() -> None:
    fleet = Fleet()
    for address in "abcdef":
        fleet.add(address, faq_v2=State.ON_DEMAND)
    fleet.add("g", faq_v2=State.FETCHING, legal_v1=State.ON_DEMAND)
    assert fleet.served(FAQ) is None
    assert wanted(fleet) == {"g": {"faq@v2"}}

    fleet.add("h", faq_v2=State.READY)
    assert fleet.served(FAQ) == "faq@v2"


def test_another_pod_loads_it_where_those_that_hold_it_are_full() -> None:
    fleet = Fleet(concurrency=1)
    fleet.add("a", faq_v2=State.READY)
    fleet.add("b", faq_v2=State.ON_DEMAND)
    assert fleet.served(FAQ) == "faq@v2"
    assert wanted(fleet) == {}
    assert fleet.served(FAQ) is None
    assert wanted(fleet) == {"b": {"faq@v2"}}


def test_a_quarantined_adapter_is_asked_of_the_pod_that_has_not_tried_it() -> None:
    fleet = Fleet()
    fleet.add("a", faq_v2=State.QUARANTINED, legal_v1=State.ON_DEMAND)
    with pytest.raises(AdapterUnavailable):
        fleet.served(FAQ)
    fleet.add("b", faq_v2=State.ON_DEMAND)
    assert fleet.served(FAQ) is None
    assert wanted(fleet) == {"b": {"faq@v2"}}


def test_callers_of_a_canary_and_of_a_swapped_version_get_what_is_there_meanwhile() -> None:
    fleet = Fleet()
    fleet.add("a", faq_v1=State.READY, faq_v2=State.LOADING, legal_v1=State.ON_DEMAND)
    assert fleet.served(FAQ) == "faq@v1", "until its successor is loaded"
    assert fleet.served(Route("faq", ("faq@v2", "faq@v1", ANY_OTHER))) == "faq@v1"
    assert fleet.served(Route("faq", ("faq@v2",))) is None, "who names a version gets no other"


def test_an_agent_that_holds_everything_is_told_nothing() -> None:
    """It may be of the version before, which takes no demands."""
    fleet = Fleet()
    fleet.add("a", faq_v1=State.READY, faq_v2=State.LOADING)
    fleet.served(FAQ)
    fleet.served(Route("faq", ("faq@v2",)))
    assert all(pod.demand() is None for pod in fleet.pods.all)


def test_an_agent_that_evicts_hears_of_every_use() -> None:
    fleet = Fleet()
    pod = fleet.add("a", faq_v2=State.READY, legal_v1=State.ON_DEMAND)
    fleet.served(FAQ)
    demand = pod.demand()
    assert demand
    assert demand.adapters == ("faq@v2",)
    assert not pod.wanted


def test_a_doubt_about_what_an_agent_said_ends_when_it_says_otherwise() -> None:
    pod = Pod("a", refused_until={"faq@v2": 100.0, "legal@v1": 100.0})
    aside, held = (
        AdapterStatus(name=name, version=version, state=state)
        for name, version, state in (("faq", "v2", State.ON_DEMAND), ("legal", "v1", State.READY))
    )
    pod.hear(AgentState(base=BASE, loaded=(), adapters=(aside, held)), 0.0)
    assert pod.refused_until == {"legal@v1": 100.0}


@pytest.fixture
def at(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        made.pods[0].loads_on_demand(*DECLARED, held=("legal@v1",))
        made.start(*(adapter(served.partition("@")[0]) for served in DECLARED))
        made.wait_for_status("on-demand")
        yield made


def metric(at: World, name: str) -> float:
    lines = at.inner("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[-1])


def test_a_request_waits_for_its_adapter_and_is_answered_by_it(at: World) -> None:
    pod = at.pods[0]
    pod.on_demand = lambda names: pod.loads_on_demand(*DECLARED, held=tuple({"legal@v1", *names}))
    answer = at.post(chat())

    assert (answer.status_code, answer.json()["model"]) == (200, "faq@v1")
    assert pod.demands[0] == ("Bearer vllm-key", {"faq@v1"})
    assert metric(at, "loraserve_gateway_adapter_load_wait_seconds_count") == 1
    assert at.post(chat()).status_code == 200
    assert metric(at, "loraserve_gateway_adapter_load_wait_seconds_count") == 1, "the next one does not wait"


def test_who_waits_too_long_for_a_load_is_told_when_to_come_back(tmp_path: Path) -> None:
    with world(tmp_path, load_seconds=0.2) as at:
        at.pods[0].loads_on_demand(*DECLARED)
        at.start(adapter(), adapter("legal", fallback="base"))
        at.wait_for_status("on-demand")
        strict, falls_back = at.post(chat()), at.post(chat("legal"))

        assert (strict.status_code, strict.json()["error"]["code"]) == (503, "adapter_loading")
        assert int(strict.headers["retry-after"]) <= 5
        assert (falls_back.status_code, falls_back.headers["x-loraserve-fallback"]) == (200, "base")
        assert metric(at, 'loraserve_gateway_fallbacks_total{model="legal",reason="adapter_loading"}') == 1


def test_an_eviction_that_the_gateway_has_not_heard_of_costs_no_request(at: World) -> None:
    """However often it happens to one request."""
    pod, tells, evictions = at.pods[0], iter(range(1, 100)), iter(range(3))

    def load(_: frozenset[str]) -> None:
        if next(tells) % 2 == 0:
            pod.loads_on_demand(*DECLARED, held=("faq@v1",))

    async def evicted_or_served(_: Any, body: dict[str, Any]) -> web.Response:
        if next(evictions, None) is None:
            return pod._whole(body)
        pod.loads_on_demand(*DECLARED)  # its agent says so from now on
        return error(404, f"The model `{body['model']}` does not exist.", "NotFoundError", "model")

    pod.on_demand, pod.behaviour = load, evicted_or_served
    answer = at.post(chat())
    assert (answer.status_code, answer.json()["model"]) == (200, "faq@v1")
    assert pod.models == ["faq@v1"] * 4


def test_many_requests_for_one_adapter_are_one_load(at: World) -> None:
    pod = at.pods[0]
    asked: list[frozenset[str]] = []

    def load(names: frozenset[str]) -> None:
        asked.append(names)
        if len(asked) == 3:
            pod.loads_on_demand(*DECLARED, held=("faq@v1", "legal@v1"))

    pod.on_demand = load
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: cast(httpx.Response, at.post(chat())), range(8)))
    assert [answer.json()["model"] for answer in answers] == ["faq@v1"] * 8
    assert set(asked[:3]) == {frozenset({"faq@v1"})}, "it is told again while they wait"
