"""The kit of every JSON document that crosses a boundary: its base class, the words its fields are made of, its errors.

JSON keys are camelCase, Python names snake_case. Imports nothing beyond pydantic: `pulumi up` loads it.
"""

import json
import re
from collections.abc import Callable, Collection
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from loraserve.errors import LoraserveError

MAX_RANK = 512


def _matching(pattern: str, meaning: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {meaning}")
        return value

    return AfterValidator(check)


_HUB_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?"

AdapterName = Annotated[
    str,
    _matching(
        r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        "lower-case letters, digits and inner hyphens, at most 63 characters, such as 'aws-rag-qa'",
    ),
]
PathSegment = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?",
        "letters, digits and inner dots, hyphens or underscores, at most 63 characters, such as 'v1'",
    ),
]
HubId = Annotated[str, _matching(_HUB_ID, "a model's id on its hub, such as 'mistralai/Mistral-7B-v0.1'")]
Digest = Annotated[
    str, _matching(r"sha256:[0-9a-f]{64}", "'sha256:' and 64 hexadecimal digits, as `loraserve publish` prints it")
]
Sha256Hex = Annotated[str, _matching(r"[0-9a-f]{64}", "64 hexadecimal digits")]
BucketName = Annotated[str, _matching(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "the name of an S3 bucket, without 's3://'")]
ModuleName = Annotated[str, _matching(r"[A-Za-z_][A-Za-z0-9_]*", "the last part of a layer's name, such as 'q_proj'")]
Rank = Annotated[int, Field(strict=True, ge=1, le=MAX_RANK)]


def _sorted_unique(modules: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(modules)))


TargetModules = Annotated[tuple[ModuleName, ...], Field(min_length=1), AfterValidator(_sorted_unique)]
"""Kept sorted and without repeats."""


class Document(BaseModel):
    """Base of every JSON document here: frozen, unknown keys refused, camelCase outside."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, validate_by_name=True)

    @classmethod
    def _parsed(cls, text: str | bytes, refusal: Callable[[str], LoraserveError]) -> Self:
        """Reads JSON; what breaks the schema raises the refusal, told each field's problem."""
        try:
            return cls.model_validate_json(text, by_alias=True, by_name=False)
        except ValidationError as error:
            raise refusal(explain(error)) from None

    def _canonical(self) -> bytes:
        """JSON in which equal documents have equal bytes."""
        content = self.model_dump(mode="json", by_alias=True)
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def is_hub_id(text: str) -> bool:
    """Whether `text` can name a model in the bucket."""
    return re.fullmatch(_HUB_ID, text) is not None


def explain(error: ValidationError, root: str = "", secret: Collection[str] = ()) -> str:
    """What is wrong, one line per field (`adapters[1].rank: ...`); `root` is put before each path.

    No value is shown below the `secret` fields, where a misspelt key may hold one.
    """
    return "\n".join(_explain_field(root, secret, detail) for detail in error.errors(include_url=False))


def _explain_field(root: str, secret: Collection[str], detail: ErrorDetails) -> str:
    path = root
    for part in detail["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    match detail["type"]:
        case "missing":
            problem = "is missing; add it"
        case "extra_forbidden":
            problem = "is not a known key; correct its spelling or remove it"
        case "tuple_type":
            problem = "must be a list"
        case "value_error":
            problem = detail["msg"].removeprefix("Value error, ")
        case _:
            problem = detail["msg"]
    shown = bool(path) and detail["loc"][0] not in secret and isinstance(detail["input"], str | int | float | None)
    given = f" (it is {detail['input']!r:.80})" if shown else ""
    return f"{path or 'document'}: {problem}{given}"
