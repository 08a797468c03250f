"""How a version leaves vLLM: nobody is sent to it any more, and those who still come are served for a while."""

from dataclasses import dataclass, field

from loraserve.agent.backoff import Backoff


@dataclass(frozen=True)
class DrainTimes:
    quiet_seconds: float = 30.0
    """Since its last use; longer than a router takes to hear of the new version."""
    longest_seconds: float = 600.0
    """However busy it is: unloading refuses new requests and leaves running ones alone."""


@dataclass
class Drain:
    """One loaded version on its way out."""

    began_at: float
    quiet_since: float
    last_used: float | None
    backoff: Backoff = field(default_factory=Backoff)

    def observe(self, last_used: float | None, now: float) -> None:
        if last_used != self.last_used:
            self.last_used, self.quiet_since = last_used, now

    def is_over(self, times: DrainTimes, now: float) -> bool:
        quiet, whole = now - self.quiet_since, now - self.began_at
        return now >= self.backoff.due_at and (quiet >= times.quiet_seconds or whole >= times.longest_seconds)
