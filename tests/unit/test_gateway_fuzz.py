"""Whatever comes in, the gateway answers below 500 or closes, and has nothing left of it afterwards."""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from loraserve.gateway.openapi import DOCUMENT
from tests.unit.gateway_world import World, adapter, world

pytest_plugins = ["schemathesis.pytest.plugin"]
schema = schemathesis.openapi.from_dict(DOCUMENT)

CASES = int(os.environ.get("FUZZ_CASES", "200"))
"""In all; `make fuzz` asks for 10,000."""
RELAXED = settings(
    max_examples=CASES // 4,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Gives up soon, as most of what it gets is never completed."""
    yield from fuzzed(tmp_path_factory, idle_seconds=0.3, body_seconds=0.3)


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from fuzzed(tmp_path_factory)


def fuzzed(tmp_path_factory: pytest.TempPathFactory, **limits: float) -> Iterator[World]:
    logged = Logged()
    logging.getLogger().addHandler(logged)
    with world(tmp_path_factory.mktemp("gateway"), **limits) as made:
        made.pods[0].holds("faq@v1")
        made.start(adapter())
        made.wait_for_status("ready")
        yield made
        logging.getLogger().removeHandler(logged)
        assert not [line for line in logged.lines if secret(made) in line]
        made.wait_for_load()
        samples = [line for line in made.inner("/metrics").text.splitlines() if "requests_total{" in line]
        assert [line for line in samples if 'outcome="internal_error"' in line and not line.endswith(" 0.0")] == []


class Logged(logging.Handler):
    """Whatever is logged, tracebacks included."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def secret(at: World) -> str:
    """Of the key that is sent."""
    return at.key.split("-", 2)[2]


def whole(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def chunked(body: bytes) -> bytes:
    pieces = [body[at : at + 7] for at in range(0, len(body), 7)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


ASKED = b'{"model": "faq", "prompt": "Hi"}'
STREAMED = b'{"model": "faq", "prompt": "Hi", "stream": true}'
REQUESTS = {
    b"GET /v1/models HTTP/1.1": [b"\r\n"],
    b"POST /v1/completions HTTP/1.1": [framed(body) for framed in (whole, chunked) for body in (ASKED, STREAMED)],
    b"POST /v1/chat/completions HTTP/1.0": [whole(ASKED)],
}
"""Good ones: request line -> what may follow the common headers."""
GOOD = some.sampled_from([(line, rest) for line, follow in REQUESTS.items() for rest in follow])
ODD_HEADERS = some.lists(
    some.sampled_from(
        [
            *(b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: -1", b"Content-Length: 5, 6"),
            *(
                b"Content-Length: 99999999999999999999",
                b"Transfer-Encoding: chunked",
                b"Transfer-Encoding: chunked, gzip",
            ),
            *(b"Transfer-Encoding : chunked", b"Expect: 100-continue", b"Connection: close", b"Connection: upgrade"),
            *(b"Upgrade: websocket", b"Content-Encoding: gzip", b"X: " + b"a" * 9000, b": y", b" folded", b"X\x00: y"),
            *(b"Expect: x", b"Trailer: X", b"Content-Type: \xff"),
            *(b"Authorization: Bearer \xff\xfe", b"Host: y", b"X-Request-Id: \xe9", b"traceparent: 00-x", b"X: y"),
        ]
    ),
    max_size=1,
)
EDITS = some.lists(some.tuples(some.integers(0, 400), some.integers(0, 3), some.binary(max_size=3)), max_size=1)
"""(where, how many bytes go, what comes instead)."""


def requested(at: World, line: bytes, rest: bytes, headers: list[bytes]) -> bytes:
    common = [b"Host: x", b"Authorization: Bearer " + at.key.encode(), b"Connection: close", *headers]
    return b"\r\n".join([line, *common, rest])


@given(GOOD, some.lists(some.integers(0, 400), max_size=3))
@RELAXED
def test_a_good_request_is_answered_however_it_is_cut(
    patient: World, good: tuple[bytes, bytes], cuts: list[int]
) -> None:
    assert statuses(exchanged(patient, cut(requested(patient, *good, []), cuts))) == [200]


@given(GOOD, ODD_HEADERS, EDITS, some.lists(some.integers(0, 400), max_size=2))
@RELAXED
def test_no_framing_makes_it_fail_or_hang(
    at: World, good: tuple[bytes, bytes], headers: list[bytes], edits: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    message = requested(at, *good, headers)
    for where, gone, instead in edits:
        message = message[:where] + instead + message[where + gone :]
    answer = exchanged(at, cut(message, cuts))
    assert all(100 <= status < 500 for status in statuses(answer)), (message, answer)


def cut(message: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(places), len(message)]
    return [message[start:end] for start, end in itertools.pairwise(edges)]


@given(some.lists(some.binary(max_size=200), max_size=5))
@RELAXED
def test_no_bytes_make_it_fail_or_hang(at: World, pieces: list[bytes]) -> None:
    for head in statuses(exchanged(at, pieces)):
        assert 100 <= head < 500, pieces


VALUES = some.recursive(
    some.none()
    | some.booleans()
    | some.integers()
    | some.floats()
    | some.text()
    | some.sampled_from(["faq", "nope", "1e9"]),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
FIELDS = some.sampled_from(
    [
        *("model", "prompt", "messages", "input", "n", "max_tokens", "max_completion_tokens", "stream", "user"),
        *("cache_salt", "service_tier", "prompt_embeds", "safety_identifier", "previous_response_id", "temperature"),
    ]
)
BODIES = some.dictionaries(FIELDS, VALUES, max_size=6)
PATHS = some.sampled_from([b"/v1/completions", b"/v1/chat/completions", b"/v1/responses", b"/tokenize"])


@given(PATHS, BODIES, EDITS)
@RELAXED
def test_no_body_makes_it_fail_or_hang(
    patient: World, path: bytes, body: dict[str, object], edits: list[tuple[int, int, bytes]]
) -> None:
    content = json.dumps({"model": "faq"} | body).encode()
    for where, gone, instead in edits:
        content = content[:where] + instead + content[where + gone :]
    answer = exchanged(patient, [requested(patient, b"POST %s HTTP/1.1" % path, whole(content), [])])
    assert [status < 500 for status in statuses(answer)] == [True], (content, answer)


def test_a_second_request_cannot_hide_in_the_first_ones_body(at: World) -> None:
    """Where two lengths contradict each other, nothing is believed."""
    hidden = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n"
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {at.key}\r\n".encode()
    lengths = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % (5 + len(hidden))
    assert statuses(exchanged(at, [head + lengths + hidden]))[0] == 400


@schema.parametrize()
@settings(
    max_examples=CASES // 16,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_what_the_document_says_holds(case: schemathesis.Case, at: World) -> None:
    case.call_and_validate(
        base_url=at.url,
        headers={"Authorization": f"Bearer {at.key}"},
    )


def exchanged(at: World, pieces: list[bytes]) -> bytes:
    """Everything that comes back until the gateway closes; a hang is a timeout, and an error."""
    received = b""
    with socket.create_connection(("127.0.0.1", int(at.url.rpartition(":")[2]))) as client:
        client.settimeout(15)
        try:
            for piece in pieces:
                client.sendall(piece)
            while data := client.recv(65_536):
                received += data
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert secret(at).encode() not in received
    assert b"aiohttp" not in received, "an answer that is none of ours"
    return received


def statuses(answer: bytes) -> list[int]:
    """Of every response."""
    lines = [line for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.")]
    return [int(line.split()[1]) for line in lines]
