"""What one replica of the gateway takes on itself. Nobody sets these: they follow from its memory and from HTTP."""

from dataclasses import dataclass

from loraserve.planning.cold_start import FROM_ZERO

TENANT_SHARE = 0.5
"""Of what is bounded in all, that one tenant may fill."""


@dataclass(frozen=True)
class Bounds:
    body_bytes: int = 4 << 20
    body_seconds: float = 30
    """A request's body arrives within it."""
    idle_seconds: float = 30
    """A connection without a request, or whose request's headers are not complete, is closed."""
    answer_seconds: float = 30
    """A client takes a whole answer within it; of a stream or a large answer it takes one piece as the settings say."""
    connections: int = 2048
    """With TLS handshakes; where there are more, the oldest one that asks for nothing, or does not take its answer, makes room,
    or new ones wait."""
    head_bytes: int = 16 << 10
    """A request's line and headers; and likewise what may follow its body."""
    handshake_seconds: float = 10
    waiting: int = 1000
    """Requests that are held at once."""
    waiting_bytes: int = 32 << 20
    """Of their bodies."""
    in_flight: int = 2048
    """Requests that are worked on at once, those whose bodies have not come included; half for one tenant. Each has a connection."""
    in_flight_bytes: int = 64 << 20
    """Of all requests' bodies, those that run included; half of it for one tenant. Each takes up to four times its size."""
    sequences: int = 64
    """That one request may generate side by side."""
    load_seconds: float = 60
    """A request waits so long for an adapter that is loaded for it, on a pod that is there."""
    cold_start_seconds: float = FROM_ZERO.middle
    """How long a start from zero takes, until this replica has seen one."""
