"""The adapter catalog in S3: immutable versions, verified whenever they are read.

    llm-models/{model}/{version}/adapter_config.json
    llm-models/{model}/{version}/adapter_model.safetensors
    llm-models/{model}/{version}/manifest.json

The manifest holds the digest of every file, is uploaded last and so commits the version; its own digest is what the
stack config pins. Nothing is ever overwritten: each object is created with `If-None-Match: *`.
"""

import base64
import hashlib
import io
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
)
from pydantic import ValidationError

from loraserve.desired import ADAPTER_PREFIX, Adapter, InvalidDesiredState, explain
from loraserve.errors import LoraserveError
from loraserve.gate import FILES, MAX_WEIGHTS_BYTES, UnsafeAdapter, inspect, open_regular
from loraserve.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, FileEntry, Manifest, digest_of

ATTEMPTS = 4
LONGEST_PAUSE_SECONDS = 8.0
CHUNK_BYTES = 1 << 20
PARTIAL_PREFIX = ".partial-"

_TRANSIENT_ERRORS = (ConnectionError, HTTPClientError, IncompleteReadError, FlexibleChecksumError)
_TRANSIENT_CODES = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "ConditionalRequestConflict"}

OnProgress = Callable[[str, int, int], None]
"""Told (file name, bytes sent so far, bytes in all) while a file is uploaded."""

T = TypeVar("T")


class AdapterMissing(LoraserveError):
    """The catalog holds no such version (yet)."""

    transient = True


class CatalogUnavailable(LoraserveError):
    """S3 did not answer as it should, or refused access."""

    transient = True


class DigestMismatch(LoraserveError):
    """The catalog holds other bytes than the stack config pins."""


class VersionExists(LoraserveError):
    """The version was published before; versions never change."""


