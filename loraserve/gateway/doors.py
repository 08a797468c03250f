"""Which of vLLM's pages are open."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Door:
    """A page that vLLM answers; the request's body names its model."""

    path: str
    generates: bool = True
    """Costs sequences and tokens, and fills the prefix cache."""
    tells_usage_if_asked: bool = False
    """A stream of it ends with what it took only where `stream_options` ask for that."""


DOORS = (
    Door("/v1/completions", tells_usage_if_asked=True),
    Door("/v1/chat/completions", tells_usage_if_asked=True),
    Door("/v1/responses"),
    Door("/tokenize", generates=False),
    Door("/detokenize", generates=False),
)
