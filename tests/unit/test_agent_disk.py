"""The disk beside vLLM keeps old versions for a rollback, up to its limit, and never at the price of a desired one."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loraserve.agent.backoff import LONGEST_RETRY_SECONDS
from loraserve.catalog import adapters
from loraserve.catalog.bucket import Bucket
from loraserve.contract.agent_state import State
from loraserve.contract.desired_state import Adapter
from tests.unit.adapters_and_vllm import FakeVllm
from tests.unit.agents import Agent, Publish, want

pytest_plugins = ["tests.unit.agent_fixtures"]


def room_for(count: int, adapter: Adapter) -> int:
    """A limit: manifests lie beside the weights, and one more version does not fit."""
    return int((count + 0.5) * adapter.size_bytes)


def on_disk(disk: Path) -> set[str]:
    return {folder.name.rpartition("@")[0] for folder in disk.iterdir()}


@pytest.fixture
def versions(publish: Publish) -> list[Adapter]:
    return [publish("a", f"v{number}") for number in range(1, 5)]


def test_the_version_unused_for_longest_makes_room(
    new_agent: Callable[..., Agent], desired: Path, disk: Path, versions: list[Adapter]
) -> None:
    agent = new_agent(disk_bytes=room_for(3, versions[0]))

    for version in [*versions[:3], versions[0], versions[3]]:
        want(desired, version)
        agent.drain()

    assert on_disk(disk) == {"a@v1", "a@v3", "a@v4"}, "v1 was used again after v2"


def test_what_a_killed_agent_left_counts_and_is_used(
    new_agent: Callable[..., Agent], desired: Path, disk: Path, versions: list[Adapter], s3: Any
) -> None:
    for version in versions[:2]:
        want(desired, version)
        new_agent(disk_bytes=room_for(2, version)).drain()
    agent = new_agent(disk_bytes=room_for(2, versions[0]))

    want(desired, versions[2])
    assert agent.drain()["a@v3"].state is State.READY
    assert on_disk(disk) == {"a@v2", "a@v3"}


def test_a_desired_version_is_never_removed(
    new_agent: Callable[..., Agent], vllm: FakeVllm, desired: Path, disk: Path, publish: Publish
) -> None:
    wanted = [publish(name) for name in "abc"]
    agent = new_agent(disk_bytes=room_for(2, wanted[0]))
    want(desired, *wanted)

    statuses = agent.settle()

    assert [status.state for status in statuses.values()] == [State.READY, State.READY, State.QUARANTINED]
    assert "do not fit beside the other desired adapters" in (statuses["c@v1"].reason or "")
    assert on_disk(disk) == {"a@v1", "b@v1"}

    want(desired, *wanted[1:])
    agent.drain()
    agent.wait(LONGEST_RETRY_SECONDS * 2)
    assert agent.settle()["c@v1"].state is State.READY, "once there is room"


def test_a_version_that_still_drains_stays(
    new_agent: Callable[..., Agent], vllm: FakeVllm, desired: Path, disk: Path, versions: list[Adapter]
) -> None:
    agent = new_agent(disk_bytes=room_for(1, versions[0]))
    want(desired, versions[0])
    agent.settle()

    want(desired, versions[1])
    agent.settle()

    assert on_disk(disk) == {"a@v1"}, "vLLM may read it again while it holds it"


def test_the_disk_knows_a_version_by_the_name_the_catalog_gives_it(
    bucket: Bucket, disk: Path, publish: Publish
) -> None:
    adapter = publish("a")

    assert adapters.fetch(bucket, adapter, disk).name == adapter.folder_name


def test_a_disk_that_fills_up_meanwhile_costs_only_what_was_being_fetched(
    agent: Agent, desired: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    kept, late = publish("kept"), publish("late")
    want(desired, kept)
    agent.settle()
    want(desired, kept, late)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(adapters, "fetch", full)
        statuses = agent.settle()
    assert statuses["kept@v1"].state is State.READY
    assert (statuses["late@v1"].state, statuses["late@v1"].cause) == (State.QUARANTINED, "OSError")
    assert "No space left on device" in (statuses["late@v1"].reason or "")

    agent.wait(LONGEST_RETRY_SECONDS)
    assert agent.settle()["late@v1"].state is State.READY
