"""One question with its answer, of a tenant who lets them be looked at: for the quality of a canary."""

from typing import Self

from loraserve.contract.document import Document
from loraserve.errors import LoraserveError


class InvalidSample(LoraserveError):
    """An object of samples breaks the schema."""


class Sample(Document):
    tenant: str
    caller: str
    """A digest of who was assigned to the version."""
    model: str
    """As callers name it."""
    version: str
    """That answered."""
    question: str
    """The messages, or the prompt, as JSON."""
    answer: str
    finish_reason: str | None = None

    def to_line(self) -> str:
        """Of JSON Lines."""
        return self.model_dump_json(by_alias=True)

    @classmethod
    def parse(cls, line: str | bytes) -> Self:
        """Raises InvalidSample."""
        return cls._parsed(line, InvalidSample)
