"""The HTTP server's side: clients' connections, bounded, and the answer where what came is no request.

aiohttp's own answer to that shows the line it stumbled over, which may hold a key, in the log and to the client.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.http import HttpProcessingError, HttpRequestParser
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD

from loraserve.contract.environment import InvalidEnvironment
from loraserve.gateway.bounds import Bounds
from loraserve.gateway.errors import ApiError, BadRequest, HeadTooLarge
from loraserve.log import event

log = logging.getLogger(__name__)

_ACCEPTED_AT_ONCE = 64
_BACKLOG = 1024
_PAUSE_SECONDS = 0.1
_IDLE_SECONDS = 1.0
_LINGER_SECONDS = 2.0
_FIELD_BYTES = 8190
_READ_BYTES = 1 << 16
_CONTINUE = "100-continue"

Refuse = Callable[[ApiError], web.Response]
"""Answers, and accounts for, what never became a request."""


class Clients:
    """The open connections of one API, on all its ports."""

    def __init__(self, server: web.Server, refuse: Refuse, bounds: Bounds) -> None:
        self._server = server
        self._refuse = refuse
        self._bounds = bounds
        self._listening: list[socket.socket] = []
        self._open: dict[Connection, asyncio.Task[None]] = {}
        """And how each began; the oldest is the first."""

    def listen(self, port: int, tls: ssl.SSLContext | None = None, *, idle_seconds: float | None = None) -> int:
        """The port; 0 takes a free one. Its connections may be idle as the bounds say, or else. Raises InvalidEnvironment."""
        listening = socket.socket()
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("0.0.0.0", port))
            listening.listen(_BACKLOG)
        except OSError as error:
            listening.close()
            raise InvalidEnvironment(f"cannot listen on port {port}: {error.strerror}") from None
        self._listening.append(listening)
        asyncio.get_running_loop().add_reader(
            listening, self._accept, listening, tls, idle_seconds or self._bounds.idle_seconds
        )
        return listening.getsockname()[1]

    def stop_listening(self) -> None:
        for listening in self._listening:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        self._listening.clear()

    def forget(self, connection: "Connection") -> None:
        """It has ended."""
        self._open.pop(connection, None)

    def _accept(self, listening: socket.socket, tls: ssl.SSLContext | None, idle_seconds: float) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            if len(self._open) >= self._bounds.connections and not self._make_room():
                self._pause(listening, tls, idle_seconds)
                return
            try:
                client, _ = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            client.setblocking(False)
            connection = Connection(self._server, self._refuse, self._bounds, idle_seconds, self.forget)
            self._open[connection] = asyncio.create_task(self._begin(connection, client, tls))
        if tls:  # uvloop would answer a thousand handshakes in one go, which is a second for everybody else
            self._pause(listening, tls, idle_seconds)

    def _pause(self, listening: socket.socket, tls: ssl.SSLContext | None, idle_seconds: float) -> None:
        """Who comes now waits in the kernel."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)

        def go_on() -> None:
            if listening in self._listening:
                loop.add_reader(listening, self._accept, listening, tls, idle_seconds)

        loop.call_later(_PAUSE_SECONDS, go_on)

    async def _begin(self, connection: "Connection", client: socket.socket, tls: ssl.SSLContext | None) -> None:
        timeout = self._bounds.handshake_seconds if tls else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, client, ssl=tls, ssl_handshake_timeout=timeout
            )
        except (OSError, asyncio.CancelledError):  # no TLS, none in time, or it had to make room
            self.forget(connection)

    def _make_room(self) -> bool:
        """Closes the oldest connection that asks for nothing."""
        idle = next((connection for connection in self._open if connection.idle), None)
        if idle is None:
            return False
        self._open[idle].cancel()  # where its handshake is under way
        idle.drop()
        self.forget(idle)
        return True


