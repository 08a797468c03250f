"""How one version replaces another: beside it, after a probe, with a drain, and back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loraserve.agent.drain import DrainTimes
from loraserve.contract.agent_state import Slots, State
from loraserve.contract.desired_state import Envelope
from tests.unit.adapters_and_vllm import QKVO, FakeVllm, lora_shapes
from tests.unit.agents import Agent, Publish, corrupt, remove, want

pytest_plugins = ["tests.unit.agent_fixtures"]

QUIET = DrainTimes.quiet_seconds
LONGEST = DrainTimes.longest_seconds


def test_a_new_version_is_loaded_before_the_old_one_goes(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish
) -> None:
    want(desired, publish("a"))
    agent.settle()

    want(desired, publish("a", "v2", fill=b"\x02"))
    agent.reconciler.step()
    assert vllm.loaded.keys() == {"a@v1"}
    statuses = agent.settle()

    assert {name: status.state for name, status in statuses.items()} == {"a@v2": "ready", "a@v1": "draining"}
    assert agent.drain().keys() == vllm.loaded.keys() == {"a@v2"}


def test_the_old_version_stays_while_the_new_one_is_bad(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish, s3: Any
) -> None:
    want(desired, publish("a"))
    agent.settle()
    second = publish("a", "v2", fill=b"\x02")
    corrupt(s3, second)

    want(desired, second)

    statuses = agent.drain()

    assert (statuses["a@v2"].state, statuses["a@v1"].state) == (State.QUARANTINED, State.READY)
    assert vllm.loaded.keys() == {"a@v1"}
    assert agent.reconciler.report.loaded == ("a@v1",)


def test_an_old_version_in_use_stays_until_it_has_been_quiet(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish
) -> None:
    want(desired, publish("a"))
    agent.settle()
    want(desired, publish("a", "v2"))
    agent.settle()

    for second in range(5):
        vllm.used["a@v1"] = 1_700_000_000.0 + second
        agent.wait(QUIET - 1)
        assert agent.settle()["a@v1"].state is State.DRAINING
    agent.wait(QUIET)
    assert "a@v1" not in agent.settle()


def test_an_old_version_in_use_without_end_goes_after_the_longest_drain(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish
) -> None:
    want(desired, publish("a"))
    agent.settle()
    want(desired, publish("a", "v2"))
    agent.settle()

    passes = 0
    while "a@v1" in vllm.loaded:
        passes += 1
        assert passes <= LONGEST / (QUIET / 2) + 1
        vllm.used["a@v1"] = float(passes)
        agent.wait(QUIET / 2)
        agent.settle()


def test_a_rollback_during_the_drain_loads_and_probes_nothing(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish
) -> None:
    first, second = publish("a"), publish("a", "v2")
    want(desired, first)
    agent.settle()
    want(desired, second)
    agent.settle()
    asked = len(vllm.completions)

    want(desired, first)
    statuses = agent.settle()

    assert (statuses["a@v1"].state, statuses["a@v2"].state) == (State.READY, State.DRAINING)
    assert (vllm.loads, len(vllm.completions)) == (["a@v1", "a@v2"], asked)


def test_a_rollback_takes_the_version_that_is_still_on_disk(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish, s3: Any
) -> None:
    first, second = publish("a"), publish("a", "v2")
    want(desired, first)
    agent.settle()
    want(desired, second)
    agent.drain()
    remove(s3, first)

    want(desired, first)

    assert agent.settle()["a@v1"].state is State.READY
    assert agent.drain().keys() == {"a@v1"}


def test_an_old_version_is_offered_until_its_successor_is_ready(agent: Agent, desired: Path, publish: Publish) -> None:
    want(desired, publish("a"))
    agent.settle()

    want(desired, publish("a", "v2"))
    agent.reconciler.step()

    states = {status.version: status.state for status in agent.reconciler.report.adapters}
    assert states == {"v2": State.FETCHING, "v1": State.READY}


def test_a_canary_and_its_stable_version_are_both_served(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish
) -> None:
    stable, canary = publish("a"), publish("a", "v2")
    want(desired, stable)
    agent.settle()

    want(desired, stable, canary.model_copy(update={"canary_percent": 10}))
    agent.drain()
    assert {name: status.state for name, status in agent.drain().items()} == {"a@v1": "ready", "a@v2": "ready"}

    want(desired, canary)
    agent.reconciler.step()
    assert {status.version: status.state for status in agent.reconciler.report.adapters} == {
        "v2": State.READY,
        "v1": State.DRAINING,
    }, "promoted without a moment in which it is not ready"
    assert agent.drain().keys() == {"a@v2"}


def test_another_canary_share_leaves_both_versions_ready(agent: Agent, desired: Path, publish: Publish) -> None:
    stable, canary = publish("a"), publish("a", "v2")
    for percent in (10, 50):
        want(desired, stable, canary.model_copy(update={"canary_percent": percent}))
        if percent == 10:
            agent.settle()
    agent.reconciler.step()

    assert {status.state for status in agent.reconciler.report.adapters} == {State.READY}


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        (Envelope(slots=4, rank=4, target_modules=QKVO), "rank 8 is larger than the 4"),
        (Envelope(slots=4, rank=8, target_modules=("q_proj", "k_proj")), "without LoRA on o_proj, v_proj"),
    ],
)
def test_what_does_not_fit_the_start_up_flags_is_told_and_the_rest_kept(
    new_agent: Callable[..., Agent],
    vllm: FakeVllm,
    desired: Path,
    publish: Publish,
    envelope: Envelope,
    reason: str,
) -> None:
    agent = new_agent(envelope=envelope)
    small = lora_shapes(rank=4, modules=("q_proj",))
    want(desired, publish("large"), publish("small", shapes=small, rank=4, target_modules=["q_proj"]))

    statuses = agent.settle()

    assert statuses["small@v1"].state is State.READY
    assert statuses["large@v1"].state is State.QUARANTINED
    assert reason in (statuses["large@v1"].reason or "")
    assert "large@v1" not in vllm.loads


def test_a_load_waits_for_the_slot_of_a_version_that_drains(
    new_agent: Callable[..., Agent], vllm: FakeVllm, desired: Path, publish: Publish
) -> None:
    agent = new_agent(envelope=Envelope(slots=2, rank=8, target_modules=QKVO))
    one, other = publish("one"), publish("other")
    want(desired, one, other)
    agent.settle()

    want(desired, other, publish("third"))
    agent.settle()
    assert agent.settle()["third@v1"].reason == "waiting for the slot of a version that drains"
    assert vllm.loaded.keys() == {"one@v1", "other@v1"}

    agent.wait(QUIET)
    agent.settle()
    assert agent.settle()["third@v1"].state is State.READY


def test_more_versions_than_slots_are_served_and_counted(
    new_agent: Callable[..., Agent], desired: Path, publish: Publish
) -> None:
    agent = new_agent(envelope=Envelope(slots=2, rank=8, target_modules=QKVO))
    want(desired, *(publish(f"a{number}") for number in range(3)))

    assert {status.state for status in agent.settle().values()} == {State.READY}
    assert agent.reconciler.report.slots == Slots(total=2, used=3)
