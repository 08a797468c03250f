"""What in the bucket nobody needs any more: versions that no stack names, and uploads that were never finished.

The bucket is versioned and lets only the stack's clean-up role delete, and nobody delete for good: S3 keeps the bytes for
another 90 days (`infra/adapter_bucket.py`).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from loraserve.catalog.bucket import Bucket
from loraserve.catalog.listing import Version, look, versions
from loraserve.catalog.manifest import MANIFEST_FILE
from loraserve.catalog.versions import VersionId
from loraserve.contract.addresses import ADAPTER_PREFIX, BASE_MODEL_PREFIX
from loraserve.contract.base_model import Mirror
from loraserve.contract.desired_state import Adapter, DesiredState, InvalidDesiredState
from loraserve.contract.document import explain

PROJECT = "loraserve"
_ADAPTERS = TypeAdapter(list[Adapter])


@dataclass(frozen=True)
class Upload:
    """Parts of an object that was never completed."""

    key: str
    upload_id: str
    begun_at: datetime


@dataclass(frozen=True)
class Garbage:
    versions: tuple[Version, ...]
    uploads: tuple[Upload, ...]

    def __bool__(self) -> bool:
        return bool(self.versions or self.uploads)


def find_garbage(bucket: Bucket, kept: set[VersionId], now: datetime, grace: timedelta) -> Garbage:
    """What is not kept, and untouched for the whole grace period. Raises CatalogUnavailable."""
    unfinished = [
        Upload(upload["Key"], upload["UploadId"], upload["Initiated"])
        for kind in (ADAPTER_PREFIX, BASE_MODEL_PREFIX)
        for upload in bucket.uploads(f"{kind}/")
    ]
    return Garbage(
        versions=tuple(v for v in versions(bucket) if v.id not in kept and now - v.changed_at > grace),
        uploads=tuple(upload for upload in unfinished if now - upload.begun_at > grace),
    )


def delete(bucket: Bucket, garbage: Garbage, kept: Callable[[], set[VersionId]]) -> tuple[VersionId, ...]:
    """Looks again at each version first, and returns those that it left: named by now (`kept`), or changed since.

    The manifest goes first: from then on the version is not published. Raises CatalogUnavailable, and what `kept` does.
    """
    for upload in garbage.uploads:
        bucket.abort(upload.key, upload.upload_id)
    left = []
    for version in garbage.versions:
        if version.id in kept() or look(bucket, version.id) != version:
            left.append(version.id)
            continue
        for file in sorted(version.files, key=lambda file: file != MANIFEST_FILE):
            bucket.delete(version.id.key(file))
    return tuple(left)


def named_versions(files: Iterable[Path]) -> set[VersionId]:
    """What stack configs (Pulumi.*.yaml) and desired-state documents name.

    Raises InvalidDesiredState, also for a file that names nothing: with a wrong one everything would be garbage.
    """
    kept: set[VersionId] = set()
    for path in files:
        try:
            named = set(_named(path, yaml.safe_load(path.read_bytes())))
        except ValidationError as error:
            raise InvalidDesiredState(f"{path}:\n{explain(error)}") from None
        except (OSError, yaml.YAMLError, ValueError) as error:
            raise InvalidDesiredState(f"{path} is neither a stack config nor a desired state: {error}") from None
        if not named:
            raise InvalidDesiredState(f"{path} names no adapter and no mirrored base model; leave it out if that is so")
        kept |= named
    return kept


def _named(path: Path, content: Any) -> Iterator[VersionId]:
    if not isinstance(content, dict):
        raise ValueError("it holds no settings")
    if "config" in content:
        adapters, base, mirror = _stack_config(path, content["config"])
    else:
        state = DesiredState.model_validate_json(json.dumps(content), by_alias=True, by_name=False)
        adapters, base, mirror = state.adapters, state.base.name, state.base.mirror
    for adapter in adapters:
        yield VersionId.of_adapter(adapter)
    if mirror:
        yield VersionId.of_base(base, mirror.version)


def _stack_config(path: Path, config: dict[str, Any]) -> tuple[Sequence[Adapter], str, Mirror | None]:
    adapters = _ADAPTERS.validate_python(_decoded(config.get(f"{PROJECT}:adapters")) or [])
    mirror = _decoded(config.get(f"{PROJECT}:baseModelMirror"))
    if not mirror:
        return adapters, "", None
    base = config.get(f"{PROJECT}:baseModel") or _default_base_model(path.with_name("Pulumi.yaml"))
    return adapters, base, Mirror.model_validate(mirror)


def _default_base_model(project: Path) -> str:
    """What the project sets where a stack sets no baseModel."""
    return yaml.safe_load(project.read_bytes())["config"][f"{PROJECT}:baseModel"]["default"]


def _decoded(value: Any) -> Any:
    """`pulumi config set` writes structured values as JSON text."""
    return json.loads(value) if isinstance(value, str) else value
