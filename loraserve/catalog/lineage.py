"""Where a version comes from and where it went: records that are added beside its bytes, and never changed.

    lineage/llm-models/{model}/{version}/{time}-{start of the record's digest}.json

They lie outside the catalog's folders, so that no digest, list, clean-up or fetch of a version sees them, and they stay
when it is deleted. Each names the digest of the version that it is about.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AwareDatetime

from loraserve.catalog.bucket import Bucket
from loraserve.catalog.files import UnsafeFile, digest_of
from loraserve.catalog.versions import VersionId
from loraserve.contract.addresses import LINEAGE_PREFIX
from loraserve.contract.document import Digest, Document
from loraserve.errors import reason

MAX_RECORD_BYTES = 64 << 10


class InvalidLineage(UnsafeFile):
    """A record cannot be read, or not be written; the message says which and why."""


class Origin(Document):
    """What a publisher tells of a version: from which data, with which code."""

    data: Digest | None = None
    """Of the rows it was trained on."""
    code: str | None = None
    """The commit of the code that trained it."""
    training: dict[str, Any] | None = None
    """Settings of the training, as its program writes them."""
    note: str | None = None

    @classmethod
    def told(cls, path: Path | None, **words: str | None) -> Self:
        """From a JSON file, and from words of the command line, which win. Raises InvalidLineage."""
        try:
            written = json.loads(path.read_bytes()) if path else {}
        except (OSError, ValueError) as error:
            raise InvalidLineage(f"{path} cannot be read as JSON: {reason(error)}") from None
        if not isinstance(written, dict):
            raise InvalidLineage(f"{path} is no lineage: give an object with data, code, training, note")
        told = written | {key: value for key, value in words.items() if value is not None}
        return cls._parsed(json.dumps(told), lambda why: InvalidLineage(f"the lineage is not valid:\n{why}"))


class Record(Document):
    """One thing that happened to a version."""

    schema_version: Literal[1] = 1
    event: Literal["published", "promoted", "rolledBack"]
    at: AwareDatetime
    digest: Digest
    """Of the version."""
    principal: str
    """The ARN under which AWS knew who did it."""
    origin: Origin | None = None
    evaluations: tuple[Digest, ...] = ()
    """Verdicts that a promotion rests on."""
    from_stack: str | None = None
    to_stack: str | None = None
    replaced: str | None = None
    """The version that the target's stack file named before."""
    restored: str | None = None
    """The version that a rollback brought back instead."""
    reason: str | None = None

    @classmethod
    def parse(cls, content: bytes, where: str) -> Self:
        """Raises InvalidLineage."""
        return cls._parsed(content, lambda why: InvalidLineage(f"{where} is no record of lineage:\n{why}"))

    def to_json(self) -> bytes:
        return self._canonical()

    def key(self, id: VersionId) -> str:
        """Keys sort by time."""
        moment = self.at.astimezone(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        return f"{LINEAGE_PREFIX}/{id.key()}{moment}-{digest_of(self.to_json())[7:19]}.json"


def record(
    bucket: Bucket,
    id: VersionId,
    event: Literal["published", "promoted", "rolledBack"],
    digest: str,
    **facts: Any,
) -> Record:
    """Adds what has just been done to a version, by whom the bucket's credentials belong to.

    Raises InvalidLineage (more than MAX_RECORD_BYTES), CatalogUnavailable.
    """
    added = Record(event=event, at=datetime.now(UTC), digest=digest, principal=bucket.principal(), **facts)
    add(bucket, id, [added])
    return added


def published(bucket: Bucket, id: VersionId, digest: str, origin: Origin) -> None:
    """Of a version that was just published; equal words about equal bytes are recorded once. Raises what `record` does."""
    known = ((each.digest, each.origin) for each in read(bucket, id) if each.event == "published")
    if (digest, origin) not in known:
        record(bucket, id, "published", digest, origin=origin)


def add(bucket: Bucket, id: VersionId, records: Sequence[Record]) -> None:
    """Those that are there already stay as they are. Raises InvalidLineage, CatalogUnavailable."""
    for each in records:
        content = each.to_json()
        if len(content) > MAX_RECORD_BYTES:
            raise InvalidLineage(f"a record of lineage has {len(content)} bytes, {MAX_RECORD_BYTES} are allowed")
        bucket.create(each.key(id), content)


def read(bucket: Bucket, id: VersionId) -> tuple[Record, ...]:
    """All records of a version, the oldest first. Raises InvalidLineage, CatalogUnavailable."""
    keys = sorted(item["Key"] for item in bucket.objects(f"{LINEAGE_PREFIX}/{id.key()}"))
    return tuple(Record.parse(bucket.read(key, MAX_RECORD_BYTES), bucket.url(key)) for key in keys)
