"""Files as a manifest describes them: regular ones only, by the digest of each part, safe against a power cut."""

import base64
import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from loraserve.contract.document import Document, Sha256Hex
from loraserve.errors import LoraserveError

PART_BYTES = 16 << 20
"""What is sent, fetched and verified at once; the digests in published manifests depend on it."""
MAX_PARTS = 10_000
"""What S3 takes in one upload."""
MAX_FILE_BYTES = PART_BYTES * MAX_PARTS
PARTIAL_PREFIX = ".partial-"
"""Starts the names of folders that are not whole yet."""

OnProgress = Callable[[str, int, int], None]
"""Told (what is done, such as "uploading model.safetensors"; bytes done so far; bytes in all) while a file is gone through."""


class UnsafeFile(LoraserveError):
    """The file is not one that may be published; the message says why and what to do."""


class DiskFull(LoraserveError):
    """What is wanted does not fit the disk (now); the message says beside what."""

    transient = True


class FileEntry(Document):
    """One file of a version: its size, and the SHA-256 of each PART_BYTES of it."""

    size: Annotated[int, Field(strict=True, gt=0, le=MAX_FILE_BYTES)]
    parts: tuple[Sha256Hex, ...]

    @model_validator(mode="after")
    def _every_part(self) -> Self:
        if len(self.parts) != -(-self.size // PART_BYTES):
            raise ValueError(f"has {len(self.parts)} parts, which its size contradicts")
        return self

    @classmethod
    def read(cls, path: Path, max_bytes: int = MAX_FILE_BYTES, progress: OnProgress = lambda *_: None) -> Self:
        """Raises UnsafeFile."""
        parts = []
        with open_regular(path, max_bytes) as file:
            size = os.fstat(file.fileno()).st_size
            while content := file.read(PART_BYTES):
                parts.append(hashlib.sha256(content).hexdigest())
                progress(f"reading {path.name}", file.tell(), size)
            if not parts:
                raise UnsafeFile(f"{path.name} is empty; save it again")
            return cls(size=file.tell(), parts=tuple(parts))

    def span(self, part: int) -> range:
        """The bytes of a part, counted from 0."""
        start = part * PART_BYTES
        return range(start, min(start + PART_BYTES, self.size))

    @property
    def checksum(self) -> str:
        """S3's SHA-256 of the object: of its bytes, or where it was sent in parts, of their digests."""
        digests = [bytes.fromhex(part) for part in self.parts]
        whole = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
        return base64.b64encode(whole).decode()


def open_regular(path: Path, max_bytes: int) -> BufferedReader:
    """Opens a regular file, never through a symlink, of at most `max_bytes`. Raises UnsafeFile."""
    try:
        # A pipe would block an open; it is refused below, by its type.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if path.is_symlink():
            raise UnsafeFile(f"{path.name} is a symbolic link; copy the real file into the folder (cp -L)") from None
        raise UnsafeFile(f"{path.name} cannot be read: {error.strerror}") from None
    file = os.fdopen(descriptor, "rb")
    status = os.fstat(descriptor)
    problem = ""
    if not stat.S_ISREG(status.st_mode):
        problem = "is not a regular file"
    elif status.st_size > max_bytes:
        problem = f"has {status.st_size} bytes, more than the {max_bytes} allowed"
    if problem:
        file.close()
        raise UnsafeFile(f"{path.name} {problem}")
    return file


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Makes the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(partial: Path, folder: Path) -> None:
    """Makes a finished folder appear under its name, in place of a broken one."""
    sync(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    sync(folder.parent)


def check_room(folder: Path, wanted_bytes: int) -> None:
    """Raises DiskFull."""
    free = shutil.disk_usage(folder).free
    if free < wanted_bytes:
        raise DiskFull(f"{folder} has {free} bytes free, {wanted_bytes} are needed; give the pod more disk")
