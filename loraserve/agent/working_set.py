"""Which of the declared adapters vLLM is to hold, where it cannot hold all: those asked for last."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from loraserve.agent.drain import DrainTimes
from loraserve.contract.desired_state import Adapter
from loraserve.contract.served_name import ServedName
from loraserve.planning.holding import Declared, by_name, fit_all, held, unasked_order

ASKED_SECONDS = 15.0
"""What was asked for so lately is held in any case. A gateway asks again every second while a request waits."""
EVICTION = DrainTimes(quiet_seconds=6.0, longest_seconds=float("inf"))
"""Gateways act for five seconds on what they heard; what is in use never goes."""


class WorkingSet:
    """Adapters by name, since a canary and its stable version, or both versions of a swap, come and go together.

    `ask` and `is_asked` may be called from any thread, the other methods belong to one.
    """

    def __init__(
        self,
        most: int | None,
        disk_bytes: int,
        on_ask: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`most` versions are held, and what fits the disk; None: all that are declared. `on_ask` hears of new ones."""
        self._most = most
        self._disk_bytes = disk_bytes
        self._on_ask = on_ask
        self._clock = clock
        self._lock = threading.Lock()
        self._used: OrderedDict[str, float] = OrderedDict()
        """When each was asked for, or -inf; the one used last comes last."""
        self._seen: dict[str, float] = {}
        """Last uses that vLLM told, by served name."""
        self.names: frozenset[str] = frozenset()
        """What `choose` chose last."""
        self.is_all = True
        """Whether that is everything."""

    def ask(self, served_names: Iterable[str]) -> None:
        """Requests wait for these, or use them."""
        names, now = {ServedName(served).adapter for served in served_names}, self._clock()
        with self._lock:
            for name in names:
                self._used[name] = now
                self._used.move_to_end(name)
        if not names <= self.names:
            self._on_ask()

    def is_asked(self, name: str) -> bool:
        with self._lock:
            return self._clock() - self._used.get(name, float("-inf")) < ASKED_SECONDS

    def see(self, last_used: Mapping[str, float]) -> None:
        """Takes over what vLLM knows of uses, by served name."""
        changed = [served for served, at in last_used.items() if self._seen.get(served) != at]
        self._seen = dict(last_used)
        with self._lock:
            for served in sorted(changed, key=last_used.__getitem__):
                name = ServedName(served).adapter
                self._used.setdefault(name, float("-inf"))
                self._used.move_to_end(name)

    def choose(self, adapters: Sequence[Adapter], keep: Collection[str]) -> None:
        """Those to `keep` and what was asked for just now, then what was used last, then, of what never was, the prewarmed first."""
        declared = by_name(adapters)
        self._forget_all_but(declared)
        self.is_all = self._most is None or fit_all(adapters, self._most, self._disk_bytes)
        if self._most is None or self.is_all:
            self.names = frozenset(declared)
        else:
            wanted = held(
                declared,
                self._ranked(declared),
                self._most,
                self._disk_bytes,
                anyway=lambda name: name in keep or self.is_asked(name),
            )
            self.names = frozenset(wanted)

    def _ranked(self, declared: Declared) -> list[str]:
        with self._lock:
            used = list(reversed(self._used))
        return used + unasked_order({name: declared[name] for name in declared.keys() - set(used)})

    def _forget_all_but(self, names: Collection[str]) -> None:
        with self._lock:
            for gone in self._used.keys() - set(names):
                del self._used[gone]
