"""Looks at the requests a Bucket makes, and interferes with them."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from loraserve.catalog.bucket import Bucket


class Killed(BaseException):
    """Ends a transfer as a killed process would: nothing is cleaned up or reported."""


@contextmanager
def on_each_request(bucket: Bucket, act: Callable[[str], Any], operation: str = "*") -> Iterator[list[str]]:
    """Calls `act` with the URL before each request; what it returns is the answer, None lets the request pass.

    Yields the list of all URLs asked for, which grows.
    """
    urls: list[str] = []

    def before_send(request: Any, **_: object) -> Any:
        urls.append(request.url)
        return act(request.url)

    events, event = bucket._s3.meta.events, "before-send.s3" + ("" if operation == "*" else f".{operation}")
    events.register_first(event, before_send)
    try:
        yield urls
    finally:
        events.unregister(event, before_send)


def recording(bucket: Bucket, operation: str = "*") -> Any:
    return on_each_request(bucket, lambda url: None, operation)


def kill_after(requests: int) -> Callable[[str], None]:
    counter, lock = itertools.count(1), threading.Lock()

    def act(_: str) -> None:
        with lock:
            if next(counter) > requests:
                raise Killed

    return act


def once(action: Callable[[], object]) -> Callable[[str], None]:
    """Acts before the first request only."""
    lock = threading.Lock()
    left = iter([action])

    def act(_: str) -> None:
        with lock:
            if first := next(left, None):
                first()

    return act
