"""Brings what a start of vLLM compiles to its cache volume before it starts: a minute and a half sooner, never a condition."""

import logging
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from loraserve.catalog import start_cache
from loraserve.catalog.bucket import Bucket, DigestMismatch
from loraserve.catalog.files import UnsafeFile
from loraserve.contract.desired_state import DesiredState
from loraserve.errors import LoraserveError
from loraserve.log import event

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 30.0
"""A fifth of what a start without it takes longer."""
_LOOK_SECONDS = 0.2


class CacheUse(StrEnum):
    NONE = "none"
    """The stack has none."""
    FETCHING = "fetching"
    HIT = "hit"
    """vLLM has compiled nothing besides it (yet)."""
    MISS = "miss"
    """vLLM has compiled its own all the same."""
    OTHER = "other"
    """It was made for other flags, another image or GPU."""
    REFUSED = "refused"
    """Its bytes are not those that the stack names: somebody has to look."""
    UNAVAILABLE = "unavailable"
    """It did not come in time."""


class StartCaches:
    """`cache` is vLLM's own volume; None: nothing is brought there. `version` is what this pod's vLLM will compile."""

    def __init__(
        self,
        cache: Path | None,
        version: str | None,
        desired: Callable[[], DesiredState | None],
        bucket: Callable[[str, str | None], Bucket] = Bucket,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._version = version
        self._desired = desired
        self._bucket = bucket
        self._clock = clock
        self._outcome = CacheUse.NONE
        self.thread: threading.Thread | None = None
        # A container that is started again finds the volume as its vLLM, which may be running, has left it.
        if cache and version and start_cache.is_fresh(cache):
            self._outcome = CacheUse.FETCHING
            self.thread = threading.Thread(target=self._run, args=(cache, version), name="start-cache", daemon=True)
            self.thread.start()

    @property
    def obstacle(self) -> str | None:
        """Why vLLM shall wait a little; None if it may start."""
        return "the start cache is being fetched" if self._outcome is CacheUse.FETCHING else None

    @property
    def use(self) -> CacheUse:
        """Looks at the volume: a miss is what vLLM has added there."""
        known = start_cache.unpacked(self._cache) if self._cache else None
        if self._cache is None or known is None:
            return self._outcome
        return CacheUse.MISS if set(start_cache.compiled(self._cache)) - known else CacheUse.HIT

    def _run(self, cache: Path, version: str) -> None:
        ends = self._clock() + PATIENCE_SECONDS
        try:
            self._outcome = self._bring(cache, version, lambda: self._clock() > ends)
        except (DigestMismatch, UnsafeFile) as error:
            self._give_up(CacheUse.REFUSED, error)
        except (LoraserveError, OSError) as error:
            self._give_up(CacheUse.UNAVAILABLE, error)
        except Exception as error:
            log.exception(event("start cache not fetched"))
            self._give_up(CacheUse.UNAVAILABLE, error)

    def _bring(self, cache: Path, version: str, late: Callable[[], bool]) -> CacheUse:
        while (desired := self._desired()) is None:
            if late():
                return CacheUse.UNAVAILABLE
            time.sleep(_LOOK_SECONDS)
        wanted = desired.start_cache
        if not wanted:
            return CacheUse.NONE
        if wanted.version != version:
            log.warning(event("start cache is of no use", made_for=wanted.version, this_vllm=version))
            return CacheUse.OTHER
        started = self._clock()
        start_cache.fetch(self._bucket(desired.bucket, desired.region).until(late), wanted, cache)
        seconds = f"{self._clock() - started:.1f}"
        log.info(event("start cache unpacked", version=version, bytes=wanted.size_bytes, seconds=seconds))
        return CacheUse.HIT

    def _give_up(self, outcome: CacheUse, error: Exception) -> None:
        log.warning(event("vLLM starts without its start cache", reason=str(error) or type(error).__name__))
        self._outcome = outcome
