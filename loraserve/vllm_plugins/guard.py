"""What vLLM answers to whom: an ASGI middleware that runs inside vLLM (`--middleware`), so it imports nothing of ours.

vLLM's API key guards paths below /v1 only. Anybody who reaches its port could load an adapter through /adapters, or
generate through /invocations. From outside the pod only the routes named here exist; the agent, which shares the pod's
network, reaches all of them.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_ROUTES = frozenset(
    {
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/responses"),
    }
)
OPEN_WITH_KEY = frozenset({("POST", "/tokenize"), ("POST", "/detokenize")})
"""Not below /v1, so vLLM itself asks no key for them."""
_log = logging.getLogger("vllm.loraserve")
"""Below vLLM's own, which has a handler."""
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Guard:
    """Answers 404 to every call from another address that is not one of these routes."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _is_local(scope) or _is_open(scope):
            _log_request(scope)
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _not_found(scope["path"], send)


def _log_request(scope: Message) -> None:
    """By the id that the gateway's log has too; vLLM's own access log has none."""
    if scope["type"] == "http" and scope["method"] == "POST":
        request_id = dict(scope["headers"]).get(b"x-request-id", b"")
        if _REQUEST_ID.fullmatch(request_id):
            _log.info("request path=%s request_id=%s", scope["path"], request_id.decode())


def _is_local(scope: Message) -> bool:
    """Whether the caller shares the pod's network; an unknown caller does not."""
    address = (scope.get("client") or ("",))[0]
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _is_open(scope: Message) -> bool:
    if scope["type"] != "http":
        return False
    route = (scope["method"], scope["path"])
    return route in OPEN_ROUTES or (route in OPEN_WITH_KEY and _has_key(scope))


def _has_key(scope: Message) -> bool:
    expected = f"Bearer {os.environ['VLLM_API_KEY']}".encode()
    return hmac.compare_digest(dict(scope["headers"]).get(b"authorization", b""), expected)


async def _not_found(path: str, send: Send) -> None:
    error = {"message": f"{path} is not served here", "type": "NotFoundError", "param": None, "code": 404}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})
