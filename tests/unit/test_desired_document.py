"""The newest document is followed, through the API or its mounted copy; never an older one instead."""

import os
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from loraserve import kubernetes
from loraserve.agent import events as agent_events
from loraserve.agent.config_map_watch import ConfigMapWatch
from loraserve.agent.desired_document import KUBELET_DELAY_SECONDS, NewestText
from loraserve.agent.events import Events, PodReference
from loraserve.kubernetes import KubernetesApi
from tests.unit.kubernetes_api import CONFIG_MAP, KEY, NAMESPACE, FakeKubernetesApi

LONGEST_WAIT_SECONDS = 20.0


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeKubernetesApi]:
    fake = FakeKubernetesApi(tmp_path)
    yield fake
    fake.stop()


class Watch:
    """A watch that runs; `next` waits for what it tells."""

    def __init__(self, api: FakeKubernetesApi) -> None:
        self._api = api
        self._changes: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        client = KubernetesApi(api.settings)
        self.watch = ConfigMapWatch(
            client, NAMESPACE, CONFIG_MAP, KEY, on_change=lambda: self._changes.put(self.watch.content)
        )
        self.watch.start()

    def next(self) -> bytes | None:
        return self._changes.get(timeout=LONGEST_WAIT_SECONDS)

    def settle(self) -> None:
        """Waits for what is there at first, and until changes are watched."""
        assert self.next() == b"one"
        self._api.watches.get(timeout=LONGEST_WAIT_SECONDS)


@pytest.fixture
def watch(api: FakeKubernetesApi, monkeypatch: pytest.MonkeyPatch) -> Watch:
    monkeypatch.setattr(kubernetes, "RETRY_SECONDS", 0.01)
    api.put("one")
    return Watch(api)


def test_a_change_of_the_object_is_told_at_once(api: FakeKubernetesApi, watch: Watch) -> None:
    watch.settle()

    api.put("two")
    assert watch.next() == b"two"
    assert watch.watch.is_live
    assert api.lists == 1


def test_a_watch_that_ended_goes_on_with_nothing_missed_and_a_renewed_token(
    api: FakeKubernetesApi, watch: Watch
) -> None:
    watch.settle()
    api.renew_token("second")
    api.end_watches()

    api.put("two")

    assert watch.next() == b"two"
    assert api.lists == 1, "it goes on where it was"


