"""A collector for one machine: takes OTLP over HTTP as gateway and vLLM send it, and shows each trace as a tree."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

PATH, PORT = "/v1/traces", 4318
"""OTLP's own."""
_NOT_SHOWN = ("http.", "loraserve.request_id", "gen_ai.request.id", "gen_ai.request.n")


@dataclass(frozen=True)
class Span:
    service: str
    name: str
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    """Nanoseconds since 1970."""
    failed: bool
    attributes: dict[str, Any]

    @property
    def milliseconds(self) -> float:
        return (self.ended - self.began) / 1e6


@dataclass
class Collector:
    url: str
    spans: list[Span] = field(default_factory=list)
    arrived: Condition = field(default_factory=Condition)

    def take(self, content: bytes, content_type: str) -> None:
        """Raises ValueError where it is no OTLP."""
        request = ExportTraceServiceRequest()
        try:
            if content_type == "application/json":
                json_format.Parse(content, request)
            else:
                request.ParseFromString(content)
        except Exception as error:
            raise ValueError(str(error)) from None
        as_text = _base64_text if content_type == "application/json" else bytes.hex
        with self.arrived:
            self.spans += _spans(request, as_text)
            self.arrived.notify_all()

    def trace(self, identifier: str) -> list[Span]:
        return [span for span in self.spans if span.trace == identifier]

    def settled(self, seconds: float) -> set[str]:
        """Traces of which nothing has happened for so long."""
        last = {span.trace: span.ended for span in sorted(self.spans, key=lambda span: span.ended)}
        return {trace for trace, ended in last.items() if time.time_ns() - ended > seconds * 1e9}


def tree(spans: list[Span]) -> list[str]:
    """One line each, below its parent: when it began, how long it took, what it says."""
    known = {span.id for span in spans}
    first = min((span.began for span in spans), default=0)

    def below(parent: str | None, depth: int) -> Iterator[str]:
        for span in sorted(spans, key=lambda span: span.began):
            if span.parent == parent or (parent is None and span.parent not in known):
                yield _line(span, depth, first)
                yield from below(span.id, depth + 1)

    return list(below(None, 0))


def _line(span: Span, depth: int, first: int) -> str:
    told = " ".join(
        f"{name.removeprefix('loraserve.').removeprefix('gen_ai.')}={_short(value)}"
        for name, value in span.attributes.items()
        if not name.startswith(_NOT_SHOWN)
    )
    where = f"{'  ' * depth}{span.name} ({span.service})"
    return f"{where:<52} +{(span.began - first) / 1e6:8.1f} {span.milliseconds:9.1f} ms{'  FAILED' if span.failed else ''}  {told}"


def _short(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else value


def _base64_text(identifier: bytes) -> str:
    """What stood in the JSON: OTLP writes ids as hexadecimal there, which protobuf reads as its own base64."""
    return base64.b64encode(identifier).decode()


def _spans(request: ExportTraceServiceRequest, as_text: Callable[[bytes], str]) -> Iterator[Span]:
    for group in request.resource_spans:
        service = _values(group.resource.attributes).get("service.name", "?")
        for scope in group.scope_spans:
            for span in scope.spans:
                yield Span(
                    service=service,
                    name=span.name,
                    trace=as_text(span.trace_id),
                    id=as_text(span.span_id),
                    parent=as_text(span.parent_span_id),
                    began=span.start_time_unix_nano,
                    ended=span.end_time_unix_nano,
                    failed=span.status.code == span.status.STATUS_CODE_ERROR,
                    attributes=_values(span.attributes),
                )


def _values(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value") for each in attributes}


@contextmanager
def collector(address: str = "127.0.0.1", port: int = 0) -> Iterator[Collector]:
    """Listens for as long as it is used."""

    class Otlp(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                if self.path != PATH:
                    raise ValueError(f"there is only {PATH}")
                found.take(content, self.headers.get_content_type())
            except ValueError as error:
                self.send_error(400, explain=str(error))
            else:
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Traces are what is shown."""

    with ThreadingHTTPServer((address, port), Otlp) as server:
        found = Collector(f"http://{address}:{server.server_port}")
        thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
