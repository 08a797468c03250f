"""Which of vLLM's pages are open."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Door:
    """A page that vLLM answers; the request's body names its model."""

    path: str
    generates: bool = True
    """Costs sequences and tokens, and fills the prefix cache."""


DOORS = (
    Door("/v1/completions"),
    Door("/v1/chat/completions"),
    Door("/v1/responses"),
    Door("/tokenize", generates=False),
    Door("/detokenize", generates=False),
)
