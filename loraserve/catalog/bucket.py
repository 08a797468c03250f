"""An S3 bucket of objects that never change: each is created once, in parts, and verified part by part when read.

Every object is created with `If-None-Match: *` and a SHA-256 that S3 checks. Transfers run in parallel and are retried
part by part; an interrupted upload of the same bytes goes on with the parts that are there.
"""

import base64
import copy
import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    ProfileNotFound,
    ReadTimeoutError,
    ResponseStreamingError,
)
from urllib3 import exceptions as urllib3_exceptions

from loraserve.catalog.aws_errors import explain, http_status, is_transient
from loraserve.catalog.files import FileEntry, OnProgress
from loraserve.catalog.transfers import WORKERS, Tally, digest_of_span, in_parallel, is_part, read_span
from loraserve.errors import LoraserveError

ATTEMPTS = 4
LONGEST_PAUSE_SECONDS = 8.0
CHUNK_BYTES = 64 << 10
STALL_SECONDS = 30.0
STALL_BYTES = 16 << 10
"""A part that gains less in STALL_SECONDS is asked for anew: another of S3's servers may answer."""

T = TypeVar("T")


class ObjectMissing(LoraserveError):
    """The bucket holds no such object (yet)."""

    transient = True


class CatalogUnavailable(LoraserveError):
    """S3 did not answer as it should, or refused access."""

    transient = True


class TransferStalled(CatalogUnavailable):
    """S3 answers, but hardly."""


class DigestMismatch(LoraserveError):
    """The catalog holds other bytes than the stack config pins."""


class VersionExists(LoraserveError):
    """The version was published before; versions never change."""


class _Overtaken(Exception):
    """Another publisher created the object, or ended the upload, in the meantime."""


class Stopped(LoraserveError):
    """Nobody wants the transfer any more."""

    transient = True


