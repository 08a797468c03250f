"""A week of releases, failures and use leaves nothing behind in the agent: not in memory, not on disk, not in its metrics."""

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loraserve.agent.events import MOST_TOLD, Events, PodReference
from loraserve.contract.desired_state import Adapter
from tests.unit.adapters_and_vllm import FakeVllm
from tests.unit.agents import Agent, want

pytest_plugins = ["tests.unit.agent_fixtures"]

RELEASES = 12
DISK_VERSIONS = 6


def size(value: Any, seen: set[int]) -> int:
    """How many objects hang on it, other than modules, classes and functions."""
    if id(value) in seen or isinstance(value, type | type(gc) | type(size)):
        return 0
    seen.add(id(value))
    return 1 + sum(size(other, seen) for other in gc.get_referents(value))


def test_a_week_of_releases_leaves_the_agent_as_it_was(
    new_agent: Callable[..., Agent], vllm: FakeVllm, desired: Path, disk: Path, publish: Callable[..., Adapter]
) -> None:
    stays, first = publish("stays"), publish("often", "v0")
    agent = new_agent(disk_bytes=DISK_VERSIONS * first.size_bytes * 2)

    def release(number: int) -> None:
        """One that goes well, one that vLLM refuses, one that is not there."""
        fresh, bad = publish("often", f"v{number}"), stays.model_copy(update={"name": f"bad-{number}"})
        vllm.refuses = {bad.served_name: "no"}
        want(desired, stays, fresh, bad, stays.model_copy(update={"name": f"gone-{number}", "model": f"gone-{number}"}))
        agent.settle()
        vllm.used = {"stays@v1": 1e9 + number, fresh.served_name: 1e9 + number}
        agent.wait(700)
        agent.settle()
        agent.drain()

    for number in range(1, 4):
        release(number)
    early = measure(agent, disk)
    for number in range(4, RELEASES):
        release(number)

    assert grown(early, measure(agent, disk)) == {}
    assert len(list(disk.iterdir())) <= 2 * DISK_VERSIONS


def test_a_week_of_requests_for_more_than_is_held_leaves_it_as_it_was(
    new_agent: Callable[..., Agent], vllm: FakeVllm, desired: Path, disk: Path, publish: Callable[..., Adapter]
) -> None:
    """Each request is for another one than those held."""
    adapters = [publish(f"n{number}") for number in range(5)]
    agent = new_agent(held=2, disk_bytes=int(4.5 * adapters[0].size_bytes))
    want(desired, *adapters)
    agent.settle()

    def ask(number: int) -> None:
        served = adapters[number % len(adapters)].served_name
        agent.reconciler.ask([served, f"never-declared-{number}@v1"])
        agent.settle()
        assert served in vllm.loaded
        vllm.used[served] = 1e9 + number
        agent.wait(20)
        agent.settle()

    for number in range(6):
        ask(number)
    early = measure(agent, disk)
    for number in range(6, 24):
        ask(number)

    assert grown(early, measure(agent, disk)) == {}
    assert len(vllm.loaded) <= 4
    assert len(list(disk.iterdir())) <= 4


def measure(agent: Agent, disk: Path) -> dict[str, int]:
    state = vars(agent.reconciler)
    kept = (
        "_progress",
        "_drains",
        "_loaded",
        "_last_used",
        "_working_set",
        "report",
        "_loads",
        "_downloads",
    )
    return {
        **{name: size(state[name], {id(agent.metrics), id(agent.bucket)}) for name in kept},
        "series": len([line for line in agent.api.metrics().text.splitlines() if not line.startswith("#")]),
        "threads": threading.active_count(),
        "versions on disk": min(DISK_VERSIONS, len(list(disk.iterdir()))),
    }


def grown(early: dict[str, int], late: dict[str, int]) -> dict[str, tuple[int, int]]:
    return {name: (early[name], late[name]) for name in late if late[name] > early[name] * 1.2 + 5}


def test_a_year_of_quarantines_is_told_and_forgotten() -> None:
    told: list[str] = []

    class Api:
        async def create_event(self, namespace: str, body: dict[str, Any]) -> None:
            told.append(body["note"])

    events = Events(Api(), PodReference("vllm-0", "models", "uid"))  # type: ignore[arg-type]
    for number in range(2 * MOST_TOLD):
        events.quarantined(f"bad@v{number}", "DoesNotFit", "too large")
        events.quarantined(f"bad@v{number}", "DoesNotFit", "too large")

    assert len(events._told) <= MOST_TOLD
    assert events.thread.is_alive()
