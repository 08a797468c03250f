"""`loraserve ask`: one question to one model, as an application would ask it."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from loraserve.errors import LoraserveError
from loraserve.planning.cold_start import PATIENCE_SECONDS

ANSWER_SECONDS = PATIENCE_SECONDS
"""Without a byte; a sleeping model is woken first."""


class NoAnswer(LoraserveError):
    """The gateway refused the question, or could not be reached; the message is its own."""


def ask(url: str, key: str, model: str, prompt: str) -> Iterator[str]:
    """The pieces of the answer as they come; `url` ends in /v1. Raises NoAnswer."""
    try:
        with _post(url, key, _body(model, prompt) | {"stream": True}) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    yield _piece(json.loads(line.removeprefix(b"data: ")))
    except (OSError, http.client.HTTPException) as error:
        raise _lost(error) from None


def ask_whole(url: str, key: str, model: str, prompt: str) -> dict[str, Any]:
    """The whole answer, as the API has it. Raises NoAnswer."""
    try:
        with _post(url, key, _body(model, prompt)) as answer:
            return json.load(answer)
    except (OSError, http.client.HTTPException) as error:
        raise _lost(error) from None


def _body(model: str, prompt: str) -> dict[str, Any]:
    """Asks for the likeliest answer, so that the same question has the same one."""
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}


def _post(url: str, key: str, body: dict[str, Any]) -> Any:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
    # A port of this machine is no business of a proxy.
    handlers = [urllib.request.ProxyHandler({})] if request.host.startswith(("127.0.0.1", "localhost")) else []
    return urllib.request.build_opener(*handlers).open(request, timeout=ANSWER_SECONDS)


def _piece(event: dict[str, Any]) -> str:
    if "error" in event:
        raise NoAnswer(event["error"]["message"])
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


def _lost(error: Exception) -> NoAnswer:
    if not isinstance(error, urllib.error.HTTPError):
        reason = getattr(error, "reason", None) or error
        return NoAnswer(f"the gateway did not answer ({str(reason) or type(error).__name__}); try again")
    content = error.read()
    try:
        return NoAnswer(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return NoAnswer(f"something that is no gateway answered {error.code}; check the URL, which ends in /v1")
