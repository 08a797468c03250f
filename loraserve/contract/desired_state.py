"""The desired-state document: which adapters, in which versions, one vLLM must serve.

`infra` writes it (a ConfigMap), the agent and the gateway follow it. An adapter's entry is the same here and in the
stack config.
"""

import json
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from loraserve.contract.base_model import Base, StartCache
from loraserve.contract.document import AdapterName, BucketName, Digest, Document, PathSegment, Rank, TargetModules
from loraserve.contract.served_name import ServedName
from loraserve.errors import LoraserveError


class InvalidDesiredState(LoraserveError):
    """The document, or an adapter's entry, breaks the schema; the message names each field."""


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
    def served_name(self) -> ServedName:
        """Under which vLLM serves this version."""
        return ServedName.of(self.name, self.version)

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
    start_cache: StartCache | None = None
    """Where what vLLM compiles lies in the bucket; None: it compiles."""

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

    def summary(self) -> dict[str, object]:
        """For the log."""
        return {"base": self.base.name, "adapters": len(self.adapters)}

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
