"""What is known about one request when it is over: for the metrics and for the access log, never its content or its key."""

import logging
import re
import time
from dataclasses import dataclass, field

from loraserve.gateway.metrics import OTHER, Metrics
from loraserve.log import event
from loraserve.monitoring.metrics import OK

log = logging.getLogger("loraserve.access")

CLIENT_GONE = "client_gone"
_EVENT_END = b"\n\n"
_USAGE = b'"usage":'
_USAGE_BYTES = 400
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

    def answered(self, body: bytes) -> None:
        """Reads the token counts of a whole answer, or of the end of a stream."""
        if (at := body.rfind(_USAGE)) < 0:
            return
        usage = body[at : at + _USAGE_BYTES]
        if prompt := _PROMPT_TOKENS.search(usage):
            self.prompt_tokens = int(prompt[1])
        if completion := _COMPLETION_TOKENS.search(usage):
            self.completion_tokens = int(completion[1])

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
        self._record.answered(self._end)
