"""The HTTP client's side: connections to vLLM and to the agents."""

import functools

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError

_CONNECT_SECONDS = 2.0
_IDLE_SECONDS = 4.0
"""Shorter than vLLM's own 5, or a request would meet a connection that is just being closed."""
BROKEN = (aiohttp.ClientError, HttpProcessingError)
"""What aiohttp raises where an answer, or the connection, is not what it should be."""


def session(stall_seconds: float) -> aiohttp.ClientSession:
    """`stall_seconds` may pass between two pieces of an answer."""
    return aiohttp.ClientSession(
        connector=_Connector(limit=0, keepalive_timeout=_IDLE_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent",),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=stall_seconds),
    )


class _Connection(ResponseHandler):
    """Who reads an answer is told of a bad chunk in it: aiohttp's own class lets them wait for ever."""

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        super().set_exception(exc, exc_cause or exc)
        if self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(aiohttp.ClientPayloadError("the answer broke off"), exc)


class _Connector(aiohttp.TCPConnector):
    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._factory = functools.partial(_Connection, loop=self._loop)
