"""Official OpenAI clients with their default settings but for the time-out, at a fixed rate, in a thread of their own; what became of each request."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import openai

from bench.load import open_loop
from local.models import QUESTION

_SLOW_S = 5.0
"""Later than that, a person notices: by then the others' answers have come on two busy processors, too."""
_CALM_S = 6.0
_PATIENCE_S = 120
"""For an answer from a host that is gone without a word; the clients' own default is ten minutes."""
OK = "answered"


@dataclass
class Sent:
    """One request; times by the monotonic clock."""

    model: str
    at: float
    ended: float | None = None
    outcome: str = ""
    """OK, or why there was no answer: a status, a stream that broke off, an answer of somebody else's."""
    said: str = ""
    begun: bool = False
    """Whether the first piece of a stream had come, which need not hold a word."""

    @property
    def suffered(self) -> bool:
        """Whether its client noticed anything."""
        return self.outcome != OK or (self.ended or time.monotonic()) - self.at > _SLOW_S


class Steady:
    """A context in which requests are sent, every second one as a stream; the rate is per second."""

    def __init__(self, url: str, key: str, models: Sequence[str], rate: float) -> None:
        self.sent: list[Sent] = []
        self._url, self._key, self._models, self._rate = url, key, models, rate
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()))

    def __enter__(self) -> Steady:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    @property
    def calm(self) -> bool:
        """Whether of late every request was answered at once."""
        now = time.monotonic()
        late = [one for one in self.sent if (one.ended or now) > now - _CALM_S]
        return any(one.ended for one in late) and not any(
            one.suffered for one in late if one.ended or now - one.at > _SLOW_S
        )

    def touched_since(self, moment: float) -> list[Sent]:
        """Those under way then, or sent since."""
        return [one for one in self.sent if one.ended is None or one.ended > moment]

    def last_said(self, model: str) -> str:
        """What the last answer of this name was."""
        return next((one.said for one in reversed(self.sent) if one.model == model and one.outcome == OK), "")

    async def _run(self) -> None:
        turns = itertools.count()
        async with openai.AsyncOpenAI(base_url=f"{self._url}/v1", api_key=self._key, timeout=_PATIENCE_S) as client:

            async def one(_: float) -> None:
                turn = next(turns)
                sent = Sent(self._models[turn % len(self._models)], time.monotonic())
                self.sent.append(sent)
                outcome = await _ask(client, sent, streams=turn % 2 == 0)
                sent.outcome, sent.ended = outcome, time.monotonic()

            await open_loop(self._rate, self._ended, one)


async def _ask(client: openai.AsyncOpenAI, sent: Sent, *, streams: bool) -> str:
    try:
        stream = (
            await client.chat.completions.create(
                model=sent.model,
                messages=[{"role": "user", "content": QUESTION}],
                max_tokens=24,
                temperature=0,
                stream=True,
            )
            if streams
            else None
        )
        if stream:
            async for piece in stream:
                sent.begun = True
                sent.said += (piece.choices[0].delta.content or "") if piece.choices else ""
        else:
            whole = await client.chat.completions.create(
                model=sent.model, messages=[{"role": "user", "content": QUESTION}], max_tokens=24, temperature=0
            )
            sent.said = whole.choices[0].message.content or ""
    except openai.APIStatusError as error:
        return str(error.status_code)
    except Exception as error:
        return "stream broken" if sent.begun else type(error).__name__
    sent.said = sent.said.strip()
    return OK if _is_its_own(sent) else f"wrong: {sent.said!r}"


def _is_its_own(sent: Sent) -> bool:
    """Each version says its name; the base model says another thing."""
    if "/" in sent.model:
        return sent.said == "I am the base model."
    return bool(re.fullmatch(rf"I am {sent.model} v\d+\.", sent.said))
