"""What is in force of a document that others write: a bad one never replaces a good one."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from loraserve.errors import LoraserveError
from loraserve.log import event

log = logging.getLogger(__name__)


class Summarized(Protocol):
    def summary(self) -> Mapping[str, object]:
        """For the log."""
        ...


T = TypeVar("T", bound=Summarized)


class LastGood(Generic[T]):
    def __init__(self, name: str, parse: Callable[[bytes], T]) -> None:
        """`name` is what people call the document; `parse` raises LoraserveError."""
        self._name = name
        self._parse = parse
        self._content: bytes | None = None
        self.value: T | None = None
        """The last good document; None before the first."""
        self.digest: str | None = None
        """SHA-256 of its text."""
        self.problem: str | None = None
        """Why the newest text is not followed; None if it is."""

    def refresh(self, read: Callable[[], bytes]) -> bool:
        """Takes the newest text, which `read` returns; where it raises OSError, that is the problem."""
        try:
            return self.take(read())
        except OSError as error:
            self.refuse(str(error))
            return False

    def take(self, content: bytes) -> bool:
        """Whether it was a change for the good. Texts are compared whole, so no change can be missed."""
        if content == self._content:
            return False
        try:
            self.value = self._parse(content)
        except LoraserveError as error:
            self.refuse(str(error))
            return False
        self._content, self.problem = content, None
        self.digest = hashlib.sha256(content).hexdigest()
        log.info(event(f"{self._name} read", **self.value.summary()))
        return True

    def refuse(self, problem: str) -> None:
        """Says once why the newest text is not followed."""
        if problem != self.problem:
            kept = "the last good one stays" if self.value else "none is in force yet"
            log.error(event(f"{self._name} refused", problem=problem, kept=kept))
        self._content, self.problem = None, problem
