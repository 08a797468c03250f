"""manifest.json: what one published version consists of. The digest of its bytes is the version's identity.

There are two kinds, of adapters and of base models. What is published stays: a field that is added needs a default.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, field_validator, model_serializer

from loraserve.catalog.files import FileEntry, UnsafeFile, digest_of
from loraserve.catalog.gate import FILE_LIMITS, AdapterFacts, UnsafeAdapter
from loraserve.contract.addresses import MANIFEST_FILE as MANIFEST_FILE
from loraserve.contract.base_model import Mirror, StartCache
from loraserve.contract.desired_state import Adapter, InvalidDesiredState
from loraserve.contract.document import Document, HubId, PathSegment, explain

MAX_MANIFEST_BYTES = 8 << 20

BASE_CONFIG_FILE = "config.json"
WEIGHTS_SUFFIX = ".safetensors"
DATA_SUFFIXES = {WEIGHTS_SUFFIX, ".json", ".jinja", ".txt", ".model", ".tiktoken"}
"""What vLLM reads of a base model and nothing runs: pickles and Python files are no data."""

START_CACHE_FILE = "start-cache.tar"

MAX_PROBE_PROMPTS = 8
ProbePrompts = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=2000)], ...], Field(max_length=MAX_PROBE_PROMPTS)
]


class Manifest(Document):
    """What both kinds have in common."""

    refusal: ClassVar[type[UnsafeFile]] = UnsafeFile
    repeated: ClassVar[set[str]] = set()
    """Fields that the stack config's entry repeats, besides the size."""

    schema_version: Literal[1] = 1
    files: dict[PathSegment, FileEntry]

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Raises InvalidDesiredState: what a publisher gave is not valid."""
        try:
            return cls(**fields)
        except ValidationError as error:
            raise InvalidDesiredState(explain(error)) from None

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Raises UnsafeFile."""
        return cls._parsed(content, lambda why: cls.refusal(f"{MANIFEST_FILE} is not valid:\n{why}"))

    def to_json(self) -> bytes:
        """Canonical bytes, as they are published."""
        return self._canonical()

    def says_the_same(self, published: Manifest) -> bool:
        """Whether both are of one content, whenever they were written."""
        return self == published

    @property
    def digest(self) -> str:
        """Of a manifest that is being published; one that was read may have been written in other words."""
        return digest_of(self.to_json())

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files.values())

    def check_entry(self, entry: Adapter | Mirror) -> None:
        """What is computed from the stack config is only as true as its entry. Raises UnsafeFile."""
        told = entry.model_dump(mode="json", by_alias=True)
        published = self.model_dump(mode="json", by_alias=True, include=self.repeated)
        for key, value in {**published, "sizeBytes": self.size_bytes}.items():
            if told[key] != value:
                raise self.refusal(
                    f"the stack config says {key} {told[key]}, the published version has {value}; "
                    "paste the entry that `loraserve show` prints for it"
                )


class AdapterManifest(Manifest, AdapterFacts):
    refusal: ClassVar = UnsafeAdapter
    repeated: ClassVar = {"rank", "target_modules"}

    created_at: datetime | None = None
    """Of versions that were published while it was part of their identity; equal bytes have one digest since."""
    probe_prompts: ProbePrompts = ()
    """On these the adapter's answer must differ from the base model's; () leaves the choice to the agent."""

    @model_serializer(mode="wrap")
    def _without_a_time(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {field: value for field, value in write(self).items() if field != "createdAt" or value is not None}

    def says_the_same(self, published: Manifest) -> bool:
        return super().says_the_same(published.model_copy(update={"created_at": self.created_at}))

    @field_validator("files")
    @classmethod
    def _names_the_peft_files(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        if set(files) != set(FILE_LIMITS):
            raise ValueError(f"must name exactly {' and '.join(FILE_LIMITS)}")
        for file, limit in FILE_LIMITS.items():
            if files[file].size > limit:
                raise ValueError(f"{file} has {files[file].size} bytes, more than the {limit} allowed")
        return files

    @property
    def facts(self) -> AdapterFacts:
        return AdapterFacts(**{field: getattr(self, field) for field in AdapterFacts.model_fields})

    def entry(self, name: str, model: str, version: str, digest: str) -> Adapter:
        """What the stack config is to say of this version. Raises InvalidDesiredState: a bad name."""
        try:
            return Adapter(
                name=name,
                model=model,
                version=version,
                digest=digest,
                rank=self.rank,
                target_modules=self.target_modules,
                size_bytes=self.size_bytes,
            )
        except ValidationError as error:
            raise InvalidDesiredState(explain(error)) from None


class BaseManifest(Manifest):
    model: HubId
    version: PathSegment

    @field_validator("files")
    @classmethod
    def _a_whole_model(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        if strange := [file for file in files if Path(file).suffix not in DATA_SUFFIXES]:
            raise ValueError(f"names {strange[0]!r}, which is not data that vLLM reads")
        if BASE_CONFIG_FILE not in files:
            raise ValueError(f"must name {BASE_CONFIG_FILE}; give the folder of one whole model")
        if not any(file.endswith(WEIGHTS_SUFFIX) for file in files):
            raise ValueError(f"must name a file *{WEIGHTS_SUFFIX}; convert the weights, pickles are not served")
        return files

    def entry(self, digest: str) -> Mirror:
        """What the stack config is to say of this version."""
        return Mirror(version=self.version, digest=digest, size_bytes=self.size_bytes)


class StartCacheManifest(Manifest):
    version: PathSegment

    @field_validator("files")
    @classmethod
    def _one_archive(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        if list(files) != [START_CACHE_FILE]:
            raise ValueError(f"must name {START_CACHE_FILE} and nothing else")
        return files

    def entry(self, digest: str) -> StartCache:
        """What the stack config is to say of it."""
        return StartCache(version=self.version, digest=digest, size_bytes=self.size_bytes)
