"""What a person sees while the local stack works: steps, lines below them, and what is awaited for how long.

Nothing is silent for long: what takes its time is named again every few seconds, with the time that it has taken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

Say = Callable[[str], None]

console = Console(highlight=False, soft_wrap=True)
_HEARTBEAT_S = 15
_awaited: list[str] = []


def say(message: str) -> None:
    """One line below the step that runs."""
    console.print(f"    {message}", markup=False)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Says what is done, and how long it took."""
    console.print(f"==> {title}", markup=False)
    started = time.monotonic()
    with _heartbeat(lambda: None if _awaited else say(f"{title}: {elapsed(started)} so far")):
        yield
    say(f"done in {elapsed(started)}")


@contextmanager
def awaited(what: str, say: Say = say, *, usually: str = "") -> Iterator[None]:
    """A part of a step that takes its time; `usually` is how long, such as "2 min"."""
    say(f"{what}{f' (about {usually})' if usually else ''} ...")
    started = time.monotonic()
    _awaited.append(what)
    try:
        with _heartbeat(lambda: say(f"{what}: {elapsed(started)} so far")):
            yield
    finally:
        _awaited.remove(what)
    say(f"{what}: took {elapsed(started)}")


def elapsed(started: float) -> str:
    """Time since a moment of the monotonic clock."""
    seconds = int(time.monotonic() - started)
    return f"{seconds} s" if seconds < 100 else f"{seconds // 60} min {seconds % 60} s"


@contextmanager
def _heartbeat(beat: Callable[[], object]) -> Iterator[None]:
    over = threading.Event()

    def keep_beating() -> None:
        while not over.wait(_HEARTBEAT_S):
            beat()

    beating = threading.Thread(target=keep_beating, daemon=True)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
