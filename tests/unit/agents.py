"""One agent with its clock in hand, and what its tests do to the world around it."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moto.server import ThreadedMotoServer

from loraserve.agent.desired_document import DesiredDocument
from loraserve.agent.disk import Disk
from loraserve.agent.downloads import Downloads
from loraserve.agent.drain import DrainTimes
from loraserve.agent.metrics import Metrics, VllmMetrics
from loraserve.agent.reconciler import Reconciler
from loraserve.agent.server import AgentApi
from loraserve.agent.start_cache import CacheUse
from loraserve.agent.vllm import Vllm
from loraserve.agent.working_set import WorkingSet
from loraserve.catalog.bucket import Bucket
from loraserve.contract.agent_state import AdapterStatus
from loraserve.contract.base_model import Base
from loraserve.contract.desired_state import Adapter, DesiredState, Envelope
from tests.unit.adapters_and_vllm import BUCKET, FakeVllm

Publish = Callable[..., Adapter]


class S3Server:
    """An S3 over HTTP that can go away and come back with what it held."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, self.port = self._server.get_host_and_port()
        self.url = f"http://{host}:{self.port}"

    def stop(self) -> None:
        self._server.stop()

    def come_back(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()


class Agent:
    """One agent with its clock in hand; `settle` runs passes until nothing is fetched or loaded any more."""

    def __init__(
        self,
        desired: Path,
        disk: Path,
        vllm: FakeVllm,
        bucket: Bucket,
        *,
        envelope: Envelope | None = None,
        disk_bytes: int = 1 << 30,
        held: int | None = None,
    ) -> None:
        self.seconds = 0.0
        self.bucket = bucket
        self.metrics = Metrics()
        self._done = threading.Event()
        client, clock = Vllm(vllm.url, vllm.api_key), lambda: self.seconds
        downloads = Downloads(disk, lambda name, region: bucket, self.metrics, self._done.set, clock)
        self.reconciler = Reconciler(
            DesiredDocument(desired.read_bytes),
            client,
            downloads,
            self.metrics,
            disk=Disk(disk, disk_bytes),
            working_set=WorkingSet(held, disk_bytes, self._done.set, clock),
            drain_times=DrainTimes(),
            envelope=envelope,
            on_loaded=self._done.set,
            clock=clock,
        )
        self.metrics.follow(lambda: self.reconciler.report, lambda: CacheUse.NONE)
        self.vital: list[threading.Thread] = []
        self.api = AgentApi(
            self.reconciler,
            self.metrics,
            VllmMetrics(client, clock),
            (),
            api_key=vllm.api_key,
            vital=self.vital,
            clock=clock,
        )

    def settle(self) -> dict[str, AdapterStatus]:
        """Returns every adapter's status by served name."""
        while True:
            self._done.clear()
            self.reconciler.step()
            if not self.reconciler.busy:
                return self.statuses
            assert self._done.wait(10), "a download or a load neither ends nor fails"

    @property
    def statuses(self) -> dict[str, AdapterStatus]:
        return {status.served_name: status for status in self.reconciler.report.adapters}

    def wait(self, seconds: float) -> None:
        self.seconds += seconds

    def drain(self) -> dict[str, AdapterStatus]:
        """Settles, and again when what then drains has been quiet for long enough."""
        self.settle()
        self.wait(DrainTimes.quiet_seconds)
        return self.settle()


def want(desired: Path, *adapters: Adapter) -> None:
    state = DesiredState(base=Base(name=FakeVllm.base), bucket=BUCKET, adapters=adapters)
    desired.write_text(state.to_json())


def corrupt(s3: Any, adapter: Adapter) -> None:
    key = f"llm-models/{adapter.model}/{adapter.version}/adapter_model.safetensors"
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"\x80\x04pickle")


def remove(s3: Any, adapter: Adapter) -> bytes:
    key = f"llm-models/{adapter.model}/{adapter.version}/manifest.json"
    content = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    s3.delete_object(Bucket=BUCKET, Key=key)
    return content
