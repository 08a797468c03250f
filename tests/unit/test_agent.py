"""The agent's loop against a real HTTP fake of vLLM and a catalog in memory."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loraserve.agent.backoff import LONGEST_RETRY_SECONDS
from loraserve.contract.agent_state import AgentState, State
from loraserve.contract.desired_state import Envelope
from tests.unit.adapters_and_vllm import BUCKET, QKVO, FakeVllm
from tests.unit.agents import Agent, Publish, corrupt, remove, want

pytest_plugins = ["tests.unit.agent_fixtures"]


def test_what_is_desired_is_loaded_from_verified_files(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish, disk: Path
) -> None:
    want(desired, publish("a"), publish("b"))

    assert {name: status.state for name, status in agent.settle().items()} == {"a@v1": "ready", "b@v1": "ready"}
    assert vllm.loaded.keys() == {"a@v1", "b@v1"}
    assert {Path(folder).parent for folder in vllm.loaded.values()} == {disk}


def test_a_settled_agent_asks_for_nothing_more(agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish) -> None:
    want(desired, publish("a"))

    for _ in range(5):
        agent.settle()
    assert (vllm.loads, vllm.unloads) == (["a@v1"], [])


def test_a_removed_adapter_is_unloaded(agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish) -> None:
    first, second = publish("a"), publish("b")
    want(desired, first, second)
    agent.settle()

    want(desired, second)
    agent.drain()

    assert vllm.loaded.keys() == {"b@v1"}
    assert vllm.loads.count("b@v1") == 1, "what stays is not touched"


def test_other_bytes_under_a_loaded_name_replace_it(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish, s3: Any
) -> None:
    want(desired, publish("a"))
    agent.settle()
    before = vllm.loaded["a@v1"]
    for item in s3.list_objects_v2(Bucket=BUCKET)["Contents"]:
        s3.delete_object(Bucket=BUCKET, Key=item["Key"])

    want(desired, publish("a", fill=b"\x02"))
    agent.settle()

    assert vllm.loaded["a@v1"] != before


def test_one_bad_adapter_is_quarantined_and_the_others_serve(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish, s3: Any
) -> None:
    good, bad = publish("good"), publish("bad")
    corrupt(s3, bad)
    want(desired, good, bad)

    statuses = agent.settle()

    assert statuses["good@v1"].state is State.READY
    assert statuses["bad@v1"].state is State.QUARANTINED
    assert "holds less than" in (statuses["bad@v1"].reason or "")
    assert vllm.loads == ["good@v1"], "vLLM never sees the bad one"


def test_wrong_bytes_are_not_fetched_again_until_the_entry_changes(
    agent: Agent, desired: Path, publish: Publish, s3: Any
) -> None:
    bad = publish("bad")
    good_manifest = remove(s3, bad)
    key = "llm-models/bad/v1/manifest.json"
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"{}")
    want(desired, bad)
    agent.settle()

    s3.put_object(Bucket=BUCKET, Key=key, Body=good_manifest)
    agent.wait(100 * LONGEST_RETRY_SECONDS)
    assert agent.settle()["bad@v1"].state is State.QUARANTINED

    want(desired, bad.model_copy(update={"name": "renamed"}))
    assert agent.settle()["renamed@v1"].state is State.READY


def test_a_missing_version_is_asked_for_again_after_a_while(
    agent: Agent, desired: Path, publish: Publish, s3: Any
) -> None:
    late = publish("late")
    manifest = remove(s3, late)
    want(desired, late)
    assert "does not exist" in (agent.settle()["late@v1"].reason or "")
    s3.put_object(Bucket=BUCKET, Key="llm-models/late/v1/manifest.json", Body=manifest)

    assert agent.settle()["late@v1"].state is State.QUARANTINED, "not before its pause has passed"
    agent.wait(LONGEST_RETRY_SECONDS)
    status = agent.settle()["late@v1"]

    assert (status.state, status.reason) == (State.READY, None)


def test_the_pause_between_attempts_grows(agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish) -> None:
    want(desired, publish("a"))
    vllm.refuses["a@v1"] = "LoRA rank 64 is greater than max_lora_rank 8"

    for _ in range(120):
        agent.settle()
        agent.wait(30)

    assert 6 < len(vllm.loads) < 14, "in an hour"


def test_what_vllm_refuses_is_quarantined_with_its_words(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish
) -> None:
    want(desired, publish("a"), publish("b"))
    vllm.refuses["a@v1"] = "LoRA rank 64 is greater than max_lora_rank 8"

    statuses = agent.settle()

    assert "LoRA rank 64 is greater than max_lora_rank 8" in (statuses["a@v1"].reason or "")
    assert statuses["b@v1"].state is State.READY


def test_a_restarted_vllm_gets_its_adapters_again(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish
) -> None:
    want(desired, publish("a"), publish("b"))
    agent.settle()

    vllm.up = False
    assert agent.settle()["a@v1"].state is State.LOADING
    vllm.restart()
    vllm.up = True
    agent.settle()

    assert vllm.loaded.keys() == {"a@v1", "b@v1"}


def test_a_restarted_agent_neither_downloads_nor_loads_again(
    agent: Agent, new_agent: Callable[[], Agent], vllm: FakeVllm, desired: Path, publish: Publish, s3: Any
) -> None:
    adapter = publish("a")
    want(desired, adapter)
    agent.settle()
    remove(s3, adapter)

    assert new_agent().settle()["a@v1"].state is State.READY
    assert vllm.loads == ["a@v1"]


def test_adapters_are_fetched_while_vllm_still_starts(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish, disk: Path
) -> None:
    vllm.up = False
    want(desired, publish("a"))

    assert agent.settle()["a@v1"].reason == "waiting for vLLM"
    assert len(list(disk.iterdir())) == 1
    vllm.up = True
    assert agent.settle()["a@v1"].state is State.READY


def test_an_adapter_that_takes_vllm_down_waits_and_the_others_go_first(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(name: str, path: str) -> tuple[int, str]:
        if name == "a@v1":
            raise ConnectionAbortedError
        return load(name, path)

    load = vllm._load
    monkeypatch.setattr(vllm, "_load", crash)
    want(desired, publish("a"), publish("b"))

    agent.settle()
    statuses = agent.settle()

    assert statuses["a@v1"].state is State.QUARANTINED
    assert statuses["b@v1"].state is State.READY


def test_without_adapters_vllm_is_only_asked_what_it_holds(agent: Agent, vllm: FakeVllm, desired: Path) -> None:
    want(desired)

    agent.settle()

    assert (vllm.loads, vllm.unloads) == ([], [])
    assert agent.api.readyz().status == 200


@pytest.mark.parametrize("text", ["", "{", '{"schemaVersion": 2}'])
def test_a_bad_document_never_replaces_a_good_one(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish, text: str
) -> None:
    adapter = publish("a")
    want(desired, adapter)
    agent.settle()

    desired.write_text(text)
    assert agent.settle()["a@v1"].state is State.READY
    assert agent.reconciler.report.problem
    assert vllm.loaded.keys() == {"a@v1"}

    want(desired, adapter)
    agent.settle()
    assert agent.reconciler.report.problem is None


def test_a_vanished_document_changes_nothing(agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish) -> None:
    want(desired, publish("a"))
    agent.settle()

    desired.unlink()
    agent.settle()

    assert vllm.loaded.keys() == {"a@v1"}


def test_a_wrong_api_key_is_named(agent: Agent, vllm: FakeVllm, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    vllm.api_key = "another"

    agent.settle()
    agent.settle()

    assert caplog.text.count("VLLM_API_KEY") == 1, "said once, not at every pass"


def test_readiness_waits_for_every_healthy_adapter_once(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish, s3: Any
) -> None:
    good, bad = publish("good"), publish("bad")
    corrupt(s3, bad)
    assert agent.api.readyz().text == "the desired state was not read yet\n"

    want(desired, good, bad)
    agent.reconciler.step()
    assert "good@v1 is fetching" in agent.api.readyz().text
    agent.settle()
    assert agent.api.readyz().status == 200


def test_from_then_on_readiness_is_vllms_health(agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish) -> None:
    want(desired, publish("a"))
    agent.settle()
    assert agent.api.readyz().status == 200

    want(desired, publish("b"))
    agent.reconciler.step()
    assert agent.api.readyz().status == 200, "a new adapter takes no pod out of service"
    vllm.up = False
    agent.reconciler.step()
    assert agent.api.readyz().status == 503
    vllm.up = True
    agent.reconciler.step()
    assert agent.api.readyz().status == 200


def test_an_agent_without_a_valid_document_is_not_ready_and_says_why(agent: Agent, desired: Path) -> None:
    desired.write_text('{"schemaVersion": 2}')
    agent.settle()

    assert "schemaVersion" in agent.api.readyz().text


def test_the_metrics_are_vllms_and_the_agents(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish, s3: Any
) -> None:
    good, bad = publish("good"), publish("bad")
    corrupt(s3, bad)
    want(desired, good, bad)
    agent.settle()

    lines = agent.api.metrics().text.splitlines()

    assert "vllm:num_requests_running 3.0" in lines
    assert 'loraserve_adapter_state{adapter="good",state="ready",version="v1"} 1.0' in lines
    assert 'loraserve_adapter_state{adapter="bad",state="quarantined",version="v1"} 1.0' in lines
    assert 'loraserve_adapter_state{adapter="bad",state="ready",version="v1"} 0.0' in lines
    assert "loraserve_reconcile_errors_total 1.0" in lines
    assert "loraserve_adapter_fetch_seconds_count 2.0" in lines
    assert 'loraserve_adapter_quarantined{adapter="bad",cause="DigestMismatch",version="v1"} 1.0' in lines


def test_metrics_that_come_late_unsettle_nothing(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late() -> str:
        raise ConnectionAbortedError

    want(desired, publish("a"))
    vllm.used["a@v1"] = 1_700_000_000.0
    agent.settle()
    monkeypatch.setattr(vllm, "_last_used", late)

    status = agent.settle()["a@v1"]
    assert (status.state, status.last_used) == (State.READY, 1_700_000_000.0)


def test_how_full_the_kv_cache_is_is_told_while_vllm_is_there(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish
) -> None:
    want(desired, publish("a"))
    vllm.kv_cache_usage = 0.625
    agent.settle()
    assert AgentState.model_validate_json(agent.api.state().text).kv_cache_usage == 0.625
    vllm.up = False
    agent.reconciler.step()
    assert AgentState.model_validate_json(agent.api.state().text).kv_cache_usage is None


def test_slots_swaps_and_last_use_are_metrics(
    new_agent: Callable[..., Agent], vllm: FakeVllm, desired: Path, publish: Publish
) -> None:
    agent = new_agent(envelope=Envelope(slots=4, rank=8, target_modules=QKVO))
    want(desired, publish("a"), publish("b"))
    agent.settle()
    vllm.used = {"a@v1": 1_700_000_000.0, "b@v1": 1_700_000_001.0}

    want(desired, publish("a", "v2"))
    agent.settle()
    lines = agent.api.metrics().text.splitlines()

    assert "loraserve_slots 4.0" in lines
    assert "loraserve_slots_used 3.0" in lines
    assert "loraserve_adapter_swaps_total 1.0" in lines, "b was removed, not swapped"
    assert 'loraserve_adapter_last_used_timestamp_seconds{adapter="b",version="v1"} 1.700000001e+09' in lines
    assert not [line for line in lines if line.startswith("vllm:lora_requests_info{")], "one series per set of adapters"


def test_the_state_says_what_others_need_to_know(
    new_agent: Callable[..., Agent], vllm: FakeVllm, desired: Path, publish: Publish
) -> None:
    agent = new_agent(envelope=Envelope(slots=4, rank=8, target_modules=QKVO))
    want(desired, publish("a"))
    agent.reconciler.step()
    assert json.loads(agent.api.state().text)["ready"] is False

    vllm.used["a@v1"] = 1_700_000_000.0
    agent.settle()

    state = json.loads(agent.api.state().text)
    assert state["generation"] == hashlib.sha256(desired.read_bytes()).hexdigest()
    assert state["ready"] is True
    assert state["slots"] == {"total": 4, "used": 1}
    (adapter,) = state["adapters"]
    assert (adapter["name"], adapter["version"], adapter["state"]) == ("a", "v1", "ready")
    assert adapter["lastUsed"] == 1_700_000_000.0


def test_the_agents_metrics_outlive_vllm(agent: Agent, vllm: FakeVllm) -> None:
    vllm.up = False
    agent.settle()

    assert "loraserve_vllm_up 0.0" in agent.api.metrics().text.splitlines()
