"""Questions to AWS, asked side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


def at_once(*questions: Callable[[], T]) -> list[T]:
    """The answers, in the order of the questions. Raises what the first of them raised that did."""
    with ThreadPoolExecutor(len(questions)) as threads:
        asked = [threads.submit(copy_context().run, _in_a_loop_of_its_own, question) for question in questions]
        return [answer.result() for answer in asked]


def _in_a_loop_of_its_own(question: Callable[[], T]) -> T:
    """Pulumi's SDK waits for an answer in the event loop of the thread that asks."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        return question()
    finally:
        asyncio.set_event_loop(None)
        loop.close()
