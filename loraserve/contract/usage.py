"""What tenants used on a day, as one gateway process has counted it."""

from typing import Literal, Self

from loraserve.contract.document import Document
from loraserve.errors import LoraserveError


class InvalidUsage(LoraserveError):
    """An object of the usage ledger breaks the schema."""


class Used(Document):
    tenant: str
    model: str
    """As callers name it."""
    version: str
    """That answered; `base`: the base model did, also in an adapter's stead."""
    requests: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class UsageDay(Document):
    """All that a process has counted on one day (UTC) until it wrote this: a later one of the same process takes its place."""

    schema_version: Literal[1] = 1
    used: tuple[Used, ...] = ()

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True)

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Raises InvalidUsage."""
        return cls._parsed(text, InvalidUsage)
