"""What each tenant has used, kept in the bucket beyond this process, and the budgets that are measured by it."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from loraserve.catalog import usage
from loraserve.catalog.bucket import Bucket
from loraserve.contract.keys import Key
from loraserve.contract.served_name import ServedName
from loraserve.contract.usage import Used
from loraserve.errors import LoraserveError
from loraserve.gateway.errors import BudgetSpent
from loraserve.gateway.metrics import BASE
from loraserve.gateway.record import Record
from loraserve.log import event
from loraserve.monitoring.metrics import OK

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 120.0
"""So much is lost at most when this process is killed, and others' use is known so late twice over: once written, once read."""
_LATE_WRITERS = timedelta(hours=1)
"""After midnight: by then every process has written what it counted the day before."""


@dataclass
class _Count:
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Ledger:
    """Counted by the event loop; S3 is written and read in threads."""

    def __init__(
        self,
        bucket: Bucket,
        process: str,
        has_budgets: Callable[[], bool],
        tell_unwritten: Callable[[bool], object] = lambda _: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`process` is no other's name, ever: also not of the one before in the same pod."""
        self._bucket = bucket
        self._process = process
        self._has_budgets = has_budgets
        self._tell_unwritten = tell_unwritten
        self._now = now
        self._days: dict[date, dict[tuple[str, str, str], _Count]] = {}
        """By tenant, model, version; until it is written and over."""
        self._own = _Month()
        self._unwritten: set[date] = set()
        self._sequence = 0
        self._others = _Others(bucket, process)

    def count(self, record: Record) -> None:
        """A request that vLLM has answered, or was answering when it ended."""
        if not (record.tenant and record.served and (record.outcome == OK or record.completion_tokens)):
            return
        day = self._now().date()
        version = ServedName(record.served).version or BASE
        count = self._days.setdefault(day, {}).setdefault((record.tenant, record.model, version), _Count())
        prompt, completion = record.prompt_tokens or 0, record.completion_tokens or 0
        count.requests += 1
        count.prompt_tokens += prompt
        count.completion_tokens += completion
        self._own.of(day)[record.tenant] += prompt + completion
        self._unwritten.add(day)

    def check(self, key: Key) -> None:
        """Raises BudgetSpent. Until others' use was read for the first time, this process' own counts alone."""
        if key.tokens_per_month is None:
            return
        today = self._now().date()
        spent = self._own.of(today)[key.tenant] + self._others.spent.of(today)[key.tenant]
        if spent >= key.tokens_per_month:
            raise BudgetSpent(key.tokens_per_month, spent, renewed=usage.days_of(today)[-1] + timedelta(days=1))

    async def follow(self) -> None:
        """Writes and reads, for ever."""
        while True:
            if self._has_budgets():
                await self._try("read", self._others.refresh, self._now())
            await asyncio.sleep(INTERVAL_SECONDS)
            await self.write()

    async def write(self) -> None:
        """What was counted since the last time; what cannot be written is, with more, the next time."""
        failed: set[date] = set()
        for day in sorted(self._unwritten):
            counted = [(*key, vars(count).copy()) for key, count in self._days[day].items()]
            # Made into documents in the thread: requests go on meanwhile.
            used = (
                Used(tenant=tenant, model=model, version=version, **counts)
                for tenant, model, version, counts in counted
            )
            self._sequence += 1
            self._unwritten.discard(day)
            written = False
            try:
                written = await self._try("write", usage.write, self._bucket, day, self._process, self._sequence, used)
            finally:
                if not written:
                    self._unwritten.add(day)
                    failed.add(day)
        self._tell_unwritten(bool(failed))
        today = self._now().date()
        for day in [day for day in self._days if day < today and day not in self._unwritten]:
            del self._days[day]

    async def _try(self, what: str, action: Callable[..., object], *arguments: object) -> bool:
        try:
            await asyncio.to_thread(action, *arguments)
        except LoraserveError as error:
            log.error(event(f"usage cannot be {'read' if what == 'read' else 'written'}", problem=error))
            return False
        return True


class _Others:
    """What other processes have used this month, this one's predecessors among them."""

    def __init__(self, bucket: Bucket, process: str) -> None:
        self._bucket = bucket
        self._process = process
        self.spent = _Month()
        self._read: dict[date, dict[str, Counter[str]]] = {}
        """Tokens by tenant, by the key that they were read from; by day."""
        self._closed: set[date] = set()
        """Days to which nobody adds any more."""

    def refresh(self, now: datetime) -> None:
        """Reads what is new. Raises CatalogUnavailable, ObjectMissing, InvalidUsage."""
        today, spent = now.date(), _Month()
        for day in usage.days_of(today):
            if day <= today and day not in self._closed:
                self._refresh_day(day)
            if day < (now - _LATE_WRITERS).date():
                self._closed.add(day)
            for counted in self._read.get(day, {}).values():
                spent.of(today).update(counted)
        self.spent = spent
        for old in [day for day in self._read if not _same_month(day, today)]:
            del self._read[old]

    def _refresh_day(self, day: date) -> None:
        before = self._read.get(day, {})
        keys = usage.last_of_each_process(self._bucket, day)
        self._read[day] = {
            key: before.get(key) or _tokens(usage.read(self._bucket, key))
            for process, key in keys.items()
            if process != self._process
        }


class _Month:
    """Tokens by tenant, in one month."""

    def __init__(self) -> None:
        self._day = date.min
        self._tokens: Counter[str] = Counter()

    def of(self, day: date) -> Counter[str]:
        """The month that this day lies in; those before are forgotten."""
        if not _same_month(day, self._day):
            self._day, self._tokens = day, Counter()
        return self._tokens


def _tokens(used: Iterable[Used]) -> Counter[str]:
    """By tenant."""
    found: Counter[str] = Counter()
    for one in used:
        found[one.tenant] += one.tokens
    return found


def process_name(pod: str) -> str:
    """Unique over restarts of the pod's container."""
    return f"{pod}-{time.time_ns() // 1_000_000}"


def _same_month(one: date, other: date) -> bool:
    return (one.year, one.month) == (other.year, other.month)