class Connection(web.RequestHandler):
    """One client's connection."""

    def __init__(
        self,
        server: web.Server,
        refuse: Refuse,
        bounds: Bounds,
        idle_seconds: float,
        ended: Callable[["Connection"], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=idle_seconds,
            lingering_time=_LINGER_SECONDS,
        )
        self._refuse = refuse
        self._ended = ended
        self._taken = loop.time()
        self._answer_seconds = bounds.answer_seconds
        self._answered: float | None = None
        """Since when a whole answer waits for the client to take it."""
        self._parser = _Parser(self, loop, bounds.head_bytes)
        # A client that asks before it has its answer gets no more than one request into memory.
        self._max_msg_queue_size, self._msg_queue_resume_size = 1, 0

    @property
    def idle(self) -> bool:
        """Whether it has asked for nothing for a while, or not taken its answer. One only just taken has not been read yet."""
        if self._request_in_progress or self._messages:
            since = self._answered
        else:
            since = max(self._taken, self._next_keepalive_close_time - self._keepalive_timeout)
        return since is not None and self._loop.time() - since > _IDLE_SECONDS

    @property
    def is_paused(self) -> bool:
        """Whether what came is kept until a body that came before it was read."""
        return self._reading_paused

    def drop(self) -> None:
        """Ends it at once. Closed, it would stay open until the client has taken what was sent, for ever where it takes nothing."""
        transport = self.transport
        self.force_close()
        if transport:
            transport.abort()

    async def start(self) -> None:
        await super().start()
        if (transport := self.transport) and transport.get_write_buffer_size():
            self._loop.call_later(self._answer_seconds, transport.abort)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """With a bound on how long the client may take for it."""
        self._answered = self._loop.time()
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            self.drop()
            return resp, True
        finally:
            self._answered = None

    def _process_keepalive(self) -> None:
        transport = self.transport
        super()._process_keepalive()
        if transport and self.transport is None:
            transport.abort()

    async def _handle_request(
        self, request: web.BaseRequest, start_time: float | None, request_handler: Any
    ) -> tuple[web.StreamResponse, bool]:
        """What a client expects is looked at here: aiohttp's own refusal repeats it, before there is a record."""
        if request.headers.get("Expect", _CONTINUE).lower() != _CONTINUE:
            request_handler = self._refuse_expectation
        return await super()._handle_request(request, start_time, request_handler)

    async def _refuse_expectation(self, _: web.BaseRequest) -> web.StreamResponse:
        return self._refuse(BadRequest(f"There is nothing to expect here but {_CONTINUE}."))

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._ended(self)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What did not become a request; or the client is gone, which needs no answer."""
        if isinstance(exc, ConnectionError):
            raise exc
        if isinstance(exc, HttpProcessingError):
            problem = HeadTooLarge() if isinstance(exc, LineTooLong) else BadRequest("This is no valid HTTP request.")
        else:
            problem = ApiError("The gateway failed; its log says why.")
            self.log_exception("", exc_info=exc)
        answer = self._refuse(problem)
        answer.force_close()
        return answer

    def log_exception(self, *_: Any, exc_info: BaseException | None = None, **__: Any) -> None:
        """Without the text of the exception: it may quote what the client sent."""
        log.error(event("a request failed", problem=type(exc_info).__name__))


class _Parser:
    """aiohttp's, with a bound on a request's head as a whole, and on what may follow its body: its own are per field."""

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop, head_bytes: int) -> None:
        self._parser = HttpRequestParser(
            connection,
            loop,
            _READ_BYTES,
            max_line_size=_FIELD_BYTES,
            max_field_size=_FIELD_BYTES,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=1,
        )
        self._connection = connection
        self._head_bytes = head_bytes
        self._received = 0
        """Bytes that brought neither a complete head nor anything of a body."""
        self._body: StreamReader = EMPTY_PAYLOAD
        self._is_broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> Any:
        """In pieces of what is bounded: the event loop reads sixteen times as much at once."""
        found: tuple[Any, ...] = ()
        while True:
            piece, data = data[: self._head_bytes], data[self._head_bytes :]
            messages, upgraded, tail = self._feed(piece)
            found = (*found, *messages)
            if upgraded or not data:
                return found, upgraded, tail + data

    def _feed(self, data: bytes) -> Any:
        if self._is_broken and data:
            raise BadHttpMessage("what follows a badly framed body is no request")
        known = self._body.total_bytes
        try:
            messages, upgraded, tail = self._parser.feed_data(data)
        except HttpProcessingError:
            if self._body.is_eof():
                raise
            return self._break_body()
        if messages:
            message, self._body = messages[-1]
            size, self._received = sum(len(name) + len(value) for name, value in message.raw_headers), 0
        elif self._body.total_bytes > known or self._connection.is_paused:
            size = self._received = 0
        else:
            size = self._received = self._received + len(data)
        if size > self._head_bytes:
            if not messages and not self._body.is_eof():
                return self._break_body()
            raise LineTooLong("", self._head_bytes)
        return messages, upgraded, tail

    def _break_body(self) -> Any:
        """The request is being answered: its handler is told, where aiohttp would let it wait for the rest of the body."""
        self._is_broken = True
        self._body.set_exception(web.RequestPayloadError())
        self._body.feed_eof()
        return (), False, b""
