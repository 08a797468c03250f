"""A limit on what a day may cost: once its hours are used up, nothing wakes the model any more; what runs goes on."""

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta

from loraserve.gateway.errors import HoursSpent
from loraserve.gateway.pods import Pods


class Brake:
    """Counts, per day in UTC, how long pods of vLLM are there, as far as this replica has seen.

    `observe` must be called whenever pods come or go. No `hours`: no limit.
    """

    def __init__(
        self, pods: Pods, hours: float | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._pods = pods
        self._limit = None if hours is None else timedelta(hours=hours)
        self._now = now
        self._at = now()
        self._count = 0
        self._used = timedelta()

    def observe(self) -> None:
        """Counts up to now."""
        now = self._now()
        if now.date() != self._at.date():
            self._at, self._used = _midnight(now), timedelta()
        self._used += (now - self._at) * self._count
        self._at, self._count = now, len(self._pods.all)

    def check(self) -> None:
        """Raises HoursSpent where a request would wake the model, and today's hours are used up."""
        if self._limit is None or self._pods.all:
            return
        self.observe()
        if self._used >= self._limit:
            tomorrow = _midnight(self._at) + timedelta(days=1)
            raise HoursSpent(self._limit, tomorrow, retry_after=(tomorrow - self._at).total_seconds())


def _midnight(moment: datetime) -> datetime:
    return datetime.combine(moment.date(), time(), moment.tzinfo)
