"""Follows the mounted desired-state document; a bad one never replaces a good one."""

import hashlib
import logging
from pathlib import Path

from loraserve.desired import DesiredState, InvalidDesiredState
from loraserve.log import event

log = logging.getLogger(__name__)


class DesiredFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: bytes | None = None
        self.state: DesiredState | None = None
        """The last good document; None before the first."""
        self.generation: str | None = None
        """SHA-256 of its text."""
        self.problem: str | None = None
        """Why what is in the file now is not followed; None if it is."""

    def refresh(self) -> None:
        """Reads the file; small enough to compare whole, so no write or swap of the mount can be missed."""
        try:
            content = self._path.read_bytes()
            if content == self._content:
                return
            self.state = DesiredState.parse(content)
        except (OSError, InvalidDesiredState) as error:
            self._reject(str(error))
        else:
            self._content, self.problem = content, None
            self.generation = hashlib.sha256(content).hexdigest()
            log.info(event("desired state read", base=self.state.base.name, adapters=len(self.state.adapters)))

    def _reject(self, problem: str) -> None:
        if problem != self.problem:
            kept = "the last good one stays" if self.state else "none is in force yet"
            log.error(event("desired state refused", file=self._path, problem=problem, kept=kept))
        self._content, self.problem = None, problem
