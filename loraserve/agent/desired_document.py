"""The desired-state document that is in force; a bad one never replaces a good one, an older one never a newer one."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from loraserve.agent.config_map_watch import ConfigMapWatch
from loraserve.contract.desired_state import DesiredState, InvalidDesiredState
from loraserve.log import event

log = logging.getLogger(__name__)

KUBELET_DELAY_SECONDS = 120.0
"""More than a mounted ConfigMap may be behind its object when the kubelet writes it."""


class DesiredDocument:
    def __init__(self, read: Callable[[], bytes]) -> None:
        """`read` returns the newest text, or raises OSError."""
        self._read = read
        self._content: bytes | None = None
        self.state: DesiredState | None = None
        """The last good document; None before the first."""
        self.generation: str | None = None
        """SHA-256 of its text."""
        self.problem: str | None = None
        """Why the newest text is not followed; None if it is."""

    def refresh(self) -> None:
        """Small enough to compare whole, so no change can be missed."""
        try:
            content = self._read()
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
            log.error(event("desired state refused", problem=problem, kept=kept))
        self._content, self.problem = None, problem


class NewestText:
    """Of a ConfigMap's object and its mounted copy: the object, but the copy where it must be newer.

    The object can be out of reach while the kubelet still renews the copy. A copy is newer if it changed after it had
    caught up with the object, or if the kubelet wrote it long after the object was last in reach.
    """

    def __init__(self, watch: ConfigMapWatch, copy: Path) -> None:
        self._watch = watch
        self._copy = copy
        self._object: bytes | None = None
        self._caught_up = False

    def read(self) -> bytes:
        """Raises OSError."""
        seen = self._watch.content
        if seen is None:
            return self._copy.read_bytes()
        if seen != self._object:
            self._object, self._caught_up = seen, False
        try:
            copy, written_at = self._copy.read_bytes(), self._copy.stat().st_mtime
        except OSError:
            return seen
        self._caught_up = self._caught_up or copy == seen
        late = written_at > self._watch.lost_at + KUBELET_DELAY_SECONDS
        return copy if not self._watch.is_live and (self._caught_up or late) else seen
