"""Waiting for what other processes do in their own time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    look: Callable[[], T], *, limit_s: float = 60, every_s: float = 0.1, passing: tuple[type[Exception], ...] = ()
) -> T:
    """The first true answer; errors of the `passing` kinds count as none. Fails, with the last of them, after the limit."""
    deadline, trouble = time.monotonic() + limit_s, "never true"
    while time.monotonic() < deadline:
        try:
            if answer := look():
                return answer
        except passing as error:
            trouble = repr(error)
        time.sleep(every_s)
    raise AssertionError(f"nothing within {limit_s:.0f} s: {trouble}")
