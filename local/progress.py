"""What a person sees while the local stack works: steps, lines below them, and what is awaited for how long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

Say = Callable[[str], None]

console = Console(highlight=False, soft_wrap=True)
_HEARTBEAT_S = 15


def say(message: str) -> None:
    """One line below the step that runs."""
    console.print(f"    {message}", markup=False)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Says what is done, and how long it took."""
    console.print(f"==> {title}", markup=False)
    started = time.monotonic()
    yield
    console.print(f"    done in {time.monotonic() - started:.0f} s")


@contextmanager
def awaited(what: str, say: Say = say, *, usually: str = "") -> Iterator[None]:
    """Nothing is silent for long: says what is awaited, how long it has taken every few seconds, and how long it took.

    `usually` is how long it is expected to take, such as "2 min".
    """
    say(f"{what}{f' (about {usually})' if usually else ''} ...")
    started, over = time.monotonic(), threading.Event()

    def beat() -> None:
        while not over.wait(_HEARTBEAT_S):
            say(f"{what}: {_elapsed(started)} so far{f' of about {usually}' if usually else ''}")

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
    say(f"{what}: took {_elapsed(started)}")


def _elapsed(started: float) -> str:
    seconds = int(time.monotonic() - started)
    return f"{seconds} s" if seconds < 100 else f"{seconds // 60} min {seconds % 60} s"
