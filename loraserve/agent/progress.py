"""How far one desired adapter has come."""

from dataclasses import dataclass, field
from pathlib import Path

from loraserve.agent.backoff import Backoff
from loraserve.contract.agent_state import State
from loraserve.contract.desired_state import Adapter


@dataclass
class Progress:
    adapter: Adapter
    state: State = State.DESIRED
    reason: str | None = None
    cause: str | None = None
    transient: bool = False
    folder: Path | None = None
    """Where its verified files are; None until they were fetched (again)."""
    backoff: Backoff = field(default_factory=Backoff)
    desired_since: float = 0.0

    def enter(self, state: State, reason: str | None = None) -> None:
        """A quarantined adapter stays so, with its reason, while it is tried again."""
        if self.state is not State.QUARANTINED or state in (State.READY, State.ON_DEMAND):
            self.state, self.reason, self.cause, self.transient = state, reason, None, False