class Bucket:
    """Credentials and endpoint come from the AWS SDK's environment. Safe to share by threads.

    `pause_seconds` is the longest wait before the first retry; it doubles with each further one.
    Every method raises CatalogUnavailable. `role` is assumed for every request, where it is given;
    `profile` is one of ~/.aws/config that takes the place of the environment's credentials.
    """

    def __init__(
        self,
        name: str,
        region: str | None = None,
        pause_seconds: float = 0.5,
        role: str | None = None,
        profile: str | None = None,
    ) -> None:
        self.name = name
        self._stopped: Callable[[], bool] = lambda: False
        self._pause_seconds = pause_seconds
        # Retries are made here, around a whole part; the SDK's own would end where the body begins.
        config = Config(
            connect_timeout=5,
            read_timeout=30,
            retries={"total_max_attempts": 1},
            max_pool_connections=4 * WORKERS,
        )
        self._client = partial(_client, region, role, profile)
        self._s3 = self._client("s3", config=config)

    def until(self, stopped: Callable[[], bool]) -> Self:
        """The same bucket; what is read from it ends with Stopped soon after `stopped` says so."""
        other = copy.copy(self)
        other._stopped = stopped
        return other

    def url(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def principal(self) -> str:
        """The ARN under which AWS knows whose credentials these are."""
        try:
            return self._client("sts").get_caller_identity()["Arn"]
        except (BotoCoreError, ClientError) as error:
            raise CatalogUnavailable(f"AWS does not say whose credentials these are: {explain(error)}") from error

    def exists(self, key: str) -> bool:
        return self._checksum(key) is not None

    def read(self, key: str, max_bytes: int) -> bytes:
        """A small object. Raises ObjectMissing, DigestMismatch (it is larger)."""

        def get() -> bytes:
            answer = self._s3.get_object(Bucket=self.name, Key=key)
            body = answer["Body"]
            with body:
                if answer["ContentLength"] > max_bytes:
                    raise _wrong_size(self.url(key), "more")
                return b"".join(self._chunks(body, answer["ContentLength"]))

        return self._call(key, get)

    def create(self, key: str, content: bytes) -> None:
        """A small object. Raises VersionExists unless it is there with the same bytes."""
        checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
        self._create(key, checksum, lambda: self._put(key, content, checksum))

    def add(self, key: str, content: bytes) -> None:
        """A small object, with no right to look first: one that is there under this key is an earlier attempt of the caller's own."""
        with suppress(_Overtaken):
            self._put(key, content, base64.b64encode(hashlib.sha256(content).digest()).decode())

    def upload(self, key: str, path: Path, entry: FileEntry, progress: OnProgress) -> None:
        """A file, as an object. Raises VersionExists unless it is there with the same bytes."""
        tally = Tally(f"uploading {path.name}", entry.size, progress)
        if len(entry.parts) == 1:
            self._create(key, entry.checksum, lambda: self._put(key, read_span(path, entry.span(0)), entry.checksum))
        else:
            self._create(key, entry.checksum, lambda: self._put_parts(key, path, entry, tally))
        tally.finish()

    def download(self, key: str, entry: FileEntry, target: Path, progress: OnProgress = lambda *_: None) -> None:
        """Writes an object to `target`, where good parts of an earlier attempt stay.

        Raises ObjectMissing, DigestMismatch; OSError when the disk fails.
        """
        tally = Tally(f"downloading {target.name}", entry.size, progress)
        resumed = target.exists()
        with target.open("ab") as file:
            file.truncate(entry.size)

        def fetch(part: int) -> None:
            if not resumed or digest_of_span(target, entry.span(part)) != entry.parts[part]:
                self._call(key, lambda: self._fetch_part(key, entry, part, target))
            tally.add(len(entry.span(part)))

        in_parallel(fetch, range(len(entry.parts)))
        with target.open("rb") as file:
            os.fsync(file.fileno())

    def _create(self, key: str, checksum: str, send: Callable[[], None]) -> None:
        for _ in range(ATTEMPTS):
            existing = self._checksum(key)
            if existing == checksum:
                return
            if existing is not None:
                raise VersionExists(
                    f"{self.url(key)} exists with other bytes; versions never change: publish as a new version"
                )
            with suppress(_Overtaken):
                send()
                return
        raise CatalogUnavailable(f"{self.url(key)} is being written by someone else; try again when they are done")

    def _checksum(self, key: str) -> str | None:
        """The base64 SHA-256 of an object ('' where S3 has none), None if there is no such object."""
        try:
            head = self._call(key, lambda: self._s3.head_object(Bucket=self.name, Key=key, ChecksumMode="ENABLED"))
        except ObjectMissing:
            return None
        return head.get("ChecksumSHA256", "").partition("-")[0]  # `-2`: it was sent in two parts

    def _put(self, key: str, content: bytes, checksum: str) -> None:
        checked = {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": checksum}
        put = partial(self._s3.put_object, Bucket=self.name, Key=key, Body=content, IfNoneMatch="*", **checked)
        self._call(key, put)

    def _put_parts(self, key: str, path: Path, entry: FileEntry, tally: Tally) -> None:
        upload, etags = self._open_upload(key, path, entry)
        target = {"Bucket": self.name, "Key": key, "UploadId": upload}
        checksums = [base64.b64encode(bytes.fromhex(part)).decode() for part in entry.parts]

        def send(part: int) -> None:
            number = part + 1
            if number not in etags:
                body = read_span(path, entry.span(part))
                numbered = {"PartNumber": number, "ChecksumSHA256": checksums[part]}
                sent = self._call(key, lambda: self._s3.upload_part(**target, **numbered, Body=body))
                etags[number] = sent["ETag"]
            tally.add(len(entry.span(part)))

        tally.start()
        in_parallel(send, range(len(entry.parts)))
        parts = [
            {"PartNumber": number, "ETag": etags[number], "ChecksumSHA256": checksum}
            for number, checksum in enumerate(checksums, start=1)
        ]
        self._call(
            key,
            lambda: self._s3.complete_multipart_upload(**target, MultipartUpload={"Parts": parts}, IfNoneMatch="*"),
        )

    def _open_upload(self, key: str, path: Path, entry: FileEntry) -> tuple[str, dict[int, str]]:
        """An upload that was begun with these bytes, and the ETags of its parts by number; else a new one."""
        for upload in self.uploads(key):
            if upload["Key"] == key and upload.get("ChecksumAlgorithm") == "SHA256":
                there = {"Bucket": self.name, "Key": key, "UploadId": upload["UploadId"]}
                etags = {part["PartNumber"]: part["ETag"] for part in self._pages("list_parts", "Parts", key, there)}
                if all(is_part(path, entry, number, etag) for number, etag in etags.items()):
                    return upload["UploadId"], etags
        begun = self._call(
            key, lambda: self._s3.create_multipart_upload(Bucket=self.name, Key=key, ChecksumAlgorithm="SHA256")
        )
        return begun["UploadId"], {}

    def verify(self, key: str, entry: FileEntry, progress: OnProgress) -> None:
        """Reads every byte of an object, and keeps none. Raises ObjectMissing, DigestMismatch."""
        tally = Tally(f"reading {key}", entry.size, progress)

        def check(part: int) -> None:
            self._call(key, lambda: self._read_part(key, entry, part, lambda chunk: None))
            tally.add(len(entry.span(part)))

        in_parallel(check, range(len(entry.parts)))

    def objects(self, prefix: str) -> list[dict[str, Any]]:
        """Key, Size, LastModified of every object below a prefix."""
        return self._pages("list_objects_v2", "Contents", prefix, {"Bucket": self.name, "Prefix": prefix})

    def delete(self, key: str) -> None:
        self._call(key, lambda: self._s3.delete_object(Bucket=self.name, Key=key))

    def abort(self, key: str, upload: str) -> None:
        """Deletes the parts of an upload that was not completed."""
        with suppress(_Overtaken):
            self._call(key, lambda: self._s3.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload))

    def uploads(self, prefix: str) -> list[dict[str, Any]]:
        """Uploads in parts, not completed yet, below a prefix: Key, UploadId, Initiated."""
        return self._pages("list_multipart_uploads", "Uploads", prefix, {"Bucket": self.name, "Prefix": prefix})

    def _pages(self, call: str, items: str, key: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
        pages = self._s3.get_paginator(call).paginate(**parameters)
        return self._call(key, lambda: [item for page in pages for item in page.get(items, [])])

    def _fetch_part(self, key: str, entry: FileEntry, part: int, target: Path) -> None:
        """Writes a part in its place, from its start at each attempt."""
        with target.open("r+b") as file:
            file.seek(entry.span(part).start)
            self._read_part(key, entry, part, file.write)

    def _read_part(self, key: str, entry: FileEntry, part: int, take: Callable[[bytes], object]) -> None:
        span, digest = entry.span(part), hashlib.sha256()
        answer = self._s3.get_object(Bucket=self.name, Key=key, Range=f"bytes={span.start}-{span.stop - 1}")
        body = answer["Body"]
        with body:
            if "ContentRange" not in answer:
                raise CatalogUnavailable(f"{self.url(key)}: S3 sent all of it instead of the part that was asked for")
            size = int(answer["ContentRange"].rpartition("/")[2])
            if size != entry.size:
                raise _wrong_size(self.url(key), "more" if size > entry.size else "less")
            for chunk in self._chunks(body, len(span)):
                digest.update(chunk)
                take(chunk)
        if digest.hexdigest() != entry.parts[part]:
            raise DigestMismatch(f"{self.url(key)} holds other bytes than were published; publish a new version")

    def _chunks(self, body: Any, size: int) -> Iterator[bytes]:
        """All `size` bytes of an answer as they come: StreamingBody itself waits for as many as it was asked for."""
        left, stall = size, _Stall(self.name)
        try:
            while left > 0 and (chunk := body._raw_stream.read1(min(left, CHUNK_BYTES))):
                self._check_wanted()
                left -= len(chunk)
                stall.gain(len(chunk))
                yield chunk
        except urllib3_exceptions.TimeoutError as error:
            raise ReadTimeoutError(endpoint_url=self.url("")) from error
        except urllib3_exceptions.HTTPError as error:
            raise ResponseStreamingError(error=error) from error
        if left > 0:
            raise IncompleteReadError(actual_bytes=size - left, expected_bytes=size)

    def _check_wanted(self) -> None:
        if self._stopped():
            raise Stopped("it is not wanted any more")

    def _call(self, key: str, action: Callable[[], T]) -> T:
        """Runs `action`, again after a growing, random pause while S3 fails in a way that may pass."""
        for attempt in range(1, ATTEMPTS + 1):
            self._check_wanted()
            try:
                return action()
            except TransferStalled:
                if attempt == ATTEMPTS:
                    raise
            except (BotoCoreError, ClientError) as error:
                if attempt == ATTEMPTS or not is_transient(error):
                    raise _translate(error, self.url(key)) from error
            time.sleep(random.uniform(0, min(LONGEST_PAUSE_SECONDS, self._pause_seconds * 2 ** (attempt - 1))))
        raise AssertionError("unreachable: the last attempt returns or raises")


def _client(
    region: str | None, role: str | None, profile: str | None, service: str, config: Config | None = None
) -> Any:
    try:
        session = boto3.Session(region_name=region, profile_name=profile)
        return (_as_role(session, role, profile) if role else session).client(service, config=config)
    except BotoCoreError as error:  # a profile or a region that is not there
        if profile and isinstance(error, ProfileNotFound):
            raise CatalogUnavailable(f"~/.aws/config has no profile {profile!r}; correct its name") from error
        raise CatalogUnavailable(explain(error)) from error


def _as_role(session: boto3.Session, role: str, profile: str | None) -> boto3.Session:
    """What else the profile says, such as an endpoint, holds for the role too."""
    try:
        given = session.client("sts").assume_role(RoleArn=role, RoleSessionName="loraserve")["Credentials"]
    except (BotoCoreError, ClientError) as error:
        raise CatalogUnavailable(f"{role} cannot be assumed: {explain(error)}") from error
    keys = (given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])
    return boto3.Session(*keys, region_name=session.region_name, profile_name=profile)


class _Stall:
    """Notices a transfer that goes on, but too slowly."""

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket
        self._since = time.monotonic()
        self._gained = 0

    def gain(self, count: int) -> None:
        """Raises TransferStalled."""
        self._gained += count
        now = time.monotonic()
        if now - self._since < STALL_SECONDS:
            return
        if self._gained < STALL_BYTES:
            raise TransferStalled(
                f"s3://{self._bucket}: S3 sends fewer than {STALL_BYTES} bytes in {STALL_SECONDS:.0f} s"
            )
        self._since, self._gained = now, 0


def _translate(error: BotoCoreError | ClientError, url: str) -> Exception:
    if not isinstance(error, ClientError):
        return CatalogUnavailable(f"{url}: {explain(error)}")
    code = error.response["Error"]["Code"]
    if code in ("NoSuchUpload", "InvalidPart", "PreconditionFailed"):
        return _Overtaken(code)
    match http_status(error):
        case 404 if code == "NoSuchBucket":
            return CatalogUnavailable(f"{url}: there is no such bucket; check its name and the AWS account")
        case 404:
            return ObjectMissing(f"{url} does not exist; publish this version, or correct model and version")
        case 416:
            return _wrong_size(url, "less")
        case _:
            return CatalogUnavailable(f"{url}: {explain(error)}")


def _wrong_size(url: str, relation: str) -> DigestMismatch:
    return DigestMismatch(f"{url} holds {relation} than was published; publish a new version")
