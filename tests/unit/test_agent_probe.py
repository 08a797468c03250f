"""An adapter is ready once it was seen to change what the model computes."""

import json
from pathlib import Path

import pytest

from loraserve.agent.probe import DEFAULT_PROMPTS, probe_prompts
from loraserve.catalog.manifest import MAX_PROBE_PROMPTS
from loraserve.contract.agent_state import State
from tests.unit.adapters_and_vllm import FakeVllm
from tests.unit.agents import Agent, Publish, want

pytest_plugins = ["tests.unit.agent_fixtures"]


def test_an_adapter_that_changes_nothing_is_quarantined_and_the_others_serve(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish
) -> None:
    vllm.effects["idle@v1"] = 0.0
    want(desired, publish("idle"), publish("good"))

    statuses = agent.settle()

    assert statuses["good@v1"].state is State.READY
    assert statuses["idle@v1"].state is State.QUARANTINED
    assert "it changes nothing" in (statuses["idle@v1"].reason or "")
    assert vllm.loaded.keys() == {"good@v1"}, "nobody gets the base's answers under its name"


@pytest.mark.parametrize(
    ("effect", "state"),
    [(0.04, State.QUARANTINED), (-0.04, State.QUARANTINED), (0.2, State.READY), (-0.2, State.READY)],
)
def test_only_a_difference_larger_than_between_two_runs_of_the_base_counts(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish, effect: float, state: State
) -> None:
    vllm.noise = 0.05
    vllm.effects["a@v1"] = effect
    want(desired, publish("a"))

    assert agent.settle()["a@v1"].state is state


def test_an_adapter_that_never_changes_the_text_serves(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish
) -> None:
    vllm.effects["a@v1"] = 1e-6
    want(desired, publish("a"))

    assert agent.settle()["a@v1"].state is State.READY


def test_a_version_is_probed_once_per_load(agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish) -> None:
    want(desired, publish("a"))
    for _ in range(3):
        agent.settle()
    vllm.up = False
    agent.settle()
    vllm.up = True
    agent.settle()
    probes = [body["model"] for body in vllm.completions]
    assert probes == [vllm.base, "a@v1", vllm.base], "not again after vLLM was away for a moment"

    vllm.restart()
    agent.settle()
    assert len(vllm.completions) == 2 * len(probes), "but again where vLLM loaded it anew"


def test_an_adapter_marked_so_answers_a_request_before_it_is_ready(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish
) -> None:
    want(desired, publish("warm").model_copy(update={"prewarm": True}), publish("cold"))

    agent.settle()

    assert [body["model"] for body in vllm.completions if body["max_tokens"] > 1] == ["warm@v1"]


@pytest.mark.parametrize(
    ("manifest", "prompts"),
    [
        ({}, DEFAULT_PROMPTS),
        ({"probePrompts": []}, DEFAULT_PROMPTS),
        ({"probePrompts": ["one", "two"]}, ["one", "two"]),
        ({"probePrompts": ["again"] * 100}, ["again"] * MAX_PROBE_PROMPTS),
    ],
)
def test_the_publishers_prompts_are_taken_where_there_are_some(
    tmp_path: Path, manifest: dict[str, list[str]], prompts: list[str]
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))

    assert list(probe_prompts(tmp_path)) == list(prompts)
