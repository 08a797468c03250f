"""The rows of an evaluation: JSON Lines of question, context, reference and category."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import Field, StringConstraints, ValidationError, model_validator

from loraserve.catalog.files import digest_of
from loraserve.contract.document import Document, explain
from loraserve.errors import LoraserveError, reason

SHOWN_PROBLEMS = 10

Text = Annotated[str, StringConstraints(min_length=1)]
D = TypeVar("D", bound=Document)


class InvalidEvaluation(LoraserveError):
    """The evaluation cannot be run as it is; nothing was asked."""


class Row(Document):
    question: Text
    context: Text | None = None
    reference: Text | Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    """The right answer, or several that are as good."""
    category: Text = "all"
    document: Text | None = None
    """Where it comes from; rows of one document are no independent ones. Without it, those with equal context are taken
    as such."""
    answerable: bool = True
    """False, a negative example: the context lacks the answer, and saying so is right."""

    @model_validator(mode="after")
    def _has_a_right_answer(self) -> Self:
        if self.answerable and self.reference is None:
            raise ValueError(
                "reference: is missing; add it, or `answerable: false` where the right answer is that there is none"
            )
        return self

    @property
    def references(self) -> tuple[str, ...]:
        return (self.reference,) if isinstance(self.reference, str) else self.reference or ()

    @property
    def key(self) -> str:
        """What no two rows share."""
        return hashlib.sha256(json.dumps([self.question, self.context]).encode()).hexdigest()[:12]

    @property
    def cluster(self) -> str:
        return f"document {self.document}" if self.document else f"context {self.context}" if self.context else self.key


@dataclass(frozen=True)
class Rows:
    rows: tuple[Row, ...]

    @cached_property
    def digest(self) -> str:
        """Of what the rows say, in whatever order and spelling of JSON."""
        lines = sorted(json.dumps(row.model_dump(mode="json"), sort_keys=True) for row in self.rows)
        return digest_of("\n".join(lines).encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises InvalidEvaluation with every problem's line."""
        rows = read_lines(path, Row)
        seen: dict[str, int] = {}
        repeated = [
            f"line {number}: repeats line {seen[row.key]}"
            for number, row in rows
            if seen.setdefault(row.key, number) != number
        ]
        refuse(path, repeated)
        return cls(tuple(row for _, row in rows))


def read_lines(path: Path, schema: type[D], refusal: type[LoraserveError] = InvalidEvaluation) -> list[tuple[int, D]]:
    """(line number, document). Raises the refusal with every problem's line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would cut at a U+2028 in a text
    except (OSError, UnicodeDecodeError) as error:
        raise refusal(f"{path} cannot be read: {reason(error)}") from None
    found, problems = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append((number, schema.model_validate_json(line, by_alias=True, by_name=False)))
            except ValidationError as error:
                told = explain(error).replace("\n", "; ")
                problems.append(f"line {number}: {told}")
    refuse(path, problems or ([] if found else ["it has no rows"]), refusal)
    return found


def refuse(path: Path, problems: Sequence[str], refusal: type[LoraserveError] = InvalidEvaluation) -> None:
    if problems:
        more = [f"and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
        raise refusal("\n  ".join([f"{path}:", *problems[:SHOWN_PROBLEMS], *more]))
