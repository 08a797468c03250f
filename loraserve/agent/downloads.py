"""Fetches adapters in the background, a few at a time, so that a slow one holds up neither the others nor the loop."""

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from loraserve.agent.metrics import Metrics
from loraserve.catalog import adapters
from loraserve.catalog.bucket import Bucket
from loraserve.contract.desired_state import Adapter, DesiredState

WORKERS = 4

OpenBucket = Callable[[str, str | None], Bucket]
"""Told (name, region)."""


class Downloads:
    """`on_finished` is called, from a worker, after each fetch. A fetch is cut off when the process ends."""

    def __init__(
        self, folder: Path, open_bucket: OpenBucket, metrics: Metrics, on_finished: Callable[[], object]
    ) -> None:
        self._folder = folder
        self._open_bucket = open_bucket
        self._metrics = metrics
        self._on_finished = on_finished
        self._wanted: queue.SimpleQueue[tuple[Adapter, DesiredState]] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[tuple[Adapter, Path | Exception]] = queue.SimpleQueue()
        for _ in range(WORKERS):
            threading.Thread(target=self._work, name="download", daemon=True).start()

    def start(self, adapter: Adapter, desired: DesiredState) -> None:
        """`desired` says where the adapter lies, and what base model it must fit."""
        self._wanted.put((adapter, desired))

    def finished(self) -> Iterator[tuple[Adapter, Path | Exception]]:
        """What ended since the last call: the adapter, and its folder or what went wrong."""
        while not self._finished.empty():
            yield self._finished.get()

    def _work(self) -> None:
        while True:
            adapter, desired = self._wanted.get()
            try:
                with self._metrics.fetch_seconds.time():
                    bucket = self._open_bucket(desired.bucket, desired.region)
                    outcome = adapters.fetch(bucket, adapter, self._folder, desired.base)
            except Exception as error:
                outcome = error
            self._finished.put((adapter, outcome))
            self._on_finished()
