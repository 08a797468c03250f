"""A version in the bucket, of an adapter or a base model: published once, fetched whole, verified whenever it is read.

    llm-models/{model}/{version}/adapter_config.json, adapter_model.safetensors, manifest.json
    base-models/{hub id}/{version}/config.json, *.safetensors, the tokenizer's files, manifest.json

The manifest holds the digest of every file, is uploaded last and so commits the version; its own digest is what the
stack config pins. Nothing is ever overwritten: each object is created with `If-None-Match: *`.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from loraserve.catalog.bucket import Bucket, DigestMismatch, VersionExists
from loraserve.catalog.files import OnProgress, UnsafeFile, check_room, digest_of, put_in_place, write
from loraserve.catalog.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest
from loraserve.contract.addresses import ADAPTER_PREFIX, BASE_MODEL_PREFIX, version_key
from loraserve.contract.base_model import Mirror
from loraserve.contract.desired_state import Adapter

M = TypeVar("M", bound=Manifest)


@dataclass(frozen=True, order=True)
class VersionId:
    """`kind` is the prefix in the bucket: of adapters, or of base models."""

    kind: str
    model: str
    version: str

    @classmethod
    def of_adapter(cls, adapter: Adapter) -> Self:
        return cls(ADAPTER_PREFIX, adapter.model, adapter.version)

    @classmethod
    def of_base(cls, model: str, version: str) -> Self:
        return cls(BASE_MODEL_PREFIX, model, version)

    def key(self, file: str = "") -> str:
        return version_key(self.kind, self.model, self.version, file)

    def __str__(self) -> str:
        return f"{self.model} {self.version}"


def publish(bucket: Bucket, id: VersionId, folder: Path, manifest: Manifest, progress: OnProgress) -> str:
    """Uploads the files that the manifest names, then the manifest; returns the version's digest.

    An interrupted publish is taken up again, and one of what is there already changes nothing. Raises VersionExists,
    CatalogUnavailable.
    """
    content, committed = manifest.to_json(), id.key(MANIFEST_FILE)
    if bucket.exists(committed):
        published = bucket.read(committed, MAX_MANIFEST_BYTES)
        with suppress(UnsafeFile):
            if manifest.says_the_same(type(manifest).parse(published)):
                return digest_of(published)
        raise VersionExists(f"{bucket.url(id.key())} is published already; publish as a new version, such as 'v2'")
    _upload(bucket, id, folder, manifest, content, progress)
    return manifest.digest


def deliver(bucket: Bucket, id: VersionId, folder: Path, schema: type[Manifest], progress: OnProgress) -> None:
    """Uploads a folder that `fetch` has filled, manifest included, to another bucket; every byte is read again there.

    What is there already with equal bytes stays. Raises VersionExists, ObjectMissing, DigestMismatch, CatalogUnavailable.
    """
    content = (folder / MANIFEST_FILE).read_bytes()
    manifest = schema.parse(content)
    _upload(bucket, id, folder, manifest, content, progress)
    for file, entry in manifest.files.items():
        bucket.verify(id.key(file), entry, progress)


def _upload(
    bucket: Bucket, id: VersionId, folder: Path, manifest: Manifest, content: bytes, progress: OnProgress
) -> None:
    for file, entry in manifest.files.items():
        bucket.upload(id.key(file), folder / file, entry, progress)
    bucket.create(id.key(MANIFEST_FILE), content)


def fetch(
    bucket: Bucket,
    id: VersionId,
    entry: Adapter | Mirror,
    schema: type[M],
    partial: Path,
    folder: Path,
    check: Callable[[M], None] = lambda _: None,
    progress: OnProgress = lambda *_: None,
) -> None:
    """Makes `folder` hold exactly the version that the stack config's entry pins, whole or not at all.

    Files arrive in `partial`, where good parts of an earlier attempt stay, and are shown to `check` before they move.
    Raises ObjectMissing, DigestMismatch, UnsafeFile, DiskFull, CatalogUnavailable; OSError when the disk fails.
    """
    content = pinned_manifest(bucket, id, entry.digest)
    manifest = schema.parse(content)
    manifest.check_entry(entry)
    partial.mkdir(parents=True, exist_ok=True)
    check_room(partial, manifest.size_bytes - sum(path.stat().st_blocks * 512 for path in partial.iterdir()))
    for file, described in manifest.files.items():
        bucket.download(id.key(file), described, partial / file, progress)
    check(manifest)
    write(partial / MANIFEST_FILE, content)
    if not holds(folder, entry.digest):  # another fetch of the same bytes may have been faster
        put_in_place(partial, folder)


def holds(folder: Path, digest: str) -> bool:
    """Whether `folder` is the version with this digest: only a whole one appears under its name."""
    try:
        return digest_of((folder / MANIFEST_FILE).read_bytes()) == digest
    except FileNotFoundError:
        return False


def pinned_manifest(bucket: Bucket, id: VersionId, digest: str) -> bytes:
    """With the digest that the stack config pins. Raises ObjectMissing, DigestMismatch, CatalogUnavailable."""
    content = bucket.read(id.key(MANIFEST_FILE), MAX_MANIFEST_BYTES)
    check_pinned(content, digest, bucket.url(id.key(MANIFEST_FILE)))
    return content


def check_pinned(manifest: bytes, digest: str, where: str) -> None:
    """Raises DigestMismatch."""
    if digest_of(manifest) != digest:
        raise DigestMismatch(
            f"{where} has digest {digest_of(manifest)}, the stack config pins {digest}; "
            "paste the entry that `loraserve show` prints for this version"
        )
