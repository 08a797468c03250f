"""The body of a request about one model: as much of it as the gateway has to understand. The rest is vLLM's to judge."""

import json
import math
from dataclasses import dataclass
from typing import Self

from loraserve.gateway.errors import BadRequest

_KEPT_BY_A_SERVER = ("previous_response_id", "conversation", "background")
"""Of /v1/responses: what only a server that stores responses could do."""


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
    rest: bytes
    """Everything but the model, as JSON's inside of an object."""

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises BadRequest. Of repeated keys the last one counts, here and for vLLM: the body is written anew."""
        try:
            content = json.loads(body, parse_constant=_refuse, parse_float=_finite)
            if not isinstance(content, dict):
                raise BadRequest("The body must be a JSON object.")
            model, streams = content.pop("model", None), content.get("stream")
            user = content.get("user") or content.get("safety_identifier")
            rest = json.dumps(content)[1:-1].encode()
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"The body must be uncompressed JSON: {error}.") from None
        if not isinstance(model, str) or not model:
            raise BadRequest("`model` must be the name of a model, such as one that /v1/models lists.", param="model")
        for field in _KEPT_BY_A_SERVER:
            if content.get(field):
                raise BadRequest(
                    f"`{field}` is not there: nothing is kept here, send the whole conversation.", param=field
                )
        return cls(
            model,
            streams=streams is True,
            user=user if isinstance(user, str) else "",
            is_conversation="messages" in content or "input" in content,
            is_patient=content.get("service_tier") == "flex",
            rest=rest,
        )

    @property
    def size(self) -> int:
        return len(self.rest)

    def payload(self, served: str) -> bytes:
        """The body for vLLM."""
        model = f'{{"model": {json.dumps(served)}'.encode()
        return b"%s, %s}" % (model, self.rest) if self.rest else model + b"}"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large")
    return number
