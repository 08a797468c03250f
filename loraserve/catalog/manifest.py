"""manifest.json: what one published version consists of. The digest of its bytes is the version's identity."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator

from loraserve.catalog.files import FileEntry, digest_of
from loraserve.catalog.gate import FILE_LIMITS, AdapterFacts, UnsafeAdapter
from loraserve.contract.desired_state import Adapter, InvalidDesiredState
from loraserve.contract.document import Document, Rank, TargetModules, explain

MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20


MAX_PROBE_PROMPTS = 8
ProbePrompts = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=2000)], ...], Field(max_length=MAX_PROBE_PROMPTS)
]


class Manifest(Document):
    schema_version: Literal[1] = 1
    files: dict[str, FileEntry]
    base_model: str
    """The id PEFT recorded at training; often not the (quantised) model that serves."""
    rank: Rank
    alpha: float
    target_modules: TargetModules
    dtypes: tuple[str, ...]
    created_at: datetime
    probe_prompts: ProbePrompts = ()
    """On these the adapter's answer must differ from the base model's; () leaves the choice to the agent."""

    @field_validator("files")
    @classmethod
    def _names_the_peft_files(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        if set(files) != set(FILE_LIMITS):
            raise ValueError(f"must name exactly {' and '.join(FILE_LIMITS)}")
        for file, limit in FILE_LIMITS.items():
            if files[file].size > limit:
                raise ValueError(f"{file} has {files[file].size} bytes, more than the {limit} allowed")
        return files

    @classmethod
    def of(
        cls,
        facts: AdapterFacts,
        files: dict[str, FileEntry],
        created_at: datetime,
        probe_prompts: Sequence[str] = (),
    ) -> Self:
        """Raises InvalidDesiredState: probe prompts that no agent could use."""
        try:
            return cls(
                files=files,
                base_model=facts.base_model,
                rank=facts.rank,
                alpha=facts.alpha,
                target_modules=facts.target_modules,
                dtypes=facts.dtypes,
                created_at=created_at,
                probe_prompts=tuple(probe_prompts),
            )
        except ValidationError as error:
            raise InvalidDesiredState(explain(error)) from None

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Raises UnsafeAdapter."""
        return cls._parsed(content, lambda why: UnsafeAdapter(f"{MANIFEST_FILE} is not valid:\n{why}"))

    def to_json(self) -> bytes:
        """Canonical bytes."""
        return self._canonical()

    def facts(self) -> AdapterFacts:
        return AdapterFacts(
            base_model=self.base_model,
            rank=self.rank,
            alpha=self.alpha,
            target_modules=self.target_modules,
            dtypes=self.dtypes,
        )

    def entry(self, name: str, model: str, version: str) -> Adapter:
        """What the stack config is to say of this version. Raises InvalidDesiredState: a bad name."""
        try:
            return Adapter(
                name=name,
                model=model,
                version=version,
                digest=digest_of(self.to_json()),
                rank=self.rank,
                target_modules=self.target_modules,
                size_bytes=self.size_bytes,
            )
        except ValidationError as error:
            raise InvalidDesiredState(explain(error)) from None

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files.values())

    def check_entry(self, adapter: Adapter) -> None:
        """vLLM's start-up flags are computed from the stack config, so its entry must tell the truth.

        Raises UnsafeAdapter.
        """
        published = {"rank": self.rank, "targetModules": self.target_modules, "sizeBytes": self.size_bytes}
        entry = {"rank": adapter.rank, "targetModules": adapter.target_modules, "sizeBytes": adapter.size_bytes}
        for key, value in published.items():
            if entry[key] != value:
                raise UnsafeAdapter(
                    f"the stack config says {key} {entry[key]}, the published version has {value}; "
                    "paste the entry that `loraserve publish` printed"
                )
