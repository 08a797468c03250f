"""One version with all that is known of it, as it goes from one bucket to another: over this disk, or as a file.

    bundle.json, version/manifest.json, version/{files}, evaluations/{n}.json, lineage/{n}.json

The file is for accounts that must not see each other. Whoever takes it in has its SHA-256 from whoever made it, and
every byte is verified again.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from loraserve.catalog import evaluations, lineage, versions
from loraserve.catalog.bucket import Bucket
from loraserve.catalog.files import FileEntry, OnProgress, UnsafeFile
from loraserve.catalog.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, AdapterManifest, BaseManifest, Manifest
from loraserve.catalog.versions import VersionId
from loraserve.contract.base_model import Mirror
from loraserve.contract.desired_state import Adapter
from loraserve.contract.document import Document, HubId
from loraserve.contract.evaluation import Verdict
from loraserve.contract.served_name import ServedName

_INDEX = "bundle.json"
_VERSION, _VERDICTS, _LINEAGE = "version/", "evaluations/", "lineage/"
_MAX_DOCUMENTS = 10_000
Check = Callable[[Any, Path], None]
"""Told a manifest and the folder with its files; raises UnsafeFile."""


class BadBundle(UnsafeFile):
    """The file is not a bundle, or not the one that was announced; the message says which."""


class Candidate(Document):
    """A version that is to be served elsewhere: an adapter's, or that of a whole model."""

    schema_version: Literal[1] = 1
    adapter: Adapter | None = None
    model: HubId | None = None
    mirror: Mirror | None = None
    """Of that model."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.adapter is None) != (self.mirror is not None and self.model is not None):
            raise ValueError("must be an adapter, or a model and its mirror")
        return self

    @classmethod
    def parse(cls, content: bytes, where: str) -> Self:
        """Raises BadBundle."""
        return cls._parsed(content, lambda why: BadBundle(f"{where} names no version:\n{why}"))

    @property
    def entry(self) -> Adapter | Mirror:
        """What a stack file says of it."""
        entry = self.adapter or self.mirror
        assert entry
        return entry

    @property
    def name(self) -> str:
        """As callers and evaluations name it."""
        return self.adapter.name if self.adapter else str(self.model)

    @property
    def id(self) -> VersionId:
        if self.adapter:
            return VersionId.of_adapter(self.adapter)
        return VersionId.of_base(self.name, self.entry.version)

    @property
    def manifest_schema(self) -> type[Manifest]:
        return AdapterManifest if self.adapter else BaseManifest

    def __str__(self) -> str:
        return ServedName.of(self.name, self.entry.version)


@dataclass(frozen=True)
class Bundle:
    """`folder` has manifest.json and the files, all verified."""

    candidate: Candidate
    folder: Path
    verdicts: tuple[Verdict, ...]
    """On this name and version, the newest last."""
    records: tuple[lineage.Record, ...]

    def deliver(self, bucket: Bucket, evaluator: Bucket, progress: OnProgress) -> None:
        """Puts all of it into another bucket, in which nothing is ever overwritten, and reads the bytes again there.

        `evaluator` is the same bucket for the role that may write evaluations.
        Raises VersionExists, ObjectMissing, DigestMismatch, CatalogUnavailable (also where only another role may write).
        """
        versions.deliver(bucket, self.candidate.id, self.folder, self.candidate.manifest_schema, progress)
        for verdict in self.verdicts:
            if verdict.candidate.digest == self.candidate.entry.digest:
                evaluations.write_verdict(evaluator, verdict)
        lineage.add(bucket, self.candidate.id, self.records)

    def pack(self, file: Path) -> str:
        """Writes the bundle as one new file; returns its SHA-256. Raises BadBundle."""
        partial = file.with_name(f".{file.name}.partial")
        try:
            if file.exists():
                raise BadBundle(f"{file} exists; name a new file")
            with tarfile.open(partial, "w") as tar:
                for name, content in self._documents():
                    tar.addfile(_member(name, len(content)), io.BytesIO(content))
                for path in sorted(self.folder.iterdir()):
                    if path.name != MANIFEST_FILE:
                        with path.open("rb") as source:
                            tar.addfile(_member(_VERSION + path.name, path.stat().st_size), source)
            digest = digest_of_file(partial)
            partial.rename(file)
        except OSError as error:
            raise BadBundle(f"{file} cannot be written: {error.strerror}") from None
        finally:
            partial.unlink(missing_ok=True)
        return digest

    def _documents(self) -> Iterator[tuple[str, bytes]]:
        yield _INDEX, self.candidate.model_dump_json(by_alias=True).encode()
        yield _VERSION + MANIFEST_FILE, (self.folder / MANIFEST_FILE).read_bytes()
        for number, verdict in enumerate(self.verdicts):
            yield f"{_VERDICTS}{number}.json", verdict.to_json()
        for number, record in enumerate(self.records):
            yield f"{_LINEAGE}{number}.json", record.to_json()


def collect(
    bucket: Bucket,
    candidate: Candidate,
    verdicts: tuple[Verdict, ...],
    into: Path,
    check: Check,
    progress: OnProgress,
) -> Bundle:
    """Fetches the version that the entry pins and verifies every byte; `check` sees the files before they count.

    Raises what `versions.fetch` does, InvalidLineage.
    """
    partial, folder = into / "partial", into / "version"
    records = lineage.read(bucket, candidate.id)
    versions.fetch(
        bucket,
        candidate.id,
        candidate.entry,
        candidate.manifest_schema,
        partial,
        folder,
        check=lambda manifest: check(manifest, partial),
        progress=progress,
    )
    return Bundle(candidate, folder, verdicts, records)


def verdicts_of(bucket: Bucket, candidate: Candidate) -> tuple[Verdict, ...]:
    """All on this name and version, of other bytes as well, the newest last. Raises InvalidVerdict, CatalogUnavailable."""
    return tuple(evaluations.read_verdicts(bucket, candidate.name, candidate.entry.version))


def unpack(file: Path, digest: str, into: Path, check: Check) -> Bundle:
    """The bundle that was announced as `digest`, unpacked and verified. Raises BadBundle, UnsafeFile."""
    found = digest_of_file(file)
    if found != digest:
        raise BadBundle(f"{file} has digest {found}, announced was {digest}: it is not the bundle that was exported")
    folder = into / "version"
    folder.mkdir()
    try:
        with tarfile.open(file, "r:") as tar:
            documents = _take_apart(tar, folder)
    except (tarfile.TarError, EOFError) as error:
        raise BadBundle(f"{file} is no bundle of `loraserve export`: {error}") from None
    candidate = Candidate.parse(documents.get(_INDEX, b""), f"{_INDEX} in {file}")
    content = documents.get(_VERSION + MANIFEST_FILE, b"")
    versions.check_pinned(content, candidate.entry.digest, f"the manifest in {file}")
    manifest = candidate.manifest_schema.parse(content)
    manifest.check_entry(candidate.entry)
    _check_files(folder, manifest, file)
    check(manifest, folder)
    (folder / MANIFEST_FILE).write_bytes(content)
    return Bundle(
        candidate,
        folder,
        tuple(Verdict.parse(each) for each in _all(documents, _VERDICTS)),
        tuple(lineage.Record.parse(each, str(file)) for each in _all(documents, _LINEAGE)),
    )


def digest_of_file(file: Path) -> str:
    """Raises BadBundle."""
    try:
        with file.open("rb") as source:
            return f"sha256:{hashlib.file_digest(source, 'sha256').hexdigest()}"
    except OSError as error:
        raise BadBundle(f"{file} cannot be read: {error.strerror}") from None


def _take_apart(tar: tarfile.TarFile, folder: Path) -> dict[str, bytes]:
    """The documents by name; the version's files go to `folder`. No name in a bundle is used as a path."""
    documents: dict[str, bytes] = {}
    for member in tar:
        source = tar.extractfile(member) if member.isreg() else None
        is_file = member.name.startswith(_VERSION) and member.name != _VERSION + MANIFEST_FILE
        plain = member.name.removeprefix(_VERSION)
        if source is None or member.name in documents or len(documents) > _MAX_DOCUMENTS:
            raise BadBundle(f"it holds {member.name!r}, which `loraserve export` does not make")
        if is_file:
            if not plain or plain.startswith(".") or "/" in plain or (folder / plain).exists():
                raise BadBundle(f"it holds {member.name!r}, which names no file of a version")
            with (folder / plain).open("wb") as target:
                shutil.copyfileobj(source, target)
        elif member.size > MAX_MANIFEST_BYTES:
            raise BadBundle(f"{member.name} has {member.size} bytes, {MAX_MANIFEST_BYTES} are allowed")
        else:
            documents[member.name] = source.read()
    return documents


def _check_files(folder: Path, manifest: Manifest, file: Path) -> None:
    """Raises BadBundle."""
    there = {path.name for path in folder.iterdir()}
    if there != set(manifest.files):
        raise BadBundle(f"{file}: its manifest names {', '.join(sorted(manifest.files))}; it holds {sorted(there)}")
    for name, entry in manifest.files.items():
        if FileEntry.read(folder / name) != entry:
            raise BadBundle(f"{file}: {name} holds other bytes than its manifest says; export it again")


def _all(documents: dict[str, bytes], prefix: str) -> Sequence[bytes]:
    return [content for name, content in documents.items() if name.startswith(prefix)]


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o644
    return member
