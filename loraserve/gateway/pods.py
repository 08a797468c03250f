"""vLLM's pods as the gateway may use them: who is there, what each has ready, and how busy it is."""

import asyncio
import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from pydantic import ValidationError

from loraserve.contract.agent_state import ARRIVING, DEMAND_PATH, AdapterStatus, AgentState, Demand, State
from loraserve.contract.served_name import ServedName
from loraserve.gateway.errors import AdapterUnavailable
from loraserve.gateway.routing import ANY_OTHER, Route
from loraserve.gateway.upstream import BROKEN
from loraserve.kubernetes import Manifest
from loraserve.log import event

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
LOADING_POLL_SECONDS = 0.1
"""While requests wait for what the pod loads."""
FRESH_SECONDS = 5.0
"""What an agent said longer ago is not acted on."""
SLOW_SECONDS = 60.0
"""Unless it takes connections and only answers slowly: a pod that works hard is not asleep. Its vLLM has as long to answer the agent."""
DOUBT_SECONDS = 3.0
"""Where vLLM's own answer contradicts its agent, the agent is believed again after so long: it has looked anew by then."""
IMBALANCE = 1.25
"""An adapter stays on its pod until that one has so many times the average of running requests."""
KEPT_FOR_OTHERS = 8
"""One tenant leaves one of so many places free: its answers may be long, and slowly read."""
_ANSWER = aiohttp.ClientTimeout(total=3, sock_connect=2)
"""With the pause before it less than FRESH_SECONDS: slowness is noticed while the last answer still counts."""


def endpoints(slices: Iterable[Manifest]) -> Iterator[tuple[str, bool]]:
    """The addresses that EndpointSlices name, but for those of pods that are ending, and whether each is ready."""
    for manifest in slices:
        for endpoint in manifest.get("endpoints") or ():
            conditions = endpoint.get("conditions") or {}
            if not conditions.get("terminating"):
                yield endpoint["addresses"][0], conditions.get("ready", True)


@dataclass(eq=False)
class Pod:
    """One vLLM and its agent."""

    address: str
    state: AgentState = field(default_factory=AgentState)
    """What the agent said last."""
    versions: dict[str, AdapterStatus] = field(default_factory=dict)
    """The adapters of `state` by served name."""
    heard_at: float = -math.inf
    slow: bool = False
    """Its agent took the last question, and did not answer in time."""
    running: int = 0
    """Sequences of this replica's requests."""
    doubted_until: float = -math.inf
    """vLLM took no connection."""
    refused_until: dict[str, float] = field(default_factory=dict)
    """Served name -> vLLM did not know it."""
    evicts: bool = False
    """It holds a part of what is declared, and loads and evicts by what it hears of requests."""
    used: set[str] = field(default_factory=set)
    """What requests were sent for since it was told."""
    wanted: set[str] = field(default_factory=set)
    """What requests have waited for since it was told."""
    told: frozenset[str] = frozenset()
    """What it was told last that requests wait for."""
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    """Its agent is to be asked now."""

    def hear(self, state: AgentState, now: float) -> None:
        """Takes over what the agent said."""
        if state != self.state:
            self.state, self.versions = state, {status.served_name: status for status in state.adapters}
            self.evicts = any(status.state is State.ON_DEMAND for status in state.adapters)
            # Doubts are about what it says that it has.
            self.refused_until = {served: at for served, at in self.refused_until.items() if self._claims(served)}
        self.heard_at, self.slow = now, False

    def want(self, served: str) -> None:
        """Has it loaded; it is told at once, and again as long as requests wait."""
        self.wanted.add(served)
        if served not in self.told:
            self.hurry.set()

    def demand(self) -> Demand | None:
        """What its agent is to be told now."""
        names, self.told = self.wanted | self.used, frozenset(self.wanted)
        self.wanted, self.used = set(), set()
        return Demand(adapters=tuple(sorted(names))) if names else None

    def would_load(self, served: str) -> bool:
        """Whether it loads it for requests, or is about to."""
        status = self.versions.get(served)
        return bool(self.evicts and status and status.state in (State.ON_DEMAND, *ARRIVING))

    def _claims(self, served: str) -> bool:
        status = self.versions.get(served)
        return status.state is State.READY if status else served == self.state.base

    def heard(self, now: float) -> bool:
        """Whether what its agent said still counts."""
        return now - self.heard_at <= (SLOW_SECONDS if self.slow else FRESH_SECONDS)

    def has(self, served: str, now: float) -> bool:
        """Whether a request for it may go there."""
        if self.state.loaded is None or now < max(self.doubted_until, self.refused_until.get(served, -math.inf)):
            return False
        if (self.state.age or 0) > SLOW_SECONDS:
            return False
        return self._claims(served)


