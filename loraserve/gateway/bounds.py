"""What one replica of the gateway takes on itself. Nobody sets these: they follow from its memory and from HTTP."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    body_bytes: int = 4 << 20
    body_seconds: float = 30
    """A request's body arrives within it."""
    idle_seconds: float = 30
    """A connection without a request, or whose request's headers are not complete, is closed."""
    waiting: int = 1000
    """Requests that are held at once."""
    waiting_bytes: int = 64 << 20
    cold_start_seconds: float = 450
    """How long a start from zero takes, until this replica has seen one."""
