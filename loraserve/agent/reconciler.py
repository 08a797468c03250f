"""Brings vLLM from whatever it holds to what is desired, one small step at a time.

Level-triggered: every pass asks vLLM what it holds and compares, so a restart of vLLM, of the agent or of both needs
no special case. What goes wrong with one adapter quarantines that adapter only.
"""

import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from loraserve.agent.desired_file import DesiredFile
from loraserve.agent.downloads import Downloads
from loraserve.agent.metrics import Metrics
from loraserve.agent.state import AdapterStatus, AgentState, State
from loraserve.agent.vllm import Vllm, VllmRefused, VllmUnreachable
from loraserve.desired import Adapter, DesiredState, served_name
from loraserve.errors import LoraserveError
from loraserve.log import event

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 600.0


@dataclass
class Backoff:
    """When to try again what failed: twice as long after each failure, with jitter."""

    failures: int = 0
    due_at: float = 0.0

    def fail(self, now: float) -> None:
        pause = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0**self.failures)
        self.failures += 1
        self.due_at = now + pause * random.uniform(0.8, 1.2)

    def give_up(self) -> None:
        self.due_at = math.inf


@dataclass
class Progress:
    """How far one desired adapter has come."""

    state: State = State.DESIRED
    reason: str | None = None
    folder: Path | None = None
    """Where its verified files are; None until they were fetched (again)."""
    downloading: bool = False
    backoff: Backoff = field(default_factory=Backoff)

    def enter(self, state: State, reason: str | None = None) -> None:
        """A quarantined adapter stays so, with its reason, while it is tried again."""
        if self.state is not State.QUARANTINED or state is State.READY:
            self.state, self.reason = state, reason


class Reconciler:
    """`step` belongs to one thread; `report` and `last_sign_of_life` may be read from any."""

    def __init__(
        self,
        desired: DesiredFile,
        vllm: Vllm,
        downloads: Downloads,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._desired = desired
        self._vllm = vllm
        self._downloads = downloads
        self._metrics = metrics
        self._clock = clock
        self._progress: dict[Adapter, Progress] = {}
        self._unloads: dict[str, Backoff] = {}
        self._loaded: dict[str, str] | None = None
        self._trouble: str | None = "not asked yet"
        self.report = AgentState()
        self.last_sign_of_life = clock()

    def step(self) -> None:
        """One pass: never waits for a download, and for vLLM no longer than a load takes."""
        self._desired.refresh()
        self._observe()
        if self._desired.state:
            self._track(self._desired.state.adapters)
            try:
                for adapter, progress in self._progress.items():
                    self._advance(adapter, progress, self._desired.state)
                self._unload_leftovers()
            except VllmUnreachable as error:
                log.warning(event("vLLM lost", reason=error))
                self._loaded, self._trouble = None, str(error)
        self._publish()

    def _observe(self) -> None:
        """Asks vLLM what it holds; `_loaded` is None while it does not answer."""
        try:
            self._loaded, trouble = self._vllm.adapters(), None
        except (VllmUnreachable, VllmRefused) as error:
            self._loaded, trouble = None, str(error)
        if trouble != self._trouble:
            log.info(event("vLLM answers") if trouble is None else event("waiting for vLLM", reason=trouble))
        self._trouble = trouble

    def _track(self, adapters: tuple[Adapter, ...]) -> None:
        """Keeps progress per desired entry: a changed entry starts afresh, a removed one is forgotten."""
        self._progress = {adapter: self._progress.get(adapter) or Progress() for adapter in adapters}
        for adapter, outcome in self._downloads.finished():
            if progress := self._progress.get(adapter):
                progress.downloading = False
                if isinstance(outcome, Exception):
                    self._quarantine(adapter, progress, outcome)
                else:
                    progress.folder = outcome

    def _advance(self, adapter: Adapter, progress: Progress, desired: DesiredState) -> None:
        self.last_sign_of_life = now = self._clock()
        if progress.downloading or now < progress.backoff.due_at:
            return
        if progress.folder is None:
            progress.enter(State.FETCHING)
            progress.downloading = True
            self._downloads.start(adapter, desired)
        elif self._loaded is None:
            progress.enter(State.LOADING, "waiting for vLLM")
        elif self._loaded.get(served_name(adapter)) == str(progress.folder):
            self._mark_ready(adapter, progress)
        else:
            progress.enter(State.LOADING)
            self._publish()
            self._load(adapter, progress, progress.folder, self._loaded)

    def _load(self, adapter: Adapter, progress: Progress, folder: Path, loaded: dict[str, str]) -> None:
        name = served_name(adapter)
        try:
            if name in loaded:  # from another folder: these are not the bytes that are desired now
                self._vllm.unload(name)
            self._vllm.load(name, folder)
        except VllmRefused as error:
            self._quarantine(adapter, progress, error)
        except VllmUnreachable as error:
            self._quarantine(adapter, progress, error)
            raise
        else:
            loaded[name] = str(folder)
            self._mark_ready(adapter, progress)

    def _mark_ready(self, adapter: Adapter, progress: Progress) -> None:
        if progress.state is not State.READY:
            log.info(event("adapter ready", adapter=served_name(adapter)))
        progress.enter(State.READY)
        progress.backoff = Backoff()

    def _quarantine(self, adapter: Adapter, progress: Progress, error: Exception) -> None:
        known = isinstance(error, LoraserveError)
        if known and not error.transient:
            progress.backoff.give_up()
            retry = "when its entry changes"
        else:
            progress.backoff.fail(self._clock())
            retry = f"in {progress.backoff.due_at - self._clock():.0f}s"
        progress.state, progress.reason = State.QUARANTINED, str(error) if known else f"{type(error).__name__}: {error}"
        progress.folder = None
        self._metrics.reconcile_errors.inc()
        log.warning(event("adapter quarantined", adapter=served_name(adapter), reason=progress.reason, retry=retry))

    def _unload_leftovers(self) -> None:
        """Unloads what is not desired; an old version only once the desired one of that name is ready."""
        if self._loaded is None:
            return
        arriving = {adapter.name for adapter, progress in self._progress.items() if progress.state is not State.READY}
        desired = {served_name(adapter) for adapter in self._progress}
        leftovers = [name for name in self._loaded if name not in desired and name.split("@")[0] not in arriving]
        self._unloads = {name: self._unloads.get(name) or Backoff() for name in leftovers}
        for name, backoff in self._unloads.items():
            if self._clock() >= backoff.due_at:
                self._unload(name, backoff, self._loaded)

    def _unload(self, name: str, backoff: Backoff, loaded: dict[str, str]) -> None:
        try:
            self._vllm.unload(name)
        except VllmRefused as error:
            backoff.fail(self._clock())
            self._metrics.reconcile_errors.inc()
            log.warning(event("adapter not unloaded", adapter=name, reason=error))
        else:
            del loaded[name]
            log.info(event("adapter unloaded", adapter=name))

    def _publish(self) -> None:
        desired = self._desired.state
        self.report = AgentState(
            base=desired.base.name if desired else None,
            problem=self._desired.problem,
            adapters=tuple(
                AdapterStatus(name=adapter.name, version=adapter.version, state=progress.state, reason=progress.reason)
                for adapter, progress in self._progress.items()
            ),
            loaded=None if self._loaded is None else tuple(sorted(self._loaded)),
        )
        self.last_sign_of_life = self._clock()
