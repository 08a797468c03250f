"""Kills, outages and load: nothing half is left, nothing is lost, nobody is refused."""

import itertools
import multiprocessing
import random
import shutil
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
import pytest

from loraserve.agent.backoff import LONGEST_RETRY_SECONDS
from loraserve.catalog import adapters
from loraserve.catalog.adapters import remove_partial_downloads
from loraserve.catalog.bucket import Bucket
from loraserve.catalog.files import PARTIAL_PREFIX
from loraserve.catalog.gate import inspect
from loraserve.catalog.manifest import AdapterManifest
from loraserve.contract.agent_state import State
from loraserve.contract.desired_state import Adapter
from tests.unit import one_fetch
from tests.unit.adapters_and_vllm import BUCKET, FakeVllm, write_adapter
from tests.unit.agents import Agent, Publish, S3Server, want

pytest_plugins = ["tests.unit.agent_fixtures"]

KILLS = 100
SWAPS = 200
REQUESTS_PER_SECOND = 100


def assert_whole(folder: Path, adapter: Adapter) -> None:
    manifest = AdapterManifest.parse((folder / "manifest.json").read_bytes())
    assert inspect(folder) == manifest.facts
    assert sum((folder / file).stat().st_size for file in manifest.files) == adapter.size_bytes


def test_a_fetch_killed_at_any_point_leaves_no_half_adapter(s3_server: S3Server, disk: Path, tmp_path: Path) -> None:
    bucket = Bucket(BUCKET)
    adapter = adapters.publish(bucket, write_adapter(tmp_path / "peft", rank=512), "a", "v1")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["boto3", "tests.unit.one_fetch"])

    def start() -> BaseProcess:
        begun = processes.Event()
        process = processes.Process(target=one_fetch.fetch, args=(adapter, BUCKET, disk, begun))
        process.start()
        assert begun.wait(60)
        return process

    def seconds_of_one() -> float:
        process, started = start(), time.monotonic()
        process.join()
        return time.monotonic() - started

    longest, cut_off = seconds_of_one(), 0
    for _ in range(KILLS):
        for folder in disk.iterdir():
            shutil.rmtree(folder)
        process = start()
        process.join(random.uniform(0, longest))
        process.kill()
        process.join()
        cut_off += any(folder.name.startswith(PARTIAL_PREFIX) for folder in disk.iterdir())
        for folder in disk.iterdir():
            if not folder.name.startswith(PARTIAL_PREFIX):
                assert_whole(folder, adapter)
    assert cut_off > 0, "no kill came during a download"

    remove_partial_downloads(disk)
    adapters.fetch(bucket, adapter, disk)
    (folder,) = disk.iterdir()
    assert_whole(folder, adapter)


@pytest.fixture
def remote_agent(s3_server: S3Server, desired: Path, disk: Path, vllm: FakeVllm) -> Agent:
    """One whose catalog is reached over HTTP."""
    return Agent(desired, disk, vllm, Bucket(BUCKET, pause_seconds=0))


def test_an_s3_that_is_down_at_the_start_is_waited_for(
    remote_agent: Agent, s3_server: S3Server, vllm: FakeVllm, desired: Path, tmp_path: Path
) -> None:
    want(desired, adapters.publish(Bucket(BUCKET), write_adapter(tmp_path / "a"), "a", "v1"))
    s3_server.stop()

    status = remote_agent.settle()["a@v1"]
    assert (status.state, status.cause) == (State.QUARANTINED, "CatalogUnavailable")

    s3_server.come_back()
    remote_agent.wait(LONGEST_RETRY_SECONDS)
    assert remote_agent.settle()["a@v1"].state is State.READY


def test_an_s3_that_goes_down_disturbs_only_what_is_not_on_disk(
    remote_agent: Agent, s3_server: S3Server, vllm: FakeVllm, desired: Path, tmp_path: Path
) -> None:
    bucket = Bucket(BUCKET)
    first, second = (
        adapters.publish(bucket, write_adapter(tmp_path / version), "a", version) for version in ("v1", "v2")
    )
    want(desired, first)
    remote_agent.settle()
    s3_server.stop()

    want(desired, second)
    statuses = remote_agent.drain()
    assert (statuses["a@v2"].state, statuses["a@v1"].state) == (State.QUARANTINED, State.READY)

    want(desired, first)
    vllm.restart()
    assert remote_agent.drain()["a@v1"].state is State.READY, "vLLM restarts, and the adapter comes from disk"
    s3_server.come_back()


class Callers:
    """Sends requests at a fixed rate, whatever becomes of those before, to a version that is ready at that moment."""

    def __init__(self, agent: Agent, vllm: FakeVllm) -> None:
        self.sent = 0
        self._agent = agent
        self._http = httpx.Client(base_url=vllm.url, headers={"Authorization": f"Bearer {vllm.api_key}"}, timeout=60)
        self._pool = ThreadPoolExecutor(32)
        self._stopped = threading.Event()
        self._running: set[Future[None]] = set()
        self._sender = threading.Thread(target=self._send)

    def __enter__(self) -> "Callers":
        self._sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._sender.join()
        self.wait()
        self._pool.shutdown()

    def wait(self) -> None:
        """Until all that was sent so far is answered. Raises what went wrong with any of it."""
        for answer in list(self._running):
            answer.result()
            self._running.discard(answer)

    def _send(self) -> None:
        for name in itertools.cycle(("swapped", "stays")):
            if self._stopped.wait(1 / REQUESTS_PER_SECOND):
                return
            ready = [
                status.served_name
                for status in self._agent.reconciler.report.adapters
                if status.name == name and status.state is State.READY
            ]
            self._running.add(self._pool.submit(self._ask, random.choice(ready)))
            self.sent += 1

    def _ask(self, version: str) -> None:
        answer = self._http.post("/v1/completions", json={"model": version, "prompt": "Hello", "max_tokens": 1})
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"] == version, "the answer of another version"


def test_no_request_is_refused_or_misled_during_two_hundred_swaps(
    agent: Agent, vllm: FakeVllm, desired: Path, publish: Publish
) -> None:
    versions = [publish("swapped", f"v{number}") for number in range(4)]
    stays = publish("stays")
    want(desired, versions[-1], stays)
    agent.settle()

    with Callers(agent, vllm) as callers:
        for version in itertools.islice(itertools.cycle(versions), SWAPS):
            want(desired, version, stays)
            agent.settle()
            callers.wait()  # a drain is longer than a request
            assert agent.drain().keys() == vllm.loaded.keys() == {f"swapped@{version.version}", "stays@v1"}

    assert callers.sent > SWAPS
    assert vllm.loads.count("stays@v1") == 1
    assert len(vllm.loads) == SWAPS + 2
