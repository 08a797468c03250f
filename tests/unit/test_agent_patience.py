"""Nobody waits for another: slow fetches, hanging loads, a vLLM that is late, and who is looked after meanwhile."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.awsrequest import AWSResponse

from loraserve.agent import downloads, loads
from loraserve.agent.backoff import LONGEST_RETRY_SECONDS
from loraserve.agent.config_map_watch import ConfigMapWatch
from loraserve.agent.crew import Bounds, Crew
from loraserve.agent.metrics import VLLM_METRICS_SECONDS
from loraserve.agent.reconciler import LATE_SECONDS
from loraserve.agent.server import HOLD_SECONDS
from loraserve.agent.vllm import LARGEST_METRICS_BYTES, Vllm, VllmBusy
from loraserve.catalog import adapters
from loraserve.catalog.bucket import Bucket, CatalogUnavailable
from loraserve.contract.agent_state import AgentState, State
from loraserve.contract.desired_state import Adapter
from tests.unit.adapters_and_vllm import FakeVllm
from tests.unit.agents import Agent, Publish, remove, want
from tests.unit.s3_requests import on_each_request

pytest_plugins = ["tests.unit.agent_fixtures"]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hangs waits for it."""
    gate = threading.Event()
    yield gate
    gate.set()


def step_until(agent: Agent, condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        agent.reconciler.step()
        if condition():
            return
        agent._done.wait(0.01)
    raise AssertionError("it never came to that")


def test_a_slow_task_makes_room_for_another_up_to_a_limit(gate: threading.Event) -> None:
    now, done = [0.0], threading.Event()
    crew: Crew[int, str] = Crew("test", Bounds(at_once=1, patience_seconds=10, most=3), done.set, lambda: now[0])

    assert crew.start(1, lambda: str(gate.wait(60)))
    assert not crew.start(2, lambda: "two"), "there is no room"
    now[0] = 10
    assert not crew.start(1, lambda: "again"), "it runs already"
    assert crew.start(2, lambda: str(gate.wait(60)))
    now[0] = 20
    assert crew.start(3, lambda: "three")
    assert done.wait(10)
    assert list(crew.finished()) == [(3, "three")]
    assert crew.start(3, lambda: str(gate.wait(60)))
    now[0] = 30
    assert not crew.start(4, lambda: "four"), "no more than that, however slow they are"
    assert crew.running == {1, 2, 3}


def test_a_load_that_hangs_holds_up_nobody(
    agent: Agent,
    vllm: FakeVllm,
    desired: Path,
    publish: Publish,
    gate: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hang(name: str, path: str) -> tuple[int, str]:
        if name == "a@v1":
            gate.wait(60)
        return load(name, path)

    load = vllm._load
    monkeypatch.setattr(vllm, "_load", hang)
    want(desired, publish("a"), publish("b"))
    step_until(agent, lambda: bool(agent.reconciler._loads.running))

    agent.wait(loads.BOUNDS.patience_seconds)
    step_until(agent, lambda: agent.statuses["b@v1"].state is State.READY)

    assert agent.statuses["a@v1"].state is State.LOADING
    assert agent.api.livez().status == 200
    gate.set()
    assert agent.settle()["a@v1"].state is State.READY


@pytest.fixture
def hanging_fetches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of adapters whose bytes never come."""

    def fetch(bucket: Bucket, adapter: Adapter, *others: Any) -> Path:
        while adapter.name in names:
            bucket._check_wanted()
            time.sleep(0.01)
        return real(bucket, adapter, *others)

    names: list[str] = []
    real = adapters.fetch
    monkeypatch.setattr(adapters, "fetch", fetch)
    return names


def test_slow_fetches_hold_up_nobody_and_end_when_they_are_not_wanted(
    agent: Agent, desired: Path, publish: Publish, hanging_fetches: list[str]
) -> None:
    good, slow = publish("good"), [publish(f"a-slow-{number}") for number in range(downloads.BOUNDS.at_once)]
    hanging_fetches += [adapter.name for adapter in slow]
    want(desired, *slow, good)
    agent.reconciler.step()
    assert (agent.statuses["good@v1"].state, agent.statuses["good@v1"].reason) == (State.DESIRED, "waits for its turn")

    agent.wait(downloads.BOUNDS.patience_seconds)
    step_until(agent, lambda: agent.statuses["good@v1"].state is State.READY)
    assert {status.state for status in agent.statuses.values()} == {State.FETCHING, State.READY}

    want(desired, good)
    assert agent.settle().keys() == {"good@v1"}
    assert not agent.reconciler.busy


def test_the_same_bytes_under_two_names_are_fetched_one_after_the_other(
    agent: Agent, desired: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    """Both at once put them in the same place, and one of them failed."""
    fetch, fetched = adapters.fetch, list[str]()

    def slow(bucket: Bucket, adapter: Adapter, *more: Any) -> Path:
        fetched.append(adapter.name)
        gate.wait(60)
        return fetch(bucket, adapter, *more)

    monkeypatch.setattr(adapters, "fetch", slow)
    first = publish("a")
    want(desired, first, first.model_copy(update={"name": "b"}))
    step_until(agent, lambda: fetched != [])
    agent.reconciler.step()
    assert (fetched, agent.statuses["b@v1"].reason) == (["a"], "waits for its turn")
    gate.set()
    step_until(agent, lambda: {agent.statuses[served].state for served in ("a@v1", "b@v1")} == {State.READY})


def test_what_was_removed_before_its_turn_is_never_fetched(
    agent: Agent, desired: Path, publish: Publish, hanging_fetches: list[str], disk: Path
) -> None:
    slow, good = [publish(f"a-slow-{number}") for number in range(downloads.BOUNDS.at_once)], publish("good")
    removed = publish("b-removed")
    hanging_fetches += [adapter.name for adapter in slow]
    want(desired, *slow, removed, good)
    agent.reconciler.step()

    want(desired, good)
    agent.settle()

    assert "loraserve_adapter_fetch_seconds_count 5.0" in agent.metrics.exposition(), "four that hung, and the good one"
    assert [folder.name for folder in disk.iterdir()] == [good.folder_name]


def test_an_adapter_that_is_desired_again_while_its_fetch_ends_is_fetched(
    agent: Agent, desired: Path, publish: Publish, hanging_fetches: list[str]
) -> None:
    adapter = publish("a")
    hanging_fetches.append("a")
    want(desired, adapter)
    agent.reconciler.step()
    want(desired)
    agent.reconciler.step()

    hanging_fetches.clear()
    want(desired, adapter)
    assert agent.settle()["a@v1"].state is State.READY


def state(agent: Agent) -> AgentState:
    return AgentState.model_validate_json(agent.api.state().text)


def test_a_vllm_that_is_late_is_as_it_was_with_an_age_and_gone_after_a_while(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(_: Vllm) -> None:
        raise VllmBusy("vLLM does not answer /health: timed out")

    assert state(agent).age is None
    first, second = publish("a"), publish("b")
    want(desired, first)
    agent.settle()
    agent.api.readyz()
    monkeypatch.setattr(Vllm, "check_health", late)
    want(desired, first, second)

    agent.wait(LATE_SECONDS)
    agent.settle()
    late_state = state(agent)
    assert (late_state.ready, late_state.loaded, late_state.age) == (True, ("a@v1",), LATE_SECONDS)
    assert [(status.served_name, status.state) for status in late_state.adapters] == [
        ("a@v1", State.READY),
        ("b@v1", State.FETCHING),
    ]
    assert vllm.loads == ["a@v1"], "it is given no more work"

    agent.wait(1)
    agent.settle()
    assert (state(agent).ready, state(agent).loaded) == (False, None)

    monkeypatch.undo()
    agent.settle()
    assert (state(agent).ready, state(agent).age) == (True, 0)


def test_an_answer_that_does_not_come_in_time_is_late(vllm: FakeVllm, gate: threading.Event) -> None:
    client = Vllm(vllm.url, vllm.api_key)
    client._http.timeout = httpx.Timeout(0.05)
    vllm.answer = lambda path, body: (200, str(gate.wait(60)))
    with pytest.raises(VllmBusy, match="/metrics"):
        client.metrics()


def test_state_readiness_and_liveness_ask_vllm_nothing(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish
) -> None:
    want(desired, publish("a"))
    agent.settle()
    vllm.stop()

    assert (state(agent).ready, agent.api.readyz().status, agent.api.livez().status) == (True, 200, 200)


def test_vllms_metrics_are_asked_for_as_often_as_we_like_whoever_scrapes(agent: Agent, vllm: FakeVllm) -> None:
    for _ in range(10):
        agent.settle()
        assert "vllm:num_requests_running 3.0" in agent.api.metrics().text
    assert vllm.scrapes == 1, "and not at all for the reconciler"

    agent.wait(VLLM_METRICS_SECONDS)
    agent.api.metrics()
    assert vllm.scrapes == 2


def test_metrics_without_end_are_cut_at_a_line(agent: Agent, vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "_metrics", lambda: 'vllm:much{label="value"} 1.0\n' * (LARGEST_METRICS_BYTES // 10))

    text = agent.api.metrics().text

    assert len(text) < LARGEST_METRICS_BYTES + 10_000
    assert set(text[: text.index("# HELP")].splitlines()) == {'vllm:much{label="value"} 1.0'}


def test_readiness_waits_for_what_may_pass_but_not_for_ever(
    agent: Agent, desired: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> Path:
        raise CatalogUnavailable("S3 is away")

    want(desired, publish("a"), publish("b"))
    monkeypatch.setattr(adapters, "fetch", away)
    agent.settle()

    assert agent.api.readyz().text == "a@v1 is tried again: S3 is away, b@v1 is tried again: S3 is away\n"
    agent.wait(HOLD_SECONDS - 1)
    assert agent.api.readyz().status == 503
    agent.wait(1)
    assert agent.api.readyz().status == 200


def test_readiness_does_not_wait_any_longer_once_s3_is_back(
    agent: Agent, desired: Path, publish: Publish, s3: Any
) -> None:
    late = publish("late")
    manifest = remove(s3, late)
    want(desired, late)
    agent.settle()
    assert "late@v1 is tried again" in agent.api.readyz().text

    s3.put_object(Bucket=agent.bucket.name, Key="llm-models/late/v1/manifest.json", Body=manifest)
    agent.wait(10)
    agent.settle()
    assert agent.api.readyz().status == 200


class TooSkewed:
    """The body of S3's answer to a signature from another time."""

    def stream(self, **_: object) -> list[bytes]:
        return [b"<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>"]


def test_a_node_whose_clock_is_wrong_keeps_what_it_serves_and_fetches_once_it_is_right(
    agent: Agent, desired: Path, publish: Publish, bucket: Bucket
) -> None:
    kept, late = publish("kept"), publish("late")
    want(desired, kept)
    agent.settle()
    want(desired, kept, late)
    with on_each_request(bucket, lambda url: AWSResponse(url, 403, {}, TooSkewed()), "GetObject"):
        statuses = agent.settle()
    assert statuses["kept@v1"].state is State.READY
    assert statuses["late@v1"].state is State.QUARANTINED
    assert "clock is minutes away from AWS'" in (statuses["late@v1"].reason or "")

    agent.wait(LONGEST_RETRY_SECONDS)
    assert agent.settle()["late@v1"].state is State.READY


def test_a_follower_that_died_fails_liveness(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConfigMapWatch, "_follow", lambda _: None)
    watch = ConfigMapWatch(None, "models", "desired-state", "desired.json", lambda: None)  # type: ignore[arg-type]
    thread = watch.start()
    agent.vital.append(thread)
    thread.join(10)

    answer = agent.api.livez()

    assert (answer.status, answer.text) == (503, "config-map-watch ended\n")


def test_the_agents_state_stays_readable_for_an_older_gateway(agent: Agent, desired: Path, publish: Publish) -> None:
    want(desired, publish("a"))
    agent.settle()
    told = json.loads(agent.api.state().text)

    before = {"base", "generation", "problem", "ready", "slots", "adapters", "loaded"}
    assert before < told.keys()
    assert {"name", "version", "state", "reason", "cause", "lastUsed"} < told["adapters"][0].keys()