def test_after_an_outage_the_object_is_read_anew(
    api: FakeKubernetesApi, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    watch.settle()
    api.refuses = True
    api.end_watches()
    assert watch.next() == b"one", "told that it is lost, with what was seen last"
    assert not watch.watch.is_live

    api.put("two")
    api.refuses = False
    assert watch.next() == b"two"
    assert watch.watch.is_live
    assert caplog.text.count("answered /api/v1/namespaces/ml-models/configmaps with 403") == 1, "said once"


def test_a_version_too_old_to_watch_from_is_read_anew(api: FakeKubernetesApi, watch: Watch) -> None:
    watch.settle()
    api.expires_watches = True
    api.end_watches()
    assert watch.next() == b"one", "told that it is lost"

    api.put("two")
    api.expires_watches = False
    while watch.next() != b"two":
        pass


@dataclass
class SeenObject:
    """What a watch has seen, set by hand."""

    content: bytes | None = None
    is_live: bool = True
    lost_at: float = 0.0


@pytest.fixture
def seen() -> SeenObject:
    return SeenObject()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    path = tmp_path / "desired.json"
    path.write_bytes(b"one")
    return path


@pytest.fixture
def newest(seen: SeenObject, copy: Path) -> NewestText:
    return NewestText(seen, copy)  # pyright: ignore[reportArgumentType]


def lose(seen: SeenObject) -> None:
    seen.is_live, seen.lost_at = False, time.time()


def test_without_the_api_the_copy_is_followed(newest: NewestText, seen: SeenObject, copy: Path) -> None:
    seen.is_live = False
    assert newest.read() == b"one"
    copy.write_bytes(b"two")
    assert newest.read() == b"two"


def test_the_object_is_followed_before_its_copy_changes(newest: NewestText, seen: SeenObject) -> None:
    seen.content = b"two"
    assert newest.read() == b"two"


def test_a_stale_copy_never_overrides_the_object(newest: NewestText, seen: SeenObject, copy: Path) -> None:
    seen.content = b"two"
    newest.read()
    lose(seen)

    assert newest.read() == b"two"
    copy.write_bytes(b"between one and two")
    assert newest.read() == b"two"


def test_a_rollback_to_what_the_copy_still_shows_is_followed(newest: NewestText, seen: SeenObject, copy: Path) -> None:
    for content in (b"two", b"one", b"two"):
        seen.content = content
        assert newest.read() == content
    lose(seen)
    assert newest.read() == b"two"


def test_a_copy_that_changes_after_it_caught_up_is_newer(newest: NewestText, seen: SeenObject, copy: Path) -> None:
    seen.content = b"two"
    newest.read()
    copy.write_bytes(b"two")
    newest.read()
    lose(seen)

    copy.write_bytes(b"three")
    assert newest.read() == b"three"

    seen.content, seen.is_live = b"four", True
    assert newest.read() == b"four", "the object decides again as soon as it can be read"


def test_a_copy_written_long_after_the_object_was_lost_is_newer(
    newest: NewestText, seen: SeenObject, copy: Path
) -> None:
    seen.content = b"two"
    newest.read()
    lose(seen)

    copy.write_bytes(b"three")
    later = seen.lost_at + KUBELET_DELAY_SECONDS + 1
    os.utime(copy, (later, later))
    assert newest.read() == b"three"


def test_a_copy_that_cannot_be_read_leaves_the_object(newest: NewestText, seen: SeenObject, copy: Path) -> None:
    seen.content = b"two"
    lose(seen)
    copy.unlink()
    assert newest.read() == b"two"


class CountingApi(KubernetesApi):
    """Tells when an event was answered."""

    def __init__(self, api: FakeKubernetesApi) -> None:
        super().__init__(api.settings)
        self.answered: queue.SimpleQueue[str] = queue.SimpleQueue()

    async def create_event(self, namespace, body) -> None:
        try:
            await super().create_event(namespace, body)
        finally:
            self.answered.put(body["metadata"]["name"])


def test_a_quarantine_becomes_one_event_on_the_pod(api: FakeKubernetesApi) -> None:
    client, pod = CountingApi(api), PodReference("vllm-0", NAMESPACE, "uid-1")
    events = Events(client, pod)

    for _ in range(3):
        events.quarantined("faq@v2", "DigestMismatch", "other bytes" + "é" * 1000)
    events.quarantined("faq@v2", "UnsafeAdapter", "a pickle")
    restarted = Events(client, pod)
    restarted.quarantined("faq@v2", "DigestMismatch", "other bytes")
    for _ in range(3):
        client.answered.get(timeout=LONGEST_WAIT_SECONDS)

    assert (len(api.events), api.posts) == (2, 3)
    first = next(iter(api.events.values()))
    assert first["regarding"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "vllm-0",
        "namespace": NAMESPACE,
        "uid": "uid-1",
    }
    assert (first["type"], first["reason"]) == ("Warning", "AdapterQuarantined")
    assert first["note"].startswith("faq@v2: other bytes")
    assert len(first["note"].encode()) <= 1024


def test_an_event_that_could_not_be_created_is_tried_again(
    api: FakeKubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_events, "RETRY_SECONDS", 0.01)
    client = CountingApi(api)
    api.refuses = True
    Events(client, PodReference("vllm-0", NAMESPACE, "uid-1")).quarantined("faq@v2", "DigestMismatch", "other bytes")
    client.answered.get(timeout=LONGEST_WAIT_SECONDS)

    api.refuses = False

    while not api.events:
        client.answered.get(timeout=LONGEST_WAIT_SECONDS)
