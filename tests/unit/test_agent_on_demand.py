"""Where more is declared than vLLM holds, a request has its adapter loaded, and the one unused for longest goes."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loraserve.agent.server import LARGEST_DEMAND_BYTES, serve
from loraserve.agent.working_set import ASKED_SECONDS, EVICTION
from loraserve.contract.agent_state import AgentState, State
from loraserve.contract.desired_state import Adapter, Envelope
from tests.unit.adapters_and_vllm import QKVO, FakeVllm
from tests.unit.agents import Agent, Publish, want

pytest_plugins = ["tests.unit.agent_fixtures"]

NewAgent = Callable[..., Agent]


@pytest.fixture
def adapters(publish: Publish) -> list[Adapter]:
    """Four of one size, with the same bytes on disk."""
    first = publish("a")
    return [first.model_copy(update={"name": name}) for name in "abcd"]


@pytest.fixture
def agent(new_agent: NewAgent, desired: Path, adapters: list[Adapter]) -> Agent:
    """It holds two of the four."""
    agent = new_agent(held=2)
    want(desired, *adapters)
    agent.settle()
    return agent


def states(agent: Agent) -> dict[str, State]:
    return {served: status.state for served, status in agent.statuses.items()}


def evict(agent: Agent) -> None:
    """What is on its way out goes."""
    agent.settle()
    agent.wait(EVICTION.quiet_seconds)
    agent.settle()


def forget(agent: Agent) -> None:
    """What was asked for is long ago."""
    agent.wait(ASKED_SECONDS)
    agent.settle()


def test_what_is_beyond_the_working_set_waits_for_a_request_and_holds_up_nobody(
    new_agent: NewAgent, vllm: FakeVllm, desired: Path, disk: Path, publish: Publish
) -> None:
    agent = new_agent(held=2)
    want(desired, *(publish(name) for name in "abc"))
    agent.settle()

    assert states(agent) == {"a@v1": State.READY, "b@v1": State.READY, "c@v1": State.ON_DEMAND}
    assert set(vllm.loads) == {"a@v1", "b@v1"}
    assert not [folder for folder in disk.iterdir() if folder.name.startswith("c@")]
    assert agent.api.readyz().status == 200
    assert 'loraserve_adapter_state{adapter="c",state="on-demand",version="v1"} 1.0' in agent.api.metrics().text


def test_prewarmed_adapters_are_the_first_to_be_held(
    new_agent: NewAgent, vllm: FakeVllm, desired: Path, adapters: list[Adapter]
) -> None:
    want(desired, *adapters[:3], adapters[3].model_copy(update={"prewarm": True}))
    new_agent(held=1).settle()
    assert vllm.loaded.keys() == {"d@v1"}


def test_a_request_has_it_loaded_and_what_is_unused_for_longest_goes(agent: Agent, vllm: FakeVllm) -> None:
    vllm.used = {"b@v1": 10.0, "a@v1": 20.0}
    agent.settle()

    agent.reconciler.ask(["c@v1"])
    agent.settle()
    assert states(agent)["c@v1"] is State.READY, "nobody waits for the other to go"
    assert states(agent)["b@v1"] is State.ON_DEMAND, "no new request is sent to it"
    assert "b@v1" in vllm.loaded, "those on their way are served"

    evict(agent)
    assert vllm.loaded.keys() == {"a@v1", "c@v1"}
    assert "loraserve_adapter_evictions_total 1.0" in agent.api.metrics().text


def test_what_a_request_uses_is_never_evicted(agent: Agent, vllm: FakeVllm) -> None:
    agent.reconciler.ask(["c@v1"])
    for second in range(30):
        vllm.used = {"a@v1": second, "b@v1": second + 0.1, "c@v1": second + 0.2}
        agent.wait(EVICTION.quiet_seconds / 2)
        agent.settle()
    assert vllm.loaded.keys() == {"a@v1", "b@v1", "c@v1"}
    assert states(agent)["a@v1"] is State.ON_DEMAND

    evict(agent)
    assert vllm.loaded.keys() == {"b@v1", "c@v1"}, "its requests were over"


def test_nothing_is_evicted_while_vllm_does_not_say_what_is_in_use(
    agent: Agent, vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = vllm.answer

    def silent(path: str, body: Any) -> Any:
        return (500, "") if path.startswith("/metrics/") else answer(path, body)

    monkeypatch.setattr(vllm, "answer", silent)
    agent.reconciler.ask(["c@v1", "d@v1"])
    evict(agent)
    evict(agent)
    assert vllm.loaded.keys() == {"a@v1", "b@v1", "c@v1", "d@v1"}

    monkeypatch.undo()
    evict(agent)
    assert vllm.loaded.keys() == {"c@v1", "d@v1"}


def test_what_is_asked_for_on_its_way_out_is_ready_at_once(agent: Agent, vllm: FakeVllm) -> None:
    agent.reconciler.ask(["c@v1", "d@v1"])
    agent.settle()
    assert states(agent)["a@v1"] is State.ON_DEMAND

    agent.reconciler.ask(["a@v1"])
    agent.reconciler.step()
    assert states(agent)["a@v1"] is State.READY
    assert vllm.loads.count("a@v1") == 1


def test_what_was_evicted_comes_back_and_keeps_its_place_on_the_disk(agent: Agent, vllm: FakeVllm) -> None:
    for names in (["c@v1", "d@v1"], ["a@v1", "b@v1"]):
        agent.reconciler.ask(names)
        evict(agent)
        forget(agent)
        assert vllm.loaded.keys() == set(names)
        assert {name for name, state in states(agent).items() if state is State.READY} == set(names)


def test_a_use_that_only_the_gateway_saw_counts(agent: Agent, vllm: FakeVllm) -> None:
    """vLLM tells of no request of a single token."""
    vllm.used = {"b@v1": 10.0, "a@v1": 5.0}
    agent.settle()
    agent.reconciler.ask(["a@v1"])
    forget(agent)

    agent.reconciler.ask(["c@v1"])
    evict(agent)
    assert vllm.loaded.keys() == {"a@v1", "c@v1"}


def test_more_than_it_holds_may_be_asked_for_at_once(agent: Agent, vllm: FakeVllm) -> None:
    agent.reconciler.ask(["c@v1", "d@v1", "a@v1"])
    evict(agent)
    assert vllm.loaded.keys() == {"a@v1", "c@v1", "d@v1"}

    forget(agent)
    evict(agent)
    assert len(vllm.loaded) == 2


def test_whose_request_came_first_is_loaded_first(
    new_agent: NewAgent, vllm: FakeVllm, desired: Path, adapters: list[Adapter]
) -> None:
    agent = new_agent(held=1)
    want(desired, *adapters)
    agent.settle()
    vllm.up = False
    for name in ("d@v1", "b@v1", "c@v1"):
        agent.reconciler.ask([name])
        agent.settle()
        agent.wait(1)
    vllm.up = True
    agent.settle()
    assert vllm.loads == ["a@v1", "d@v1", "b@v1", "c@v1"]


def test_a_canary_comes_and_goes_with_its_stable_version(
    new_agent: NewAgent, vllm: FakeVllm, desired: Path, adapters: list[Adapter], publish: Publish
) -> None:
    agent = new_agent(held=2)
    canary = publish("d", "v0").model_copy(update={"canary_percent": 10, "version": "v0"})
    want(desired, *adapters, canary)
    agent.settle()

    agent.reconciler.ask(["d@v1"])
    evict(agent)
    assert vllm.loads[-2:] == ["d@v1", "d@v0"], "callers of the stable version do not get the canary meanwhile"
    assert vllm.loaded.keys() == {"d@v0", "d@v1"}


def test_the_new_version_of_what_is_held_is_loaded_and_that_of_another_waits(
    agent: Agent, vllm: FakeVllm, desired: Path, adapters: list[Adapter], publish: Publish
) -> None:
    held, other = (publish(name, "v2") for name in "bd")
    want(desired, *adapters[:1], held, adapters[2], other)
    statuses = agent.settle()
    assert statuses["b@v2"].state is State.READY
    assert statuses["b@v1"].state is State.DRAINING
    assert statuses["d@v2"].state is State.ON_DEMAND

    agent.drain()
    assert vllm.loaded.keys() == {"a@v1", "b@v2"}


def test_an_old_version_serves_while_its_successor_fails_though_others_are_asked_for(
    agent: Agent, vllm: FakeVllm, desired: Path, adapters: list[Adapter], publish: Publish
) -> None:
    vllm.refuses = {"b@v2": "no"}
    want(desired, *adapters[:1], publish("b", "v2"), *adapters[2:])
    agent.settle()
    agent.reconciler.ask(["c@v1", "d@v1"])
    agent.drain()
    forget(agent)
    evict(agent)
    assert "b@v1" in vllm.loaded
    assert states(agent)["b@v2"] is State.QUARANTINED


def test_quarantine_is_told_apart_and_ends_when_a_request_may_try_again(agent: Agent, vllm: FakeVllm) -> None:
    vllm.refuses = {"c@v1": "no"}
    agent.reconciler.ask(["c@v1"])
    agent.settle()
    assert states(agent)["c@v1"] is State.QUARANTINED

    agent.reconciler.ask(["a@v1", "b@v1"])
    agent.wait(ASKED_SECONDS)
    agent.settle()
    assert states(agent)["c@v1"] is State.ON_DEMAND, "nobody asks for it, and it is not tried by itself"
    vllm.refuses = {}
    agent.reconciler.ask(["c@v1"])
    assert agent.settle()["c@v1"].state is State.READY


def test_what_cannot_be_loaded_is_known_before_anybody_asks(
    new_agent: NewAgent, desired: Path, adapters: list[Adapter]
) -> None:
    agent = new_agent(held=1, envelope=Envelope(slots=4, rank=8, target_modules=QKVO))
    want(desired, *adapters[:2], adapters[2].model_copy(update={"rank": 16}))
    assert agent.settle()["c@v1"].state is State.QUARANTINED


def test_the_disk_gives_room_to_what_is_asked_for(
    new_agent: NewAgent, vllm: FakeVllm, desired: Path, disk: Path, publish: Publish
) -> None:
    wanted = [publish(name) for name in "abcde"]
    agent = new_agent(held=4, disk_bytes=int(3.5 * wanted[0].size_bytes))
    want(desired, *wanted)
    agent.settle()
    assert vllm.loaded.keys() == {"a@v1"}, "two more have room on the disk"

    for name in ("c@v1", "e@v1", "d@v1"):
        agent.reconciler.ask([name])
        agent.settle()
        assert states(agent)[name] is State.READY
        forget(agent)
        evict(agent)
    assert sum(folder.is_dir() for folder in disk.iterdir()) == 3

    agent.reconciler.ask(["a@v1", "b@v1", "c@v1", "e@v1"])
    agent.settle()
    waiting = [status for status in agent.statuses.values() if status.reason == "waits for room on the disk"]
    assert waiting
    assert State.QUARANTINED not in states(agent).values()
    forget(agent)
    evict(agent)
    agent.reconciler.ask([waiting[0].served_name])
    assert agent.settle()[waiting[0].served_name].state is State.READY


@pytest.fixture
def url(agent: Agent) -> Iterator[str]:
    server = serve(agent.api, 0)
    yield f"http://127.0.0.1:{server.server_address[1]}/v1/demand"
    server.shutdown()


def test_a_gateway_with_vllms_key_asks_over_http_and_hears_the_state(agent: Agent, vllm: FakeVllm, url: str) -> None:
    body, key = {"adapters": ["c@v1", "unheard-of@v7"]}, {"Authorization": f"Bearer {vllm.api_key}"}
    answer = httpx.post(url, json=body, headers=key)
    assert AgentState.model_validate_json(answer.text, by_alias=True).base == FakeVllm.base
    agent.settle()
    assert "c@v1" in vllm.loaded

    asked = threading.active_count()
    assert httpx.post(url, json={"adapters": ["d@v1"]}).status_code == 401
    assert httpx.post(url, json={"adapters": ["d@v1"]}, headers={"Authorization": "Bearer x"}).status_code == 401
    assert httpx.post(url, content=b"{", headers=key).status_code == 400
    assert httpx.post(url, content=json.dumps(["d"]), headers=key).status_code == 400
    assert httpx.post(url, content=b" " * (LARGEST_DEMAND_BYTES + 1), headers=key).status_code == 413
    assert httpx.post(url.replace("demand", "state"), json=body, headers=key).status_code == 404
    agent.settle()
    assert "d@v1" not in vllm.loaded
    assert threading.active_count() <= asked + 1
