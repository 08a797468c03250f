"""Spans of requests, in OpenTelemetry's own JSON over HTTP, to the collector that the stack names.

The SDK would bring its exporter's threads and two more HTTP stacks; what is needed of it is this document, sent by the event loop.
"""

import asyncio
import logging
import re
import secrets
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Self

import aiohttp

from loraserve.log import event

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 2.0
KEPT_SPANS = 4096
"""Where the collector is slower than that, or away, the oldest are lost: no request waits for it."""
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_PARENT = re.compile(r"[0-9a-f]{2}-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})")
_SAMPLED = 1

Value = str | int | float | bool


class Kind(IntEnum):
    """OTLP's numbers."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3


@dataclass
class Span:
    """`spans` takes it and those below it, once they are over; None: nobody looks at this trace."""

    trace: str
    parent: str | None
    spans: deque[dict[str, Any]] | None
    kind: Kind = Kind.SERVER
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    began: int = field(default_factory=time.time_ns)

    @property
    def traceparent(self) -> str:
        """Names it to whoever goes on with the trace."""
        return f"00-{self.trace}-{self.id}-{'00' if self.spans is None else '01'}"

    @contextmanager
    def child(self, name: str, kind: Kind = Kind.INTERNAL) -> Iterator[Self]:
        """A part of it, from now until the end of the block."""
        part = type(self)(self.trace, self.id, self.spans, kind)
        try:
            yield part
        except BaseException as error:
            part.end(name, {"error.type": type(error).__name__.lstrip("_")}, failed=True)
            raise
        part.end(name, {})

    def end(self, name: str, attributes: Mapping[str, Value | None], failed: bool = False) -> None:
        """It is over; attributes that are None are left out."""
        if self.spans is None:
            return
        told = {
            "traceId": self.trace,
            "spanId": self.id,
            "name": name,
            "kind": int(self.kind),
            "startTimeUnixNano": str(self.began),
            "endTimeUnixNano": str(time.time_ns()),
            "attributes": _attributes(attributes),
            "status": {"code": 2} if failed else {},
        }
        self.spans.append(told | ({"parentSpanId": self.parent} if self.parent else {}))


class Traces:
    """`url` is where the collector takes traces; None: nothing is kept or sent."""

    def __init__(self, http: aiohttp.ClientSession, url: str | None, pod: str) -> None:
        self._http = http
        self._url = url
        self._resource = {"attributes": _attributes({"service.name": "loraserve-gateway", "service.instance.id": pod})}
        self._spans: deque[dict[str, Any]] = deque(maxlen=KEPT_SPANS)
        self._reached = True

    def begin(self, traceparent: str) -> Span | None:
        """The span of a request, below its caller's where there is one; None where nothing is traced."""
        if self._url is None:
            return None
        caller = _PARENT.fullmatch(traceparent)
        if not caller:
            return Span(secrets.token_hex(16), None, self._spans)
        wanted = int(caller["flags"], 16) & _SAMPLED
        return Span(caller["trace"], caller["span"], self._spans if wanted else None)

    async def follow(self) -> None:
        """Sends what has come together, for ever."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            await self.send()

    async def send(self) -> None:
        """What there is now. A collector that does not take it is told of in the log, once."""
        if not self._spans or self._url is None:
            return
        spans = list(self._spans)
        self._spans.clear()
        scope = {"scope": {"name": "loraserve"}, "spans": spans}
        document = {"resourceSpans": [{"resource": self._resource, "scopeSpans": [scope]}]}
        problem = None
        try:
            async with self._http.post(self._url, json=document, timeout=_TIMEOUT, allow_redirects=False) as answer:
                if answer.status != 200:
                    problem = f"it answers {answer.status}"
        except (aiohttp.ClientError, TimeoutError) as error:
            problem = str(error) or type(error).__name__
        if problem and self._reached:
            log.warning(event("spans are lost", collector=self._url, problem=problem))
        self._reached = problem is None


def _attributes(values: Mapping[str, Value | None]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in values.items() if value is not None]


def _value(value: Value) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case _:
            return {"stringValue": value}
