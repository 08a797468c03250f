"""The base model's weights, mirrored to the bucket: immutable versions, verified whenever they are read.

    base-models/{hub id}/{version}/config.json, *.safetensors, the tokenizer's files, manifest.json

As with adapters the manifest is uploaded last and so commits the version; equal files give an equal manifest.
"""

import json
import os
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError, field_validator

from loraserve.catalog.bucket import Bucket, DigestMismatch, OnProgress, VersionExists
from loraserve.catalog.files import (
    MAX_FILE_BYTES,
    PARTIAL_PREFIX,
    FileEntry,
    UnsafeFile,
    check_room,
    digest_of,
    open_regular,
    put_in_place,
    write,
)
from loraserve.catalog.manifest import MANIFEST_FILE
from loraserve.contract.addresses import BASE_MODEL_PREFIX
from loraserve.contract.base_model import Mirror
from loraserve.contract.desired_state import InvalidDesiredState
from loraserve.contract.document import Document, HubId, PathSegment, explain

CONFIG_FILE = "config.json"
WEIGHTS_SUFFIX = ".safetensors"
DATA_SUFFIXES = {WEIGHTS_SUFFIX, ".json", ".jinja", ".txt", ".model", ".tiktoken"}
"""What vLLM reads and nothing runs: pickles and Python files are no data."""
MAX_MANIFEST_BYTES = 8 << 20
MAX_HEADER_BYTES = 100 << 20


class BaseManifest(Document):
    schema_version: Literal[1] = 1
    model: HubId
    version: PathSegment
    files: dict[PathSegment, FileEntry]

    @field_validator("files")
    @classmethod
    def _a_whole_model(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        if strange := [file for file in files if Path(file).suffix not in DATA_SUFFIXES]:
            raise ValueError(f"names {strange[0]!r}, which is not data that vLLM reads")
        if CONFIG_FILE not in files:
            raise ValueError(f"must name {CONFIG_FILE}; give the folder of one whole model")
        if not any(file.endswith(WEIGHTS_SUFFIX) for file in files):
            raise ValueError(f"must name a file *{WEIGHTS_SUFFIX}; convert the weights, pickles are not served")
        return files

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Raises UnsafeFile."""
        return cls._parsed(content, lambda why: UnsafeFile(f"{MANIFEST_FILE} is not valid:\n{why}"))

    def to_json(self) -> bytes:
        """Canonical bytes."""
        return self._canonical()

    @property
    def mirror(self) -> Mirror:
        """The stack-config entry."""
        return Mirror(version=self.version, digest=digest_of(self.to_json()), size_bytes=self.size_bytes)

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files.values())

    def key(self, file: str) -> str:
        return base_key(self.model, self.version, file)


def mirror(bucket: Bucket, folder: Path, model: str, version: str, progress: OnProgress = lambda *_: None) -> Mirror:
    """Uploads a model's folder and returns the stack-config entry; what is no data is left out.

    An interrupted upload of the same bytes is taken up again.
    Raises UnsafeFile, InvalidDesiredState (a bad name), VersionExists, CatalogUnavailable.
    """
    paths = data_files(folder)
    for path in paths:
        if path.suffix == WEIGHTS_SUFFIX:
            _check_whole(path)
    files = {path.name: FileEntry.read(path) for path in paths}
    try:
        manifest = BaseManifest(model=model, version=version, files=files)
    except ValidationError as error:
        raise InvalidDesiredState(explain(error)) from None
    content = manifest.to_json()
    if bucket.exists(manifest.key(MANIFEST_FILE)):
        if bucket.read(manifest.key(MANIFEST_FILE), MAX_MANIFEST_BYTES) != content:
            raise VersionExists(f"{bucket.url(manifest.key(''))} holds other bytes; mirror under a new version")
        return manifest.mirror
    for file, entry in files.items():
        bucket.upload(manifest.key(file), folder / file, entry, progress)
    bucket.create(manifest.key(MANIFEST_FILE), content)
    return manifest.mirror


def data_files(folder: Path) -> list[Path]:
    """What `mirror` uploads of a folder. Raises UnsafeFile."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in DATA_SUFFIXES and path.name != MANIFEST_FILE)
    except OSError as error:
        raise UnsafeFile(f"{folder} cannot be read: {error.strerror}; give the folder of one whole model") from None


def _check_whole(path: Path) -> None:
    """Notices a download that was cut short, before a pod does. Raises UnsafeFile."""
    with open_regular(path, MAX_FILE_BYTES) as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(header_bytes, MAX_HEADER_BYTES)))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            promised = 8 + header_bytes + max(ends)
        except (ValueError, TypeError, LookupError, AttributeError):
            promised = None
        if promised != file.seek(0, os.SEEK_END):
            raise UnsafeFile(f"{path.name} is no safetensors file, or cut short; download it again")


def fetch(bucket: Bucket, model: str, wanted: Mirror, folder: Path, progress: OnProgress = lambda *_: None) -> None:
    """Makes `folder` hold the mirrored weights, whole or not at all; goes on where a killed fetch stopped.

    Raises ObjectMissing, DigestMismatch, UnsafeFile, DiskFull, CatalogUnavailable; OSError when the disk fails.
    """
    content = _read_manifest(bucket, model, wanted)
    manifest = BaseManifest.parse(content)
    if manifest.size_bytes != wanted.size_bytes:
        raise UnsafeFile(
            f"the stack config says sizeBytes {wanted.size_bytes}, the mirror has {manifest.size_bytes}; "
            "paste what `loraserve mirror` printed"
        )
    partial = folder.with_name(PARTIAL_PREFIX + folder.name)
    partial.mkdir(parents=True, exist_ok=True)
    missing = wanted.size_bytes - sum(path.stat().st_blocks * 512 for path in partial.iterdir())
    check_room(partial, missing)
    for file, entry in manifest.files.items():
        bucket.download(manifest.key(file), entry, partial / file, progress)
    write(partial / MANIFEST_FILE, content)
    put_in_place(partial, folder)


def is_complete(folder: Path) -> bool:
    """Only a finished fetch is renamed to `folder`, whose name tells the manifest's digest."""
    return (folder / MANIFEST_FILE).is_file()


def base_key(model: str, version: str, file: str) -> str:
    return f"{BASE_MODEL_PREFIX}/{model}/{version}/{file}"


def _read_manifest(bucket: Bucket, model: str, wanted: Mirror) -> bytes:
    key = base_key(model, wanted.version, MANIFEST_FILE)
    content = bucket.read(key, MAX_MANIFEST_BYTES)
    if digest_of(content) != wanted.digest:
        raise DigestMismatch(
            f"{bucket.url(key)} has digest {digest_of(content)}, the stack config pins {wanted.digest}; "
            "paste what `loraserve mirror` printed for this version"
        )
    return content
