"""Checkpoints are whole or they are nothing: transformers takes the highest folder, half-written or not.

A marker, written last, names every file with its digest, and the run that it is of. In a bucket it is the last object of

    training/{run}/{step}-{start of the marker's digest}/

where nothing is overwritten: the same step of another attempt has another name.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from loraserve.catalog.bucket import Bucket, DigestMismatch, ObjectMissing
from loraserve.catalog.files import PARTIAL_PREFIX, FileEntry, UnsafeFile, digest_of, put_in_place, sync, write
from loraserve.contract.addresses import TRAINING_PREFIX
from loraserve.contract.document import Digest, Document, PathSegment

MARKER = "complete.json"
MAX_MARKER_BYTES = 1 << 20
_FOLDER = re.compile(r"checkpoint-(\d+)")
_KEY = re.compile(r"(\d+)-[0-9a-f]{12}/" + re.escape(MARKER))


class Checkpoint(Document):
    run: Digest
    step: Annotated[int, Field(ge=1)]
    files: dict[PathSegment, FileEntry]

    def to_json(self) -> bytes:
        return self._canonical()

    @property
    def prefix(self) -> str:
        """In a bucket, without its last slash."""
        return f"{_runs_prefix(self.run)}{self.step:08}-{digest_of(self.to_json())[7:19]}"


def seal(folder: Path, run: str, step: int) -> Checkpoint:
    """Makes a checkpoint count that has been written whole."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.stat().st_size]
    found = Checkpoint(run=run, step=step, files={path.name: FileEntry.read(path) for path in files})
    for path in files:
        _flush(path)
    partial = folder / f"{PARTIAL_PREFIX}{MARKER}"
    write(partial, found.to_json())
    partial.rename(folder / MARKER)
    sync(folder)
    sync(folder.parent)
    return found


def _flush(path: Path) -> None:
    """What transformers wrote may not be on the disk yet."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sealed(folder: Path) -> Checkpoint | None:
    """What a folder holds, if all of it is there as it was written."""
    try:
        found = Checkpoint.model_validate_json((folder / MARKER).read_bytes(), by_alias=True, by_name=False)
        whole = all(FileEntry.read(folder / name) == entry for name, entry in found.files.items())
    except (OSError, ValidationError, UnsafeFile):
        return None
    return found if whole else None


def newest(output: Path, run: str) -> Path | None:
    """The last whole checkpoint of this run. What is broken, or of another run, is deleted: nothing else may find it."""
    found = None
    for _, folder in sorted(
        (int(match[1]), folder) for folder in output.iterdir() if (match := _FOLDER.fullmatch(folder.name))
    ):
        checkpoint = sealed(folder)
        if checkpoint and checkpoint.run == run:
            found = folder
        else:
            shutil.rmtree(folder)
    return found


class Store:
    """Checkpoints of one run in a bucket, for when the node and its disk are gone."""

    def __init__(self, bucket: Bucket, run: str) -> None:
        self._bucket, self._run = bucket, run

    def keep(self, folder: Path, checkpoint: Checkpoint) -> None:
        """Raises CatalogUnavailable."""
        for name, entry in checkpoint.files.items():
            self._bucket.upload(f"{checkpoint.prefix}/{name}", folder / name, entry, lambda *_: None)
        self._bucket.create(f"{checkpoint.prefix}/{MARKER}", checkpoint.to_json())

    def bring(self, output: Path, than: int, tell: Callable[[str], None]) -> None:
        """Fetches the last whole checkpoint where it is of a later step. Raises CatalogUnavailable."""
        start = _runs_prefix(self._run)
        keys = [item["Key"].removeprefix(start) for item in self._bucket.objects(start)]
        steps = sorted(
            ((int(match[1]), key) for key in keys if (match := _KEY.fullmatch(key)) and int(match[1]) > than),
            reverse=True,
        )
        for step, key in steps:
            try:
                self._fetch(f"{start}{key}", output / f"checkpoint-{step}")
                return
            except (ObjectMissing, DigestMismatch, ValidationError) as error:
                tell(f"Checkpoint of step {step} is not whole in the bucket, the one before is tried: {error}")

    def _fetch(self, key: str, folder: Path) -> None:
        content = self._bucket.read(key, MAX_MARKER_BYTES)
        checkpoint = Checkpoint.model_validate_json(content, by_alias=True, by_name=False)
        partial = folder.with_name(f"{PARTIAL_PREFIX}{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, entry in checkpoint.files.items():
            self._bucket.download(f"{checkpoint.prefix}/{name}", entry, partial / name)
        write(partial / MARKER, content)
        put_in_place(partial, folder)


def _runs_prefix(run: str) -> str:
    return f"{TRAINING_PREFIX}/{run.removeprefix('sha256:')}/"


def step_of(folder: Path | None) -> int:
    """0 where there is none."""
    match = _FOLDER.fullmatch(folder.name) if folder else None
    return int(match[1]) if match else 0
