"""What an agent reports at /v1/state: one schema for the agent and for those who read it."""

from enum import StrEnum

from loraserve.desired import Document


class State(StrEnum):
    DESIRED = "desired"
    FETCHING = "fetching"
    LOADING = "loading"
    READY = "ready"
    QUARANTINED = "quarantined"


class AdapterStatus(Document):
    name: str
    version: str
    state: State
    reason: str | None = None
    """Why the adapter is quarantined, or what it waits for."""


class AgentState(Document):
    base: str | None = None
    """The base model's served name; None until a valid document was read."""
    problem: str | None = None
    """Why the document now mounted is not followed; the last good one stays in force."""
    adapters: tuple[AdapterStatus, ...] = ()
    """Every desired adapter."""
    loaded: tuple[str, ...] | None = None
    """The served names that vLLM holds, one no longer desired included; None while vLLM does not answer."""