@dataclass(frozen=True)
class Place:
    """Room for one request on a pod. Used as a context: the room is free again afterwards."""

    pod: Pod
    served: str
    tenant: str
    sequences: int
    _release: Callable[["Place"], None]

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *_: object) -> None:
        self._release(self)


class Pods:
    """`on_change` is called whenever a request that had to wait may have a place now."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        agent_port: int,
        concurrency: int,
        *,
        agent_key: str = "",
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._http = http
        self._agent_port = agent_port
        self._concurrency = concurrency
        self._agent_headers = {"Authorization": f"Bearer {agent_key}", "Content-Type": "application/json"}
        self._clock = clock
        self.on_change = on_change
        self._pods: dict[str, Pod] = {}
        self._polls: dict[str, asyncio.Task[None]] = {}
        self.running_by_tenant: Counter[str] = Counter()
        """Sequences."""
        self.replicas = 1
        """Of the gateway: each grants its share of what the pods can take."""

    def follow(self, slices: Iterable[Manifest]) -> None:
        """Takes over vLLM's endpoints. A pod that is not ready yet counts: its agent says what it has."""
        addresses = {address for address, _ in endpoints(slices)}
        for gone in self._pods.keys() - addresses:
            del self._pods[gone]
            self._polls.pop(gone).cancel()
        for new in sorted(addresses - self._pods.keys()):
            pod = self._pods[new] = Pod(new)
            self._polls[new] = asyncio.create_task(self._poll_forever(pod))
            log.info(event("pod found", address=new))
        self.on_change()

    def follow_gateway(self, slices: Iterable[Manifest]) -> None:
        """Takes over the gateway's own endpoints."""
        self.replicas = max(1, sum(ready for _, ready in endpoints(slices)))
        self.on_change()

    async def close(self) -> None:
        for task in self._polls.values():
            task.cancel()
        await asyncio.gather(*self._polls.values(), return_exceptions=True)

    async def refresh(self, pod: Pod) -> None:
        """Asks the agent now, and tells it what requests need."""
        url, demand = f"http://{host(pod.address)}:{self._agent_port}", pod.demand()
        options: dict[str, Any] = {"timeout": _ANSWER, "raise_for_status": True, "allow_redirects": False}
        if demand:
            told = {"data": demand.model_dump_json(by_alias=True), "headers": self._agent_headers}
            question = self._http.post(f"{url}{DEMAND_PATH}", **told, **options)
        else:
            question = self._http.get(f"{url}/v1/state", **options)
        try:
            async with question as answer:
                # An agent may be newer than this gateway.
                pod.hear(AgentState.model_validate_json(await answer.read(), extra="ignore"), self._clock())
        except (*BROKEN, TimeoutError, ValidationError) as error:
            pod.slow = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError)
            log.debug(event("agent does not answer", address=pod.address, problem=error or type(error).__name__))
        self.on_change()

    def unreachable(self, pod: Pod) -> None:
        """Its vLLM took no connection, whatever the agent said a moment ago."""
        pod.doubted_until = self._clock() + DOUBT_SECONDS

    def refused(self, place: Place) -> None:
        """Its vLLM does not know the adapter, whatever the agent said a moment ago."""
        place.pod.refused_until[place.served] = self._clock() + DOUBT_SECONDS

    def place(self, route: Route, tenant: str = "", sequences: int = 1) -> Place | None:
        """Room for a request, or None where it has to wait. Raises AdapterUnavailable where waiting cannot help.

        Where there is any room a request gets it whole: one of many sequences would else wait for ever for so much.
        """
        for candidates in self._candidates(route):
            if candidates:
                if found := self._least_surprising(candidates, route.is_patient):
                    return self._occupy(*found, tenant, sequences)
                self._have_loaded(route)  # by a pod that has room
                return None
        if not self._have_loaded(route):
            self._give_up_hopeless(route)
        return None

    def has_share(self, tenant: str, sequences: int) -> bool:
        """Whether a tenant may have so many more sequences. Who has none running may, however many they are."""
        running, share = self.running_by_tenant[tenant], max(1, self._concurrency // self.replicas)
        return not running or running + sequences <= (share - share // KEPT_FOR_OTHERS) * len(self.heard)

    @property
    def all(self) -> list[Pod]:
        return list(self._pods.values())

    @property
    def heard(self) -> list[Pod]:
        """Those whose agents have answered lately."""
        now = self._clock()
        return [pod for pod in self._pods.values() if pod.heard(now)]

    @property
    def awake(self) -> bool:
        """Whether any vLLM answers."""
        return any(pod.state.loaded is not None for pod in self.heard)

    @property
    def running(self) -> int:
        return sum(pod.running for pod in self._pods.values())

    @property
    def kv_cache_usage(self) -> float:
        """Mean over the pods, 0 to 1; 0 where none says."""
        told = [pod.state.kv_cache_usage for pod in self.heard if pod.state.kv_cache_usage is not None]
        return sum(told) / len(told) if told else 0.0

    def ready(self, route: Route) -> bool:
        """Whether a pod has it, room or not."""
        return any(self._candidates(route))

    def is_loading(self, route: Route) -> bool:
        """Whether a vLLM that is there loads it, because requests wait for it."""
        awake = [pod.wanted | pod.told for pod in self.heard if pod.state.loaded is not None]
        return not self.ready(route) and any(served in wanted for wanted in awake for served in route.served)

    def has_evicted(self, place: Place) -> bool:
        """Whether its pod holds no longer what a request was sent there for."""
        return place.pod.would_load(place.served)

    def status(self, route: Route) -> str:
        """One word on a model, for people: ready, sleeping, or what its agent does with it."""
        if self.ready(route):
            return State.READY
        states = [pod.versions[served].state for pod in self.heard for served in route.served if served in pod.versions]
        return next((state for state in states if state is not State.READY), "sleeping")

    def _candidates(self, route: Route) -> Iterator[list[tuple[Pod, str]]]:
        now, heard = self._clock(), self.heard
        for served in route.served:
            if served != ANY_OTHER:
                yield [(pod, served) for pod in heard if pod.has(served, now)]
            else:
                yield [(pod, other) for pod in heard for other in _others(pod, route) if pod.has(other, now)]

    def _least_surprising(self, candidates: list[tuple[Pod, str]], is_patient: bool) -> tuple[Pod, str] | None:
        """The pod where this adapter is at home, unless it is full or far busier than the others."""
        share = max(1, self._concurrency // (2 if is_patient else 1) // self.replicas)
        if all(pod.running >= share for pod, _ in candidates):
            return None
        bound = IMBALANCE * (sum(pod.running for pod, _ in candidates) + 1) / len(candidates)
        at_home = sorted(candidates, key=lambda candidate: _affinity(*candidate), reverse=True)
        for pod, served in at_home:
            if pod.running < min(share, math.ceil(bound)):
                return pod, served
        return None

    def _have_loaded(self, route: Route) -> bool:
        """Whether a pod could load it: where that is under way, else where the adapter is at home."""
        for served in route.served:
            able = [pod for pod in self.heard if pod.would_load(served)]
            if able:
                under_way = [pod for pod in able if pod.versions[served].state is not State.ON_DEMAND]
                max(under_way or able, key=lambda pod: _affinity(pod, served)).want(served)
                return True
        return False

    def _occupy(self, pod: Pod, served: str, tenant: str, sequences: int) -> Place:
        if pod.evicts:
            pod.used.add(served)
        pod.running += sequences
        self.running_by_tenant[tenant] += sequences
        return Place(pod, served, tenant, sequences, self._release)

    def _release(self, place: Place) -> None:
        place.pod.running -= place.sequences
        self.running_by_tenant[place.tenant] -= place.sequences
        if not self.running_by_tenant[place.tenant]:
            del self.running_by_tenant[place.tenant]
        self.on_change()

    def _give_up_hopeless(self, route: Route) -> None:
        """Every pod that knows this adapter has it in quarantine."""
        known = [pod.versions[served] for pod in self.heard for served in route.served if served in pod.versions]
        if known and all(status.state is State.QUARANTINED for status in known):
            worst = known[0]
            raise AdapterUnavailable(f"{worst.served_name} is quarantined: {worst.reason}", param="model")

    async def _poll_forever(self, pod: Pod) -> None:
        while True:
            pod.hurry.clear()
            await self.refresh(pod)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOADING_POLL_SECONDS if pod.wanted else POLL_SECONDS):
                    await pod.hurry.wait()


def _affinity(pod: Pod, served: str) -> bytes:
    """Rendezvous hashing: a pod that comes or goes moves only its own share of the adapters."""
    return hashlib.blake2b(f"{served} {pod.address}".encode(), digest_size=8).digest()


def _others(pod: Pod, route: Route) -> list[str]:
    """Versions of the adapter that the route does not name."""
    others = [served for served in pod.versions if served not in route.served]
    return [served for served in others if ServedName(served).adapter == route.model]


def host(address: str) -> str:
    """As a URL writes it."""
    return f"[{address}]" if ":" in address else address
