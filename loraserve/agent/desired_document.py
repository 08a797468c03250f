"""The desired-state document that is in force: the newest text of two, and the last good one."""

from collections.abc import Callable
from pathlib import Path

from loraserve.agent.config_map_watch import ConfigMapWatch
from loraserve.contract.desired_state import DesiredState
from loraserve.contract.last_good import LastGood

KUBELET_DELAY_SECONDS = 120.0
"""More than a mounted ConfigMap may be behind its object when the kubelet writes it."""


class DesiredDocument(LastGood[DesiredState]):
    def __init__(self, read: Callable[[], bytes]) -> None:
        """`read` returns the newest text, or raises OSError."""
        super().__init__("desired state", DesiredState.parse)
        self._read = read

    def renew(self) -> None:
        """Looks for a newer text."""
        self.refresh(self._read)


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
