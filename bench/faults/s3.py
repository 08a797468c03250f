"""Between the node's pods and the emulated AWS: a server that passes everything on, or answers for S3 as it does on a bad day."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from bench.served import node
from local.processes import ProcessError
from local.stack import LocalStack

_PIECE = 2048
_PAUSE_S = 2.0
_PER_HOP = {"connection", "transfer-encoding", "keep-alive", "server", "date"}


class Mood(Enum):
    WELL = "well"
    AWAY = "away"
    SLOW = "slow"
    FAILING = "failing"
    CUT = "cut"
    """Bodies end in their middle."""
    OTHER_CLOCK = "other clock"
    """What S3 answers to a node whose clock is wrong: the emulated one looks at no clock."""


class S3:
    """Only what is asked of the bucket gets the mood; roles are handed out as ever."""

    def __init__(self, address: str, behind: str, bucket: str) -> None:
        self.mood = Mood.WELL
        self._behind = urlsplit(behind).netloc
        self._bucket = f"/{bucket}/"
        self._server = ThreadingHTTPServer((address, 0), self._handler())
        self._server.daemon_threads = True

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        s3 = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """The faults' own table says enough."""

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                mood = s3.mood if self.path.startswith(s3._bucket) else Mood.WELL
                match mood:
                    case Mood.AWAY:
                        reset(self.connection)
                        self.close_connection = True
                    case Mood.FAILING:
                        self._refuse(500, "InternalError")
                    case Mood.OTHER_CLOCK:
                        self._refuse(403, "RequestTimeTooSkewed")
                    case _:
                        self._pass_on(body, mood)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815

            def _refuse(self, status: int, code: str) -> None:
                text = f"<Error><Code>{code}</Code><Message>as asked</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else text)

            def _pass_on(self, body: bytes, mood: Mood) -> None:
                connection = HTTPConnection(s3._behind, timeout=60)
                try:
                    connection.request(self.command, self.path, body, dict(self.headers))
                    answer = connection.getresponse()
                    self._repeat(answer, answer.read(), mood)
                finally:
                    connection.close()

            def _repeat(self, answer: HTTPResponse, content: bytes, mood: Mood) -> None:
                self.send_response_only(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in _PER_HOP | ({"content-length"} if self.command != "HEAD" else set()):
                        self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if mood is Mood.CUT:
                    self.wfile.write(content[: len(content) // 2])
                    self.wfile.flush()
                    self.close_connection = True
                    return
                while content and s3.mood is Mood.SLOW:
                    self.wfile.write(content[:_PIECE])
                    content = content[_PIECE:]
                    time.sleep(_PAUSE_S)
                self.wfile.write(content)

        return Handler


def reset(connection: socket.socket) -> None:
    """Ends it as a host does on which nobody listens."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextmanager
def in_between(stack: LocalStack) -> Iterator[S3]:
    """From now on what pods newly open to the emulated AWS comes to this server; until the node is booted again."""
    cloud = stack.cloud
    assert cloud
    there = urlsplit(cloud.endpoint)
    s3 = S3(str(there.hostname), cloud.endpoint, stack.pulumi.output("adapterBucket"))
    s3.start()
    rule = ["PREROUTING", "--protocol", "tcp", "--destination", str(there.hostname), "--dport", str(there.port)]
    target = ["--jump", "DNAT", "--to-destination", f"{there.hostname}:{s3.port}"]
    node(stack).run("iptables", "--table", "nat", "--insert", *rule, *target)
    try:
        yield s3
    finally:
        with suppress(ProcessError):  # a node that was booted meanwhile has none
            node(stack).run("iptables", "--table", "nat", "--delete", *rule, *target)
        s3.stop()
