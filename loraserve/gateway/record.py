"""What is known about one request when it is over: for the metrics and for the access log, never its content or its key."""

import logging
import re
import time
from dataclasses import dataclass, field
from typing import Self

from loraserve.gateway.metrics import OTHER, Metrics
from loraserve.log import event
from loraserve.monitoring.metrics import OK

log = logging.getLogger("loraserve.access")

CLIENT_GONE = "client_gone"
_EVENT_END = b"\n\n"
_USAGE = b'"usage":'
_USAGE_BYTES = 600
_PROMPT_TOKENS = re.compile(rb'"(?:prompt|input)_tokens":\s*(\d{1,9})')
_ERROR_EVENT = re.compile(rb'^data: \{"error":(?:.*?"code":\s*(\d{3})\b)?', re.MULTILINE)
"""As vLLM words it: a stream has only its events to tell that it failed."""
_COMPLETION_TOKENS = re.compile(rb'"(?:completion|output)_tokens":\s*(\d{1,9})')


@dataclass
class Record:
    """Filled while the request goes through."""

    path: str
    request_id: str
    trace: str | None = None
    tenant: str | None = None
    key: str | None = None
    """The key's public id."""
    model: str = OTHER
    served: str | None = None
    status: int = 0
    outcome: str = OK
    fallback: str | None = None
    """Why the base model answered instead."""
    started: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    first_byte: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def count(self, usage: "Usage") -> None:
        """Takes over what vLLM has counted."""
        if (prompt := usage.prompt_tokens) is not None:
            self.prompt_tokens = prompt
        if (completion := usage.completion_tokens) is not None:
            self.completion_tokens = completion

    def finish(self, metrics: Metrics) -> None:
        """Counts and logs the request."""
        seconds = time.monotonic() - self.started
        version, tenant = metrics.version(self.model, self.served), metrics.tenant(self.tenant)
        metrics.requests.labels(self.model, version, self.outcome).inc()
        metrics.tenant_requests.labels(tenant, self.outcome).inc()
        if self.outcome == OK:
            metrics.duration.labels(self.model, version).observe(seconds)
        if self.first_byte is not None:
            metrics.first_token.labels(self.model, version).observe(self.first_byte)
        if self.fallback:
            metrics.fallbacks.labels(self.model, self.fallback).inc()
        for direction, count in (("in", self.prompt_tokens), ("out", self.completion_tokens)):
            if count:
                metrics.tokens.labels(tenant, self.model, version, direction).inc(count)
        log.info(self._line(seconds))

    def _line(self, seconds: float) -> str:
        optional = {
            "fallback": self.fallback,
            "tenant": self.tenant,
            "key": self.key,
            "served": self.served,
            "waited": f"{self.waited:.3f}" if self.waited else None,
            "ttft": None if self.first_byte is None else f"{self.first_byte:.3f}",
            "tokens_in": self.prompt_tokens,
            "tokens_out": self.completion_tokens,
            "trace": self.trace,
        }
        return event(
            "request",
            path=self.path,
            status=self.status,
            outcome=self.outcome,
            model=self.model,
            seconds=f"{seconds:.4f}",
            id=self.request_id,
            **{name: value for name, value in optional.items() if value is not None},
        )


class Usage:
    """Finds vLLM's count of tokens in an answer, whole or in pieces. In a text of the model's its quotes would be escaped."""

    def __init__(self) -> None:
        self._found = b""
        self._end = b""
        """What may be its beginning."""

    @classmethod
    def of(cls, body: bytes) -> Self:
        usage = cls()
        usage.see(body)
        return usage

    def see(self, piece: bytes) -> None:
        recent = self._end + piece
        if (at := recent.rfind(_USAGE)) >= 0:
            self._found = recent[at : at + _USAGE_BYTES]
        elif self._found:
            self._found += piece[: _USAGE_BYTES - len(self._found)]
        self._end = recent[1 - len(_USAGE) :]

    @property
    def prompt_tokens(self) -> int | None:
        return _first(_PROMPT_TOKENS, self._found)

    @property
    def completion_tokens(self) -> int | None:
        return _first(_COMPLETION_TOKENS, self._found)


def _first(pattern: re.Pattern[bytes], text: bytes) -> int | None:
    found = pattern.search(text)
    return int(found[1]) if found else None


class StreamMeter:
    """Watches the pieces of one streamed answer go by."""

    def __init__(self, record: Record, metrics: Metrics) -> None:
        self._record = record
        self._gap = metrics.inter_token.labels(record.model, metrics.version(record.model, record.served))
        self._last: float | None = None
        self._pieces = 0
        self._end = b""

    @property
    def between_events(self) -> bool:
        """Whether another event may follow what was passed on so far."""
        return not self._end or self._end.endswith(_EVENT_END)

    def see(self, chunk: bytes) -> None:
        now = time.monotonic()
        if self._last is None:
            self._record.first_byte = now - self._record.started
        else:
            self._gap.observe(now - self._last)
        self._last = now
        self._pieces += chunk.count(b"data: {")
        recent = self._end + chunk
        if failed := _ERROR_EVENT.search(recent):
            self._record.outcome = f"vllm_{(failed[1] or b'error').decode()}"
        self._end = recent[-_USAGE_BYTES * 2 :]

    def close(self) -> None:
        """The stream is over."""
        self._record.completion_tokens = self._pieces
        self._record.count(Usage.of(self._end))
