"""What an agent reports at /v1/state: one schema for the agent and for those who read it."""

from enum import StrEnum

from loraserve.contract.document import Document
from loraserve.contract.served_name import ServedName


class State(StrEnum):
    ON_DEMAND = "on-demand"
    """Declared, and not held: it is loaded when a request asks for it."""
    DESIRED = "desired"
    FETCHING = "fetching"
    LOADING = "loading"
    PROBING = "probing"
    READY = "ready"
    DRAINING = "draining"
    QUARANTINED = "quarantined"


SETTLED = (State.ON_DEMAND, State.READY, State.DRAINING, State.QUARANTINED)
"""Nothing more is to come before requests may be sent."""
ARRIVING = (State.DESIRED, State.FETCHING, State.LOADING, State.PROBING)
"""On the way to ready."""


class AdapterStatus(Document):
    name: str
    version: str
    state: State
    reason: str | None = None
    """Why the adapter is quarantined, or what it waits for."""
    cause: str | None = None
    """The kind of quarantine, one of a few words such as 'DigestMismatch'."""
    transient: bool = False
    """Whether a quarantined one is tried again by itself."""
    last_used: float | None = None
    """When vLLM last had a request for it, in seconds since 1970; None before the first."""

    @property
    def served_name(self) -> ServedName:
        return ServedName.of(self.name, self.version)


class Slots(Document):
    total: int
    used: int
    """Versions that vLLM holds; those beyond `total` are swapped in and out."""


DEMAND_PATH = "/v1/demand"


class Demand(Document):
    """What a gateway tells an agent, with vLLM's API key; the answer is the agent's state."""

    adapters: tuple[str, ...]
    """Served names that requests wait for, or were sent to since the last time."""


class AgentState(Document):
    base: str | None = None
    """The base model's served name; None until a valid document was read."""
    generation: str | None = None
    """SHA-256 of the document in force; None until a valid one was read."""
    problem: str | None = None
    """Why the newest document is not followed; the last good one stays in force."""
    ready: bool = False
    """Whether the pod takes requests, as its readiness probe says."""
    slots: Slots | None = None
    """None where vLLM does not answer, or was started without LoRA."""
    adapters: tuple[AdapterStatus, ...] = ()
    """Every desired version, and every other one that vLLM still holds: ready until its successor is, then draining."""
    loaded: tuple[str, ...] | None = None
    """The served names that vLLM holds; None while vLLM is not there, and until it answered once. One that is only late is
    still taken to hold what it held."""
    kv_cache_usage: float | None = None
    """0 to 1; None while vLLM is not there, and until it told."""
    age: float | None = None
    """Seconds since vLLM confirmed what is said of it here; None where it never did."""
