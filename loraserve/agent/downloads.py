"""Fetches adapters in the background, so that a slow one holds up neither the others nor the loop."""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from loraserve.agent.crew import Bounds, Crew
from loraserve.agent.metrics import Metrics
from loraserve.catalog import adapters
from loraserve.catalog.bucket import Bucket
from loraserve.contract.desired_state import Adapter, DesiredState

BOUNDS = Bounds(at_once=4)

OpenBucket = Callable[[str, str | None], Bucket]
"""Told (name, region)."""


class Downloads:
    """`on_finished` is called, from another thread, after each fetch. A fetch is cut off when the process ends."""

    def __init__(
        self,
        folder: Path,
        open_bucket: OpenBucket,
        metrics: Metrics,
        on_finished: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._open_bucket = open_bucket
        self._metrics = metrics
        self._crew: Crew[Adapter, Path] = Crew("download", BOUNDS, on_finished, clock)
        self._stops: dict[Adapter, threading.Event] = {}

    @property
    def running(self) -> frozenset[Adapter]:
        return self._crew.running

    def start(self, adapter: Adapter, desired: DesiredState) -> bool:
        """Whether there was room, and nobody fetches the same bytes for another name.

        `desired` says where the adapter lies, and what base model it must fit.
        """
        if any(other.folder_name == adapter.folder_name for other in self.running):
            return False
        stop = threading.Event()
        started = self._crew.start(adapter, lambda: self._fetch(adapter, desired, stop))
        if started:
            self._stops[adapter] = stop
        return started

    def drop_all_but(self, wanted: Collection[Adapter]) -> None:
        """Ends the fetches of all others, soon."""
        for adapter in self._stops.keys() - set(wanted):
            self._stops[adapter].set()

    def finished(self) -> Iterator[tuple[Adapter, Path | Exception]]:
        """What ended since the last call: the adapter, and its folder or what went wrong."""
        for adapter, outcome in self._crew.finished():
            del self._stops[adapter]
            yield adapter, outcome

    def _fetch(self, adapter: Adapter, desired: DesiredState, stop: threading.Event) -> Path:
        with self._metrics.fetch_seconds.time():
            bucket = self._open_bucket(desired.bucket, desired.region).until(stop.is_set)
            return adapters.fetch(bucket, adapter, self._folder, desired.base)
