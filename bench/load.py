"""Load as many applications make it: at a fixed rate, whatever comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any


async def open_loop(rate: float, ended: asyncio.Event, one: Callable[[float], Coroutine[Any, Any, None]]) -> None:
    """Starts `rate` calls a second, each with when it was due (monotonic clock); returns when the last has returned."""
    async with asyncio.TaskGroup() as calls:
        due = time.monotonic()
        while not ended.is_set():
            calls.create_task(one(due))
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