class Catalog:
    """One bucket's adapters. Credentials and endpoint come from the AWS SDK's environment. Safe to share by threads.

    `pause_seconds` is the longest wait before the first retry; it doubles with each further one.
    """

    def __init__(self, bucket: str, region: str | None = None, pause_seconds: float = 0.5) -> None:
        self._bucket = bucket
        self._pause_seconds = pause_seconds
        # Retries are made here, around a whole transfer; the SDK's own would end where the body begins.
        config = Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 1})
        self._s3 = boto3.Session(region_name=region).client("s3", config=config)

    def publish(
        self, folder: Path, model: str, version: str, name: str | None = None, progress: OnProgress = lambda *_: None
    ) -> Adapter:
        """Uploads a PEFT folder as a new version and returns its stack-config entry (`name` defaults to `model`).

        An interrupted publish of the same bytes is taken up again.
        Raises UnsafeAdapter, InvalidDesiredState (a bad name), VersionExists, CatalogUnavailable.
        """
        facts = inspect(folder)
        files = {file: _describe(folder / file) for file in FILES}
        manifest = Manifest.of(facts, files, datetime.now(UTC)).to_json()
        try:
            adapter = Adapter(
                name=name or model,
                model=model,
                version=version,
                digest=digest_of(manifest),
                rank=facts.rank,
                target_modules=facts.target_modules,
                size_bytes=sum(file.size for file in files.values()),
            )
        except ValidationError as error:
            raise InvalidDesiredState(explain(error)) from None
        if self._checksum(_key(adapter, MANIFEST_FILE)) is not None:
            raise VersionExists(f"{self._url(adapter)} is published already; publish as a new version, such as 'v2'")
        for file, entry in files.items():
            path = folder / file
            self._create(_key(adapter, file), entry, lambda path=path: _ReportingFile(path, progress))
        self._create(_key(adapter, MANIFEST_FILE), FileEntry.of(manifest), lambda: io.BytesIO(manifest))
        return adapter

    def fetch(self, adapter: Adapter, into: Path) -> Path:
        """Returns the folder below `into` that holds exactly this version, downloading and verifying it if it is new.

        The folder appears whole or not at all.
        Raises AdapterMissing, DigestMismatch, UnsafeAdapter, CatalogUnavailable; OSError when the disk fails.
        """
        folder = into / f"{adapter.model}@{adapter.version}@{adapter.digest.removeprefix('sha256:')[:12]}"
        if _is_complete(folder, adapter):
            return folder
        content = self._read_manifest(adapter)
        manifest = Manifest.parse(content)
        manifest.check_entry(adapter)
        with tempfile.TemporaryDirectory(dir=into, prefix=PARTIAL_PREFIX) as temporary:
            # A folder inside: the temporary one is readable by its owner only, and vLLM runs as another user.
            partial = Path(temporary) / "adapter"
            partial.mkdir()
            for file, entry in manifest.files.items():
                self._download(_key(adapter, file), entry, partial / file)
            if inspect(partial) != manifest.facts():
                raise UnsafeAdapter(f"{self._url(adapter)}: the manifest and the files disagree; publish a new version")
            _write(partial / MANIFEST_FILE, content)
            _sync(partial)
            if not _is_complete(folder, adapter):  # another fetch of the same bytes may have been faster
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
                _sync(into)
        return folder

    def _url(self, adapter: Adapter, file: str = "") -> str:
        return f"s3://{self._bucket}/{_key(adapter, file)}"

    def _checksum(self, key: str) -> str | None:
        """The base64 SHA-256 of an object ('' where S3 has none), None if there is no such object."""
        try:
            head = self._call(key, lambda: self._s3.head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED"))
        except AdapterMissing:
            return None
        return head.get("ChecksumSHA256", "")

    def _create(self, key: str, entry: FileEntry, open_body: Callable[[], io.IOBase]) -> None:
        """Uploads a new object; one that is there already must hold the same bytes. Raises VersionExists."""
        checksum = base64.b64encode(bytes.fromhex(entry.sha256)).decode()

        def put() -> None:
            with open_body() as body:
                self._s3.put_object(
                    Bucket=self._bucket,
                    Key=key,
                    Body=body,
                    IfNoneMatch="*",
                    ChecksumAlgorithm="SHA256",
                    ChecksumSHA256=checksum,
                )

        try:
            self._call(key, put)
        except VersionExists:
            if self._checksum(key) != checksum:
                raise

    def _read_manifest(self, adapter: Adapter) -> bytes:
        def read() -> bytes:
            body = self._s3.get_object(Bucket=self._bucket, Key=_key(adapter, MANIFEST_FILE))["Body"]
            with body:
                return body.read(MAX_MANIFEST_BYTES)

        content = self._call(_key(adapter, MANIFEST_FILE), read)
        if digest_of(content) != adapter.digest:
            raise DigestMismatch(
                f"{self._url(adapter, MANIFEST_FILE)} has digest {digest_of(content)}, the stack config pins "
                f"{adapter.digest}; paste the entry that `loraserve publish` printed for this version"
            )
        return content

    def _download(self, key: str, entry: FileEntry, target: Path) -> None:
        """Writes an object to `target`, from its start at each attempt. Raises DigestMismatch."""

        def read() -> tuple[int, str]:
            size, digest = 0, hashlib.sha256()
            body = self._s3.get_object(Bucket=self._bucket, Key=key)["Body"]
            with body, target.open("wb") as file:
                for chunk in body.iter_chunks(CHUNK_BYTES):
                    size += len(chunk)
                    if size > entry.size:
                        break
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            return size, digest.hexdigest()

        size, sha256 = self._call(key, read)
        if size != entry.size:
            relation = "more" if size > entry.size else "less"
            raise DigestMismatch(
                f"s3://{self._bucket}/{key} holds {relation} than the {entry.size} bytes that were published; "
                "publish a new version"
            )
        if sha256 != entry.sha256:
            raise DigestMismatch(
                f"s3://{self._bucket}/{key} holds other bytes than were published; publish a new version"
            )

    def _call(self, key: str, action: Callable[[], T]) -> T:
        """Runs `action`, again after a growing, random pause while S3 fails in a way that may pass."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return action()
            except (BotoCoreError, ClientError) as error:
                if attempt == ATTEMPTS or not _is_transient(error):
                    raise _translate(error, f"s3://{self._bucket}/{key}") from error
            time.sleep(random.uniform(0, min(LONGEST_PAUSE_SECONDS, self._pause_seconds * 2 ** (attempt - 1))))
        raise AssertionError("unreachable: the last attempt returns or raises")


def remove_partial_downloads(folder: Path) -> None:
    """Deletes what a killed fetch left below `folder`; call it when no fetch runs."""
    for partial in folder.glob(f"{PARTIAL_PREFIX}*"):
        shutil.rmtree(partial, ignore_errors=True)


class _ReportingFile(io.FileIO):
    """A file that tells how far it has been read."""

    def __init__(self, path: Path, progress: OnProgress) -> None:
        super().__init__(path)
        self._path = path
        self._progress = progress
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self._progress(self._path.name, self.tell(), self._size)
        return content


def _key(adapter: Adapter, file: str) -> str:
    return f"{ADAPTER_PREFIX}/{adapter.model}/{adapter.version}/{file}"


def _describe(path: Path) -> FileEntry:
    with open_regular(path, MAX_WEIGHTS_BYTES) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(sha256=sha256, size=file.tell())


def _is_complete(folder: Path, adapter: Adapter) -> bool:
    """Only a finished download is renamed to `folder`, so its manifest stands for all of it."""
    try:
        return digest_of((folder / MANIFEST_FILE).read_bytes()) == adapter.digest
    except FileNotFoundError:
        return False


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_transient(error: BotoCoreError | ClientError) -> bool:
    if isinstance(error, ClientError):
        return _status(error) >= 500 or error.response["Error"]["Code"] in _TRANSIENT_CODES
    return isinstance(error, _TRANSIENT_ERRORS)


def _translate(error: BotoCoreError | ClientError, url: str) -> LoraserveError:
    if not isinstance(error, ClientError):
        return CatalogUnavailable(f"{url}: {error}")
    code = error.response["Error"]["Code"]
    match _status(error):
        case 404 if code == "NoSuchBucket":
            return CatalogUnavailable(f"{url}: there is no such bucket; check its name and the AWS account")
        case 404:
            return AdapterMissing(f"{url} does not exist; publish this version, or correct model and version")
        case 412:
            return VersionExists(f"{url} exists with other bytes; versions never change: publish as a new version")
        case 403:
            return CatalogUnavailable(f"{url}: access denied ({code}); check the role's policy and the bucket's")
        case status:
            return CatalogUnavailable(f"{url}: S3 answered {status} {code}")


def _status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]
