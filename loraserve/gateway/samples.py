"""Questions and answers of a model with a canary, as a share that their tenant has agreed to: into the bucket, never into a log.

No answer waits for it and none is kept whole where it is large; what is too much is lost, and counted.
"""

import asyncio
import hashlib
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from loraserve.catalog import samples
from loraserve.catalog.bucket import Bucket
from loraserve.contract.keys import Key
from loraserve.contract.samples import Sample
from loraserve.contract.served_name import ServedName
from loraserve.errors import LoraserveError
from loraserve.gateway.record import Record
from loraserve.gateway.seen import LARGEST_BYTES, Seen
from loraserve.log import event
from loraserve.monitoring.metrics import OK, SAMPLE_OUTCOMES

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 60.0
MOST_BYTES = 8 << 20
"""Of all that are being answered or wait to be written."""
WRITTEN, NOT_WRITTEN, TOO_LARGE, TOO_MANY = SAMPLE_OUTCOMES
_PATHS = ("/v1/chat/completions", "/v1/completions")
Count = Callable[[str, int], object]
"""Told an outcome, and of how many."""


class Samples:
    """Chosen and kept by the event loop; understood and written in threads."""

    def __init__(
        self,
        bucket: Bucket,
        process: str,
        versions: Callable[[], Mapping[str, Sequence[str]]],
        count: Count,
        chance: Callable[[], float] = random.random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`versions`: the declared ones of each model; `process` is no other's name, ever."""
        self._bucket, self._process = bucket, process
        self._versions, self._count, self._chance, self._now = versions, count, chance, now
        self._taken: list[tuple[Record, Seen]] = []
        self._bytes = 0
        self._sequence = 0

    def begin(self, key: Key, record: Record, question: bytes) -> Seen | None:
        """Whether this one is looked at; then it has to come back by `end`."""
        share = key.sample_percent
        # Who names a version was not assigned to it.
        if share is None or record.caller is None or record.path not in _PATHS or self._chance() * 100 >= share:
            return None
        if len(self._versions().get(record.model, ())) < 2:
            return None
        if self._bytes + LARGEST_BYTES > MOST_BYTES:
            self._count(TOO_MANY, 1)
            return None
        self._bytes += LARGEST_BYTES  # until it is known how much it is
        return Seen(question, size=len(question))

    def end(self, record: Record) -> None:
        """The request is over."""
        if (seen := record.seen) is None:
            return
        record.seen = None
        self._bytes -= LARGEST_BYTES
        version = ServedName(record.served).version if record.served else None
        if record.outcome != OK or version not in self._versions().get(record.model, ()):
            return
        if not seen.pieces:
            self._count(TOO_LARGE, 1)
            return
        self._bytes += seen.size
        self._taken.append((record, seen))

    async def follow(self) -> None:
        """Writes, for ever."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            await self.write()

    async def write(self) -> None:
        """What has been answered since the last time; what cannot be written is lost."""
        taken, self._taken = self._taken, []
        if not taken:
            return
        self._sequence += 1
        written = 0
        try:
            written = await asyncio.to_thread(self._write, taken, self._sequence)
        except LoraserveError as error:
            log.error(event("samples cannot be written", problem=error))
        finally:
            self._bytes -= sum(seen.size for _, seen in taken)
        self._count(WRITTEN, written)
        self._count(NOT_WRITTEN, len(taken) - written)

    def _write(self, taken: Sequence[tuple[Record, Seen]], sequence: int) -> int:
        """How many were understood."""
        lines = [line for record, seen in taken if (line := _line(record, seen))]
        if lines:
            samples.write(self._bucket, self._now().date(), self._process, sequence, lines)
        return len(lines)


def _line(record: Record, seen: Seen) -> str | None:
    """As it is written; None where question or answer have a form of their own, such as one nested a thousand deep."""
    try:
        asked = json.loads(b"{" + seen.question + b"}")
        answer, reason = _answer(b"".join(seen.pieces))
        return Sample(
            tenant=record.tenant or "",
            caller=hashlib.sha256((record.caller or "").encode(errors="surrogatepass")).hexdigest()[:16],
            model=record.model,
            version=ServedName(record.served or "").version or "",
            # As text, in which a lone surrogate is an escape.
            question=json.dumps(asked.get("messages", asked.get("prompt"))),
            answer=answer.encode(errors="replace").decode(),
            finish_reason=reason,
        ).to_line()
    except (ValueError, RecursionError, TypeError, AttributeError):
        return None


def _answer(body: bytes) -> tuple[str, str | None]:
    """The first sequence's text and why it ended, of an answer that is whole or a stream."""
    if body.startswith(b"{"):
        parts = [json.loads(body)]
    else:
        events = (line.removeprefix(b"data:").strip() for line in body.split(b"\n") if line.startswith(b"data:"))
        parts = [json.loads(each) for each in events if each.startswith(b"{")]
    choices = [choice for part in parts for choice in part.get("choices") or () if not choice.get("index")]
    reasons = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    return "".join(map(_text, choices)), reasons[-1] if reasons else None


def _text(choice: Mapping[str, Any]) -> str:
    message = choice.get("message") or choice.get("delta") or choice
    return message.get("content") or message.get("text") or ""
