"""Loads adapters into vLLM in the background, one after the other, and knows which of them have shown an effect since."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from loraserve.agent.crew import Bounds, Crew
from loraserve.agent.probe import check_effect
from loraserve.agent.vllm import Vllm, VllmRefused, VllmUnreachable
from loraserve.contract.desired_state import Adapter

BOUNDS = Bounds(at_once=1)
"""A load's probe takes memory on the GPU."""

Loaded = tuple[str, str]
"""(served name, folder)."""


class Loads:
    """`on_finished` is called, from another thread, after each load. All methods belong to one thread."""

    def __init__(
        self, vllm: Vllm, on_finished: Callable[[], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._vllm = vllm
        self._crew: Crew[Adapter, Loaded] = Crew("load", BOUNDS, on_finished, clock)
        self._proven: set[Loaded] = set()
        """What passed the effect probe since vLLM loaded it."""
        self._probing: set[Adapter] = set()
        """Of those being loaded, what is that far."""

    @property
    def running(self) -> frozenset[Adapter]:
        """By version pin."""
        return self._crew.running

    def is_probing(self, pin: Adapter) -> bool:
        return pin in self._probing

    def is_proven(self, served_name: str, folder: Path) -> bool:
        return (served_name, str(folder)) in self._proven

    def forget_all_but(self, loaded: Mapping[str, str]) -> None:
        """What vLLM does not hold any more has to prove itself again."""
        self._proven &= loaded.items()

    def start(self, adapter: Adapter, folder: Path, loaded_from: str | None, base: str) -> bool:
        """Whether there was room; two of one name would unload each other's.

        `loaded_from` is the folder from which vLLM has this name already.
        """
        if any(other.served_name == adapter.served_name for other in self.running):
            return False
        return self._crew.start(adapter.version_pin(), lambda: self._load(adapter, folder, loaded_from, base))

    def finished(self) -> Iterator[tuple[Adapter, Loaded | Exception]]:
        """What ended since the last call: the version pin, and what was loaded or what went wrong."""
        for pin, outcome in self._crew.finished():
            self._probing.discard(pin)
            if not isinstance(outcome, Exception):
                self._proven.add(outcome)
            yield pin, outcome

    def _load(self, adapter: Adapter, folder: Path, loaded_from: str | None, base: str) -> Loaded:
        """In a thread of its own, since vLLM may take long. What does not pass is unloaded again."""
        name = adapter.served_name
        try:
            if loaded_from != str(folder):
                if loaded_from:  # these are not the bytes that are desired now
                    self._vllm.unload(name)
                self._vllm.load(name, folder)
            self._probing.add(adapter.version_pin())
            check_effect(self._vllm, base, name, folder)
            if adapter.prewarm:
                self._vllm.prewarm(name)
        except VllmUnreachable:
            raise
        except Exception:
            with suppress(VllmUnreachable, VllmRefused):
                self._vllm.unload(name)
            raise
        return name, str(folder)
