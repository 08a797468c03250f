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
    times: DrainTimes
    backoff: Backoff = field(default_factory=Backoff)

    def observe(self, last_used: float | None, now: float, *, is_known: bool) -> None:
        """While its uses are not known, it may be in use."""
        if last_used != self.last_used or not is_known:
            self.last_used, self.quiet_since = last_used, now

    def is_over(self, now: float) -> bool:
        quiet, whole = now - self.quiet_since, now - self.began_at
        is_late = quiet >= self.times.quiet_seconds or whole >= self.times.longest_seconds
        return is_late and now >= self.backoff.due_at
