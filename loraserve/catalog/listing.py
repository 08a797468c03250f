"""What the bucket holds: versions of adapters and of mirrored base models alike, read and compared."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from loraserve.catalog.bucket import Bucket, DigestMismatch, ObjectMissing
from loraserve.catalog.files import OnProgress, digest_of
from loraserve.catalog.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, AdapterManifest, BaseManifest, Manifest
from loraserve.catalog.versions import VersionId
from loraserve.contract.addresses import ADAPTER_PREFIX, BASE_MODEL_PREFIX
from loraserve.errors import LoraserveError


class Damaged(LoraserveError):
    """A version does not hold what its manifest says; the message names each object."""


@dataclass(frozen=True)
class Version:
    """The objects of one version; without a manifest among them it was never published."""

    id: VersionId
    files: tuple[str, ...]
    size_bytes: int
    changed_at: datetime

    @property
    def published(self) -> bool:
        return MANIFEST_FILE in self.files


def versions(bucket: Bucket, model: str | None = None, version: str | None = None) -> list[Version]:
    """All in the bucket, of one model, or the one version. Raises CatalogUnavailable."""
    objects = [item for kind in (ADAPTER_PREFIX, BASE_MODEL_PREFIX) for item in bucket.objects(f"{kind}/")]
    found = (_version(id, items) for id, items in groupby(sorted(objects, key=_sorting), key=_version_id))
    return [v for v in found if model in (None, v.id.model) and version in (None, v.id.version)]


def look(bucket: Bucket, id: VersionId) -> Version | None:
    """What there is of a version now. Raises CatalogUnavailable."""
    items = bucket.objects(id.key())
    return _version(id, sorted(items, key=_sorting)) if items else None


def find(bucket: Bucket, model: str, version: str) -> Version:
    """The published version. Raises ObjectMissing, CatalogUnavailable."""
    for found in versions(bucket, model, version):
        if found.published:
            return found
    raise ObjectMissing(f"s3://{bucket.name} holds no {model} {version}; see what it holds with `loraserve list`")


def read_manifest(bucket: Bucket, id: VersionId) -> tuple[AdapterManifest | BaseManifest, str]:
    """And its digest. Raises ObjectMissing, UnsafeFile, CatalogUnavailable."""
    content = bucket.read(id.key(MANIFEST_FILE), MAX_MANIFEST_BYTES)
    schema = AdapterManifest if id.kind == ADAPTER_PREFIX else BaseManifest
    return schema.parse(content), digest_of(content)


def verify(bucket: Bucket, version: Version, progress: OnProgress) -> None:
    """Reads every byte of a published version again. Raises Damaged, UnsafeFile, CatalogUnavailable."""
    manifest, _ = read_manifest(bucket, version.id)
    problems = [
        f"{bucket.url(version.id.key(file))} is not in the manifest: somebody put it there"
        for file in sorted(set(version.files) - {MANIFEST_FILE} - set(manifest.files))
    ]
    for file, entry in manifest.files.items():
        try:
            bucket.verify(version.id.key(file), entry, progress)
        except (DigestMismatch, ObjectMissing) as error:
            problems.append(str(error))
    if problems:
        raise Damaged("\n".join(problems))


def differences(bucket: Bucket, one: VersionId, other: VersionId) -> Iterator[tuple[str, str, str]]:
    """(fact, in `one`, in `other`) for what two published versions do not have in common."""
    facts = [_facts(read_manifest(bucket, id)[0]) for id in (one, other)]
    for fact in sorted(facts[0].keys() | facts[1].keys()):
        before, after = (known.get(fact, "-") for known in facts)
        if before != after:
            yield fact, before, after


def _facts(manifest: Manifest) -> dict[str, str]:
    """What a manifest says, one text per fact; a file is told by its size and the start of its parts' digest."""
    content = json.loads(manifest.to_json())
    del content["files"]
    files = {
        file: f"{entry.size} bytes, {digest_of(entry.checksum.encode())[:19]}" for file, entry in manifest.files.items()
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in content.items()} | files


def _version(id: VersionId, items: Iterable[dict[str, Any]]) -> Version:
    items = list(items)
    return Version(
        id=id,
        files=tuple(item["Key"].rpartition("/")[2] for item in items),
        size_bytes=sum(item["Size"] for item in items),
        changed_at=max(item["LastModified"] for item in items),
    )


def _version_id(item: dict[str, Any]) -> VersionId:
    kind, _, folder = item["Key"].rpartition("/")[0].partition("/")
    model, _, version = folder.rpartition("/")
    return VersionId(kind, model, version)


def _sorting(item: dict[str, Any]) -> tuple[VersionId, str]:
    return _version_id(item), item["Key"]
