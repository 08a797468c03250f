"""The desired-state document: which adapters, in which versions, one vLLM must serve.

`infra` writes it (a ConfigMap), the agent and the gateway follow it. An adapter's entry is the same here and in the
stack config. JSON keys are camelCase, Python names snake_case. Imports nothing beyond pydantic: `pulumi up` loads it.
"""

import json
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from loraserve.errors import LoraserveError

MAX_RANK = 512
ADAPTER_PREFIX = "llm-models"
"""Adapters lie under llm-models/{model}/{version}/ in the bucket."""
BASE_MODEL_PREFIX = "base-models"
"""Mirrored base weights lie under base-models/{hub id}/{version}/."""


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


class InvalidDesiredState(LoraserveError):
    """The document, or an adapter's entry, breaks the schema; the message names each field."""


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


class Adapter(Document):
    """One version of one adapter, as `loraserve publish` prints it."""

    name: AdapterName
    model: PathSegment
    version: PathSegment
    digest: Digest
    """SHA-256 of the version's manifest.json, which in turn holds the digest of every file."""
    rank: Rank
    target_modules: TargetModules
    size_bytes: Annotated[int, Field(strict=True, gt=0)]
    canary_percent: Annotated[int, Field(strict=True, ge=1, le=99)] | None = None
    """This share of the callers of `name` gets this version, the others that of the second entry with this name."""
    prewarm: Annotated[bool, Field(strict=True)] = False
    """Answer one request before traffic comes."""
    fallback: Literal["strict", "base"] = "strict"
    """What a caller gets while this adapter cannot answer: an error, or the base model's answer, marked as such."""

    @property
    def folder_name(self) -> str:
        """Of this version on a pod's disk; other bytes have another."""
        return f"{self.model}@{self.version}@{self.digest.removeprefix('sha256:')[:12]}"

    def version_pin(self) -> Self:
        """What is to be fetched and loaded, without how it is used: equal pins never need a second load."""
        return type(self)(**self.model_dump(exclude={"canary_percent", "prewarm", "fallback"}))


class Envelope(Document):
    """What vLLM was, or will be, started with: how many adapters it holds on the GPU, and which it takes at all."""

    slots: Annotated[int, Field(strict=True, ge=1)]
    rank: Rank
    target_modules: TargetModules

    def misfit(self, adapter: Adapter) -> str | None:
        """Why vLLM cannot take this adapter; None where it can. Slots do not count: vLLM swaps what is beyond them."""
        if adapter.rank > self.rank:
            return f"rank {adapter.rank} is larger than the {self.rank} that vLLM was started with"
        if strangers := sorted(set(adapter.target_modules) - set(self.target_modules)):
            return f"vLLM was started without LoRA on {', '.join(strangers)}"
        return None


class LoraShape(Document):
    """Where an adapter can change the base model: how many layers, and input and output width of each module."""

    num_hidden_layers: Annotated[int, Field(strict=True, gt=0)]
    modules: dict[ModuleName, tuple[PositiveInt, PositiveInt]]


class Mirror(Document):
    """The base model's weights in the bucket, as `loraserve mirror` prints them."""

    version: PathSegment
    digest: Digest
    """SHA-256 of the manifest.json, which in turn holds the digest of every file."""
    size_bytes: Annotated[int, Field(strict=True, gt=0)]

    @property
    def folder_name(self) -> str:
        """Of the weights on a pod's disk; other bytes have another."""
        return f"{self.version}@{self.digest.removeprefix('sha256:')[:12]}"


class Base(Document):
    """The base model all adapters share."""

    name: Annotated[str, StringConstraints(min_length=1)]
    """The id under which vLLM serves it."""
    accepted_ids: tuple[str, ...] = ()
    """What adapters may say they were trained on, besides `name`; empty: their tensors' shapes alone decide."""
    shape: LoraShape | None = None
    """None: not known, and not compared."""
    mirror: Mirror | None = None
    """Where its weights lie in the bucket; None: vLLM takes them from the hub."""


class DesiredState(Document):
    """Everything an agent needs to know; adapters are kept sorted by name and version."""

    schema_version: Literal[1] = 1
    base: Base
    bucket: BucketName
    region: str | None = None
    """AWS region of the bucket; None leaves it to the AWS SDK's environment."""
    adapters: tuple[Adapter, ...] = ()
    envelope: Envelope | None = None
    """What a vLLM started for this document has; None where LoRA is off."""

    @field_validator("adapters")
    @classmethod
    def _sort_and_check_names(cls, adapters: tuple[Adapter, ...], info: ValidationInfo) -> tuple[Adapter, ...]:
        check_names(adapters)
        base = info.data.get("base")
        if base and any(adapter.name == base.name for adapter in adapters):
            raise ValueError(f"adapter {base.name!r} has the base model's name; rename it")
        return tuple(sorted(adapters, key=lambda adapter: (adapter.name, adapter.version)))

    def to_json(self) -> str:
        """Canonical text: equal states give equal bytes, and a changed adapter is a small diff."""
        content = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps(content, indent=2, sort_keys=True) + "\n"

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Reads the JSON document. Raises InvalidDesiredState."""
        return cls._parsed(text, InvalidDesiredState)


def check_names(adapters: Iterable[Adapter]) -> None:
    """Names are unique, but for a stable version and its one canary. Raises ValueError."""
    versions: dict[str, list[Adapter]] = {}
    for adapter in adapters:
        versions.setdefault(adapter.name, []).append(adapter)
    for name, entries in versions.items():
        match sorted(entry.canary_percent is not None for entry in entries):
            case [False]:
                pass
            case [False, True]:
                if entries[0].version == entries[1].version:
                    raise ValueError(f"{name!r} is its own canary: give the entry with canaryPercent another version")
            case [True]:
                raise ValueError(f"{name!r} is a canary of nothing: add its stable version, or remove canaryPercent")
            case _:
                raise ValueError(
                    f"{len(entries)} adapters are named {name!r}: rename all but one, or give the newer of two versions a "
                    "canaryPercent"
                )


def served_name(adapter: Adapter) -> str:
    """The name vLLM serves this version under; no two versions ever share one."""
    return f"{adapter.name}@{adapter.version}"


def is_hub_id(text: str) -> bool:
    """Whether `text` can name a model in the bucket."""
    return re.fullmatch(_HUB_ID, text) is not None


def explain(error: ValidationError, root: str = "") -> str:
    """What is wrong, one line per field (`adapters[1].rank: ...`); `root` is put before each path."""
    return "\n".join(_explain_field(root, detail) for detail in error.errors(include_url=False))


def _explain_field(root: str, detail: ErrorDetails) -> str:
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
    shown = bool(path) and isinstance(detail["input"], str | int | float | None)
    given = f" (it is {detail['input']!r:.80})" if shown else ""
    return f"{path or 'document'}: {problem}{given}"
