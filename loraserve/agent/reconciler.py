"""Brings vLLM from whatever it holds to what is desired, one small step at a time.

Level-triggered: every pass asks vLLM what it holds and compares, so a restart of vLLM, of the agent or of both needs
no special case. What goes wrong with one adapter quarantines that adapter only. A version that is no longer desired
serves until its successor is ready, then drains. Where more are desired than vLLM holds, the rest waits for a request.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from loraserve.agent.backoff import Backoff
from loraserve.agent.desired_document import DesiredDocument
from loraserve.agent.disk import Disk
from loraserve.agent.downloads import Downloads
from loraserve.agent.drain import Drain, DrainTimes
from loraserve.agent.loads import Loads
from loraserve.agent.metrics import Metrics
from loraserve.agent.progress import Progress
from loraserve.agent.vllm import Vllm, VllmBusy, VllmRefused, VllmUnreachable
from loraserve.agent.working_set import EVICTION, WorkingSet
from loraserve.catalog.bucket import Stopped
from loraserve.catalog.files import DiskFull
from loraserve.contract.agent_state import ARRIVING, AdapterStatus, AgentState, Slots, State
from loraserve.contract.desired_state import Adapter, DesiredState, Envelope
from loraserve.contract.served_name import ServedName
from loraserve.errors import LoraserveError
from loraserve.log import event

log = logging.getLogger(__name__)

LATE_SECONDS = 60.0
"""A vLLM that is only late is taken to be as it was for so long; then its own liveness probe decides."""

OnQuarantine = Callable[[str, str, str], object]
"""Told (served name, cause, reason)."""


class DoesNotFit(LoraserveError):
    """vLLM was started with flags that leave no place for the adapter."""


class Reconciler:
    """`step` belongs to one thread; `report` and `last_sign_of_life` may be read from any."""

    def __init__(
        self,
        desired: DesiredDocument,
        vllm: Vllm,
        downloads: Downloads,
        metrics: Metrics,
        *,
        disk: Disk,
        working_set: WorkingSet,
        drain_times: DrainTimes,
        envelope: Envelope | None = None,
        on_quarantine: OnQuarantine = lambda *_: None,
        on_loaded: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`envelope` is what this vLLM was started with; where nobody says, the document's is taken for it.

        `on_loaded` is called, from another thread, after each attempt to load an adapter.
        """
        self._desired = desired
        self._vllm = vllm
        self._downloads = downloads
        self._metrics = metrics
        self._started_with = envelope
        self._on_quarantine = on_quarantine
        self._disk = disk
        self._working_set = working_set
        self.ask = working_set.ask
        """May be called from any thread."""
        self._drain_times = drain_times
        self._clock = clock
        self._loads = Loads(vllm, on_loaded, clock)
        self._progress: dict[Adapter, Progress] = {}
        self._drains: dict[str, Drain] = {}
        self._loaded: dict[str, str] | None = None
        self._heard_at: float | None = None
        """When vLLM said so."""
        self._last_used: dict[str, float] = {}
        self._uses_are_known = False
        """Whether vLLM told them in this pass."""
        self._kv_cache_usage: float | None = None
        self._trouble: str | None = "not asked yet"
        self.report = AgentState()
        self.last_sign_of_life = clock()

    @property
    def busy(self) -> bool:
        """Whether adapters are being fetched or loaded."""
        return bool(self._downloads.running or self._loads.running)

    @property
    def age(self) -> float | None:
        """Seconds since vLLM confirmed what `report` says of it."""
        return None if self._heard_at is None else self._clock() - self._heard_at

    def step(self) -> None:
        """One pass: waits for no download and no load, and for vLLM's answers no longer than a few times ANSWER_SECONDS."""
        self._desired.renew()
        if self._desired.value:
            self._track(self._desired.value.adapters)
        self._collect()
        heard = self._observe()
        if self._desired.value:
            self._choose(self._desired.value.adapters)
            for pin, progress in self._in_turn():
                self._advance(pin, progress, self._desired.value, heard)
            try:
                if heard:
                    self._release_leftovers()
            except VllmUnreachable as error:
                log.warning(event("vLLM lost", reason=error))
        self._publish()

    def _observe(self) -> bool:
        """Asks vLLM whether it is well and what it holds. False where it did not say so now."""
        try:
            self._vllm.check_health()
            self._loaded, trouble = self._vllm.adapters(), None
        except (VllmUnreachable, VllmRefused) as error:
            trouble = str(error)
            if not isinstance(error, VllmBusy) or self.age is None or self.age > LATE_SECONDS:
                self._loaded = None
        else:
            self._heard_at = self._clock()
            self._loads.forget_all_but(self._loaded)
            self._note_uses(self._loaded)
        if trouble != self._trouble:
            log.info(event("vLLM answers") if trouble is None else event("waiting for vLLM", reason=trouble))
        self._trouble = trouble
        return trouble is None

    def _note_uses(self, loaded: dict[str, str]) -> None:
        self._uses_are_known = False
        with suppress(VllmUnreachable, VllmRefused):  # a busy server's metrics may be late; what was seen stays
            load = self._vllm.load_now()
            self._uses_are_known = True
            self._last_used |= load.last_used
            self._kv_cache_usage = load.kv_cache_usage
        told = loaded.keys() | {adapter.served_name for adapter in self._progress}
        self._last_used = {name: at for name, at in self._last_used.items() if name in told}
        self._working_set.see(self._last_used)

    def _track(self, adapters: tuple[Adapter, ...]) -> None:
        """Keeps progress per desired version: a changed one starts afresh, a removed one is forgotten."""
        known, self._progress = self._progress, {}
        for adapter in adapters:
            pin = adapter.version_pin()
            self._progress[pin] = known.get(pin) or Progress(adapter, desired_since=self._clock())
            self._progress[pin].adapter = adapter
        self._downloads.drop_all_but(self._progress)

    def _collect(self) -> None:
        """Takes over what was fetched and loaded meanwhile."""
        for pin, outcome in self._downloads.finished():
            progress = self._progress.get(pin)
            if not progress or isinstance(outcome, Stopped):  # removed meanwhile; it may be desired again by now
                continue
            if isinstance(outcome, Exception):
                self._quarantine(progress, outcome)
            else:
                progress.folder = outcome
        for pin, outcome in self._loads.finished():
            progress = self._progress.get(pin)
            if progress and isinstance(outcome, Exception):
                self._quarantine(progress, outcome)

    def _choose(self, adapters: tuple[Adapter, ...]) -> None:
        """Says which adapters vLLM is to hold: an old version that serves until its successor does could not come back."""
        self._working_set.choose(adapters, {ServedName(name).adapter for name in self._leftovers(self._loaded or {})})
        for progress in self._progress.values():
            if progress.state is State.ON_DEMAND and self._is_wanted(progress):
                progress.enter(State.DESIRED)
                progress.desired_since = self._clock()

    def _is_wanted(self, progress: Progress) -> bool:
        return progress.adapter.name in self._working_set.names

    def _in_turn(self) -> list[tuple[Adapter, Progress]]:
        """What requests wait for goes first, the oldest before the others."""

        def rank(progress: Progress) -> float:
            return progress.desired_since if self._working_set.is_asked(progress.adapter.name) else math.inf

        return sorted(self._progress.items(), key=lambda entry: rank(entry[1]))

    def _advance(self, pin: Adapter, progress: Progress, desired: DesiredState, heard: bool) -> None:
        self.last_sign_of_life = now = self._clock()
        if pin in self._downloads.running or now < progress.backoff.due_at:
            return
        if pin in self._loads.running:
            progress.enter(State.PROBING if self._loads.is_probing(pin) else State.LOADING)
        elif misfit := self._misfit(pin, desired):
            self._quarantine(progress, misfit)
        elif not self._is_wanted(progress):
            self._set_aside(progress)
        elif progress.folder is None:
            self._fetch(pin, progress, desired)
        elif self._loaded is None:
            progress.enter(State.LOADING, "waiting for vLLM")
        elif heard:
            self._serve(progress, progress.folder, self._loaded, desired.base.name)

    def _set_aside(self, progress: Progress) -> None:
        progress.enter(State.ON_DEMAND)
        if progress.adapter.served_name not in (self._loaded or {}):
            progress.folder = None  # it may be removed from the disk

    def _fetch(self, pin: Adapter, progress: Progress, desired: DesiredState) -> None:
        running = self._downloads.running
        wanted = [adapter for adapter, progress in self._progress.items() if self._is_wanted(progress)]
        in_use = {adapter.folder_name for adapter in (*wanted, *self._loads.running)}
        in_use |= {Path(folder).name for folder in (self._loaded or {}).values()}
        try:
            self._disk.make_room(pin, keep=in_use, reserved_bytes=sum(adapter.size_bytes for adapter in running))
        except (DiskFull, OSError) as error:
            if isinstance(error, DiskFull) and not self._working_set.is_all:
                progress.enter(State.DESIRED, "waits for room on the disk")
            else:
                self._quarantine(progress, error)
        else:
            started = self._downloads.start(pin, desired)
            progress.enter(State.FETCHING if started else State.DESIRED, None if started else "waits for its turn")

    def _misfit(self, adapter: Adapter, desired: DesiredState) -> DoesNotFit | None:
        envelope = self._envelope()
        if not envelope or not (reason := envelope.misfit(adapter)):
            return None
        restarted = desired.envelope and not desired.envelope.misfit(adapter)
        return DoesNotFit(f"{reason}; {'the pods that replace this one serve it' if restarted else 'run `pulumi up`'}")

    def _envelope(self) -> Envelope | None:
        return self._started_with or (self._desired.value.envelope if self._desired.value else None)

    def _serve(self, progress: Progress, folder: Path, loaded: dict[str, str], base: str) -> None:
        """Loads, probes and pre-warms what is not yet loaded, probed and pre-warmed."""
        name = progress.adapter.served_name
        if loaded.get(name) == str(folder) and self._loads.is_proven(name, folder):
            self._mark_ready(progress)
        elif loaded.get(name) != str(folder) and self._is_slot_coming(loaded):
            progress.enter(State.LOADING, "waiting for the slot of a version that drains")
        elif self._is_canary_of_arriving(progress.adapter):
            progress.enter(State.LOADING, "waits for its stable version")
        elif self._loads.start(progress.adapter, folder, loaded.get(name), base):
            progress.enter(State.LOADING)
        else:
            progress.enter(State.LOADING, "waits for its turn")

    def _is_slot_coming(self, loaded: dict[str, str]) -> bool:
        """Beyond its slots vLLM swaps, which slows others: better wait where one becomes free by itself."""
        envelope = self._envelope()
        held = loaded.keys() | {adapter.served_name for adapter in self._loads.running}
        own_slots = envelope and len(self._progress) <= envelope.slots
        return bool(envelope and own_slots and len(held) >= envelope.slots and self._drains)

    def _is_canary_of_arriving(self, adapter: Adapter) -> bool:
        """Callers of the stable version would get the canary, if it were there first."""
        if adapter.canary_percent is None:
            return False
        others = (progress for pin, progress in self._progress.items() if pin.name == adapter.name)
        return any(other.state in ARRIVING and other.adapter.canary_percent is None for other in others)

    def _mark_ready(self, progress: Progress) -> None:
        if progress.state is not State.READY:
            seconds = self._clock() - progress.desired_since
            log.info(event("adapter ready", adapter=progress.adapter.served_name, desired_for=f"{seconds:.1f}s"))
        progress.enter(State.READY)
        progress.backoff = Backoff()

    def _quarantine(self, progress: Progress, error: Exception) -> None:
        known = isinstance(error, LoraserveError)
        if known and not error.transient:
            progress.backoff.give_up()
            retry = "when its entry changes"
        else:
            progress.backoff.fail(self._clock())
            retry = f"in {progress.backoff.due_at - self._clock():.0f}s"
        name, cause = progress.adapter.served_name, type(error).__name__
        reason = str(error) if known else f"{cause}: {error}"
        progress.state, progress.reason, progress.cause, progress.folder = State.QUARANTINED, reason, cause, None
        progress.transient = math.isfinite(progress.backoff.due_at)
        self._metrics.reconcile_errors.inc()
        self._on_quarantine(name, cause, reason)
        log.warning(event("adapter quarantined", adapter=name, reason=reason, retry=retry))

    def _release_leftovers(self) -> None:
        """Drains what is not to be held, but an old version only once every desired one of its name is ready."""
        if self._loaded is None:
            return
        now = self._clock()
        settled = (State.READY, State.ON_DEMAND)
        arriving = {progress.adapter.name for progress in self._progress.values() if progress.state not in settled}
        leftovers, evicted = self._leftovers(self._loaded), self._evicted(self._loaded)
        for name in leftovers:
            if name not in self._drains and ServedName(name).adapter not in arriving:
                self._begin_drain(name, self._drain_times, now)
                if any(adapter.name == ServedName(name).adapter for adapter in self._progress):
                    self._metrics.swaps.inc()
        for name in evicted.keys() - self._drains:
            self._begin_drain(name, EVICTION, now)
        self._drains = {name: drain for name, drain in self._drains.items() if name in {*leftovers, *evicted}}
        for name, drain in self._drains.items():
            drain.observe(self._last_used.get(name), now, is_known=self._uses_are_known)
            if not drain.is_over(now):
                continue
            if not self._unload(name, self._loaded):
                drain.backoff.fail(now)
            elif name in evicted:
                evicted[name].folder = None
                self._metrics.evictions.inc()

    def _begin_drain(self, name: str, times: DrainTimes, now: float) -> None:
        self._drains[name] = Drain(now, now, self._last_used.get(name), times)
        log.info(event("adapter draining", adapter=name))

    def _evicted(self, loaded: dict[str, str]) -> dict[str, Progress]:
        """Desired versions that vLLM still holds and is no longer to."""
        aside = (progress for progress in self._progress.values() if progress.state is State.ON_DEMAND)
        return {served: progress for progress in aside if (served := progress.adapter.served_name) in loaded}

    def _leftovers(self, loaded: dict[str, str]) -> list[str]:
        desired = {adapter.served_name for adapter in self._progress}
        return [name for name in loaded if name not in desired]

    def _unload(self, name: str, loaded: dict[str, str]) -> bool:
        try:
            self._vllm.unload(name)
        except VllmRefused as error:
            self._metrics.reconcile_errors.inc()
            log.warning(event("adapter not unloaded", adapter=name, reason=error))
            return False
        self._disk.touch(Path(loaded.pop(name)))
        log.info(event("adapter unloaded", adapter=name))
        return True

    def _publish(self) -> None:
        desired, envelope = self._desired.value, self._envelope()
        used = None if self._loaded is None else len(self._loaded)
        self.report = AgentState(
            base=desired.base.name if desired else None,
            generation=self._desired.digest,
            problem=self._desired.problem,
            slots=Slots(total=envelope.slots, used=used) if envelope and used is not None else None,
            adapters=(*self._desired_statuses(), *self._leftover_statuses()),
            loaded=None if self._loaded is None else tuple(sorted(self._loaded)),
            kv_cache_usage=None if self._loaded is None else self._kv_cache_usage,
        )
        self.last_sign_of_life = self._clock()

    def _desired_statuses(self) -> Iterator[AdapterStatus]:
        for adapter, progress in self._progress.items():
            yield AdapterStatus(
                name=adapter.name,
                version=adapter.version,
                state=progress.state,
                reason=progress.reason,
                cause=progress.cause,
                transient=progress.transient,
                last_used=self._last_used.get(adapter.served_name),
            )

    def _leftover_statuses(self) -> Iterator[AdapterStatus]:
        for served in map(ServedName, self._leftovers(self._loaded or {})):
            draining = served in self._drains
            yield AdapterStatus(
                name=served.adapter,
                version=served.version or "",
                state=State.DRAINING if draining else State.READY,
                reason=None if draining else "serves until its successor is ready",
                last_used=self._last_used.get(served),
            )
