"""The body of a request about one model: as much of it as the gateway has to understand. The rest is vLLM's to judge."""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any, Self

from loraserve.gateway.doors import Door
from loraserve.gateway.errors import BadRequest

MAX_VALUES = 150_000
"""More than a prompt has tokens. Each costs 20 times the memory that it takes in the body, and time that all others wait."""
ASSUMED_TOKENS = 512
"""Of an answer whose length the request leaves to the model, until it is known."""
BYTES_PER_TOKEN = 4
"""Of a prompt, until vLLM has counted."""
_STRING = re.compile(rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+"?', re.DOTALL)
"""One without an end goes to the end of the body: looked for again from each quotation mark in it, it would take hours."""
_KEPT_BY_A_SERVER = ("previous_response_id", "conversation", "background")
"""Of /v1/responses: what only a server that stores responses could do."""
_LENGTHS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


@dataclass(frozen=True)
class Cost:
    """What a request takes of vLLM, as far as it says so itself."""

    sequences: int = 1
    """Generated side by side, each as heavy as a request of its own: `n` for every prompt."""
    tokens: int = 0
    """Read and written; an estimate."""


@dataclass(frozen=True)
class Completion:
    model: str
    """What the client calls it."""
    streams: bool
    user: str
    """The tenant's own user, where the request names one."""
    is_conversation: bool
    """Needs a chat template."""
    is_patient: bool
    """OpenAI's flex tier: it takes what interactive requests leave."""
    cost: Cost
    salt: str | None
    """The client's own, on top of its tenant's; in a form that vLLM takes."""
    hides_usage: bool
    """vLLM is asked to end the stream with its usage, which the client has not asked for."""
    rest: bytes
    """Everything but the model and the salt, as JSON's inside of an object."""

    @classmethod
    def parse(cls, body: bytes, door: Door, max_sequences: int) -> Self:
        """Raises BadRequest. Of repeated keys the last one counts, here and for vLLM: the body is written anew."""
        content = _object(body)
        model, streams, salt = content.pop("model", None), content.get("stream"), content.pop("cache_salt", None)
        user = content.get("user") or content.get("safety_identifier")
        if not isinstance(model, str) or not model:
            raise BadRequest("`model` must be the name of a model, such as one that /v1/models lists.", param="model")
        if salt is not None and (not isinstance(salt, str) or not salt):
            raise BadRequest("`cache_salt` must be a text that is not empty.", param="cache_salt")
        for field in _KEPT_BY_A_SERVER:
            if content.get(field):
                raise BadRequest(
                    f"`{field}` is not there: nothing is kept here, send the whole conversation.", param=field
                )
        hides_usage = door.tells_usage_if_asked and _ask_for_usage(content)
        cost = _cost(content, len(body)) if door.generates else Cost()
        if cost.sequences > max_sequences:
            raise BadRequest(
                f"This asks for {cost.sequences} sequences at once (`n` for every prompt), and {max_sequences} are the most: "
                "send several requests.",
                param="n",
            )
        return cls(
            model,
            streams=streams is True,
            user=user if isinstance(user, str) else "",
            is_conversation="messages" in content or "input" in content,
            is_patient=content.get("service_tier") == "flex",
            cost=cost,
            salt=salt and hashlib.sha256(salt.encode(errors="surrogatepass")).hexdigest()[:32],
            hides_usage=hides_usage,
            # A lone surrogate, which no encoding can write, stays the escape that it was.
            rest=json.dumps(content, ensure_ascii=False).encode(errors="backslashreplace")[1:-1],
        )

    @property
    def size(self) -> int:
        return len(self.rest)

    def payload(self, served: str, tenant: str | None) -> bytes:
        """The body for vLLM. With a tenant, no other one shares its prefix cache, and so nobody learns what it has sent."""
        own = {"model": served}
        if tenant is not None:
            own["cache_salt"] = tenant if self.salt is None else f"{tenant}:{self.salt}"
        ours = json.dumps(own)[:-1].encode()
        return b"%s, %s}" % (ours, self.rest) if self.rest else ours + b"}"


def _object(body: bytes) -> dict[str, Any]:
    try:
        if _values(body) > MAX_VALUES and _values(_STRING.sub(b"", body)) > MAX_VALUES:
            raise BadRequest(f"The body may hold {MAX_VALUES} values.")
        # As the bytes that were counted: from bytes alone json would guess another encoding, in which they mean something else.
        content = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body must be uncompressed JSON: {error}.") from None
    if not isinstance(content, dict):
        raise BadRequest("The body must be a JSON object.")
    return content


def _ask_for_usage(content: dict[str, Any]) -> bool:
    """Whether the client had not. What vLLM would refuse is left to it."""
    options = content.get("stream_options") or {}
    if not content.get("stream") or not isinstance(options, dict) or options.get("include_usage"):
        return False
    # Without usage at the end, vLLM puts none into the pieces either.
    content["stream_options"] = {**options, "include_usage": True, "continuous_usage_stats": False}
    return True


def _values(body: bytes) -> int:
    """How many there are at most."""
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _cost(content: dict[str, Any], size: int) -> Cost:
    prompts = sum(_prompts(content.get(field)) for field in ("prompt", "prompt_embeds"))
    sequences = max(1, prompts) * max(1, _number(content.get("n"), 1))
    given = [_number(content[field], ASSUMED_TOKENS) for field in _LENGTHS if content.get(field) is not None]
    return Cost(sequences, size // BYTES_PER_TOKEN + sequences * max(given, default=ASSUMED_TOKENS))


def _prompts(given: object) -> int:
    """A list is one prompt per entry, but for one of token ids."""
    if not isinstance(given, list):
        return 0 if given is None else 1
    return 1 if all(isinstance(entry, int) for entry in given) else len(given)


def _number(given: object, default: int) -> int:
    """What vLLM takes for a whole number: also 2.0 and "2"."""
    try:
        return int(float(given))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return default


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large")
    return number
