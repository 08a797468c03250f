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

    def measure() -> dict[str, int]:
        state = vars(agent.reconciler)
        kept = (
            "_progress",
            "_drains",
            "_loaded",
            "_proven",
            "_probing",
            "_last_used",
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

    for number in range(1, 4):
        release(number)
    early = measure()
    for number in range(4, RELEASES):
        release(number)
    late = measure()

    assert {name: (early[name], late[name]) for name in late if late[name] > early[name] * 1.2 + 5} == {}
    assert len(list(disk.iterdir())) <= 2 * DISK_VERSIONS


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
