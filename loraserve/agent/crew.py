"""Work in the background: a few tasks at a time, of which a slow one holds nobody up."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class Bounds:
    """How many tasks run side by side. One that has run for `patience_seconds` makes room for another, up to `most`."""

    at_once: int
    patience_seconds: float = 10.0
    most: int = 16


class Crew(Generic[K, T]):
    """Each task has a thread of its own, which ends with the process. All methods belong to one thread.

    Nothing waits in a queue: who finds no room asks again, so that what is not wanted any more never runs.
    `on_finished` is called, from the task's thread, after each one.
    """

    def __init__(
        self,
        name: str,
        bounds: Bounds,
        on_finished: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._bounds = bounds
        self._on_finished = on_finished
        self._clock = clock
        self._began: dict[K, float] = {}
        self._finished: SimpleQueue[tuple[K, T | Exception]] = SimpleQueue()

    @property
    def running(self) -> frozenset[K]:
        return frozenset(self._began)

    def start(self, key: K, task: Callable[[], T]) -> bool:
        """Whether there was room for it."""
        now = self._clock()
        fresh = sum(now - began < self._bounds.patience_seconds for began in self._began.values())
        if key in self._began or fresh >= self._bounds.at_once or len(self._began) >= self._bounds.most:
            return False
        self._began[key] = now
        threading.Thread(target=self._run, args=(key, task), name=self._name, daemon=True).start()
        return True

    def finished(self) -> Iterator[tuple[K, T | Exception]]:
        """What ended since the last call: the key, and what its task returned or raised."""
        while not self._finished.empty():
            key, outcome = self._finished.get()
            del self._began[key]
            yield key, outcome

    def _run(self, key: K, task: Callable[[], T]) -> None:
        try:
            outcome: T | Exception = task()
        except Exception as error:
            outcome = error
        self._finished.put((key, outcome))
        self._on_finished()
