"""What is known about one request when it is over: for the metrics and for the access log, never its content or its key."""

import logging
import re
import time
from dataclasses import dataclass, field
from typing import Self

from loraserve.contract.served_name import ServedName
from loraserve.gateway.metrics import OTHER, Metrics
from loraserve.gateway.seen import Seen
from loraserve.gateway.traces import Span
from loraserve.log import event
from loraserve.monitoring.metrics import FAILURES, OK

log = logging.getLogger("loraserve.access")

CLIENT_GONE = "client_gone"
_EVENT_END = b"\n\n"
_LAST = b"}" + _EVENT_END
_ROLE = b'"role":'
"""In the first chunk of a sequence of a conversation, which has no token yet."""
_PIECE, _FINISHES, _NO_CHOICES = b'data: {"id":', b'"finish_reason":"', b'"choices":[],'
_FINGERPRINT = re.compile(rb'"system_fingerprint":"[^"]*"')
_USAGE = b'"usage":'
_USAGE_BYTES = 600
_ITS_END = 1
"""Tokens of an answer that ends where it begins: vLLM counts the one that ends it."""
_LARGEST_EVENT = 64 << 10
"""With the prompt's log-probabilities one may have megabytes."""
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
    span: Span | None = None
    """None where it is not traced."""
    tenant: str | None = None
    caller: str | None = None
    """Who was assigned to a version; neither logged nor a label."""
    seen: Seen | None = None
    """Where its answer is sampled."""
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

    def see(self, piece: bytes) -> None:
        """Of the answer."""
        if self.seen:
            self.seen.see(piece)

    def count(self, usage: "Usage") -> None:
        """Takes over what vLLM has counted."""
        if (prompt := usage.prompt_tokens) is not None:
            self.prompt_tokens = prompt
        if (completion := usage.completion_tokens) is not None:
            self.completion_tokens = completion

    def finish(self, metrics: Metrics) -> None:
        """Counts and logs the request."""
        seconds = time.monotonic() - self.started
        model, version = metrics.model(self.model), metrics.version(self.model, self.served)
        tenant = metrics.tenant(self.tenant)
        metrics.requests.labels(model, version, self.outcome).inc()
        metrics.tenant_requests.labels(tenant, self.outcome).inc()
        if self.caller is not None and self.outcome in (OK, *FAILURES):
            metrics.canaries.count(model, version, self.caller, seconds, failed=self.outcome != OK)
        if self.outcome == OK:
            metrics.duration.labels(model, version).observe(seconds)
        if self.first_byte is not None:
            metrics.first_token.labels(model, version).observe(self.first_byte)
        if self.fallback:
            metrics.fallbacks.labels(model, self.fallback).inc()
        if self.outcome == OK and self.completion_tokens is not None and self.completion_tokens <= _ITS_END:
            metrics.empty.labels(model, version).inc()
        for direction, count in (("in", self.prompt_tokens), ("out", self.completion_tokens)):
            if count:
                metrics.tokens.labels(tenant, model, version, direction).inc(count)
        log.info(self._line(seconds))
        if self.span:
            self.span.end(f"POST {self.path}", self._attributes(), failed=self.outcome in FAILURES)

    def _attributes(self) -> dict[str, str | int | float | None]:
        """OpenTelemetry's names where it has some."""
        served = ServedName(self.served) if self.served else None
        return {
            "http.response.status_code": self.status,
            "gen_ai.request.model": self.model,
            "gen_ai.response.model": served,
            "gen_ai.usage.input_tokens": self.prompt_tokens,
            "gen_ai.usage.output_tokens": self.completion_tokens,
            "loraserve.version": served and served.version,
            "loraserve.tenant": self.tenant,
            "loraserve.outcome": self.outcome,
            "loraserve.fallback": self.fallback,
            "loraserve.wait_seconds": round(self.waited, 3),
            "loraserve.time_to_first_token_seconds": None if self.first_byte is None else round(self.first_byte, 3),
            "loraserve.request_id": self.request_id,
        }

    def _line(self, seconds: float) -> str:
        optional = {
            "fallback": self.fallback,
            "tenant": self.tenant,
            "key": self.key,
            "served": self.served,
            "waited": round(self.waited, 3) if self.waited else None,
            "ttft": None if self.first_byte is None else round(self.first_byte, 3),
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
            seconds=round(seconds, 4),
            request_id=self.request_id,
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
        version = metrics.version(record.model, record.served)
        self._gap = metrics.inter_token.labels(metrics.model(record.model), version)
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
        self._record.see(chunk)
        self._pieces += chunk.count(b"data: {") - chunk.count(_ROLE)
        recent = self._end + chunk
        if failed := _ERROR_EVENT.search(recent):
            self._record.outcome = f"vllm_{(failed[1] or b'error').decode()}"
        self._end = recent[-_USAGE_BYTES * 2 :]

    def close(self, prompt_estimate: int) -> None:
        """The stream is over. One that ended before vLLM told its usage took its pieces, and a prompt of about this size."""
        self._record.prompt_tokens, self._record.completion_tokens = prompt_estimate, max(0, self._pieces)
        self._record.count(Usage.of(self._end))


class HiddenUsage:
    """Takes out of a stream the usage that only the gateway has asked for: what is left is what vLLM sends unasked.

    Asked, vLLM 0.32.0 ends with a chunk without choices, and puts its fingerprint there in the place of the chunk that
    finishes a sequence. So that one waits for it, which is no time where there is one sequence. A large event is passed on
    as it comes; where it finishes a sequence, it lacks the fingerprint.
    """

    def __init__(self) -> None:
        self._finishing: list[bytes] = []
        self._rest = b""
        """Of an event that is not complete."""
        self._is_passing = False
        """Whether the beginning of that event is with the client."""

    def see(self, chunk: bytes) -> bytes:
        """What the client gets now."""
        *complete, self._rest = (self._rest + chunk).split(_EVENT_END)
        shown: list[bytes] = []
        for each in complete:
            shown.append(each + _EVENT_END if self._is_passing else self._shown(each + _EVENT_END))
            self._is_passing = False
        if self._is_passing or len(self._rest) > _LARGEST_EVENT:
            shown.append(self._rest[:-1])  # the last byte may be the first of its end
            self._rest, self._is_passing = self._rest[-1:], True
        return b"".join(shown)

    def close(self) -> bytes:
        """What is left of a stream that ended before its end."""
        return self._rest if self._is_passing else self._finish() + self._rest

    def _shown(self, event: bytes) -> bytes:
        if not event.startswith(_PIECE):  # nothing comes after the error or the end that this is
            return self._finish() + event
        if _NO_CHOICES in event:
            return self._finish(_FINGERPRINT.search(event))
        if _FINISHES in event:
            self._finishing.append(event)
            return b""
        return event

    def _finish(self, fingerprint: re.Match[bytes] | None = None) -> bytes:
        last = b"," + fingerprint[0] + _LAST if fingerprint else _LAST
        events, self._finishing = self._finishing, []
        return b"".join(event.removesuffix(_LAST) + last for event in events)
