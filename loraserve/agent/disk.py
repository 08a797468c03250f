"""The versions on the pod's disk: a cache that every restart of a container finds again, since it is folders only."""

import os
import tempfile
from collections.abc import Collection
from pathlib import Path

from loraserve.catalog.files import PARTIAL_PREFIX, DiskFull
from loraserve.contract.desired_state import Adapter


class Disk:
    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes

    def touch(self, version: Path) -> None:
        """Marks a version as just used. What is used last is removed last."""
        if version.exists():
            os.utime(version)

    def make_room(self, adapter: Adapter, keep: Collection[str], reserved_bytes: int) -> None:
        """Removes the versions that were not used for longest, but none of those to `keep`, until `adapter` fits.

        `reserved_bytes` are for versions that are being fetched. Raises DiskFull: what must stay leaves too little.
        """
        versions = [
            path for path in self._folder.iterdir() if path.is_dir() and not path.name.startswith(PARTIAL_PREFIX)
        ]
        if adapter.folder_name in (folder.name for folder in versions):
            return
        sizes = {folder: _size(folder) for folder in versions}
        excess = sum(sizes.values()) + reserved_bytes + adapter.size_bytes - self._limit_bytes
        removable = [folder for folder in versions if folder.name not in keep]
        for folder in sorted(removable, key=lambda folder: folder.stat().st_mtime):
            if excess <= 0:
                break
            self._remove(folder)
            excess -= sizes[folder]
        if excess > 0:
            raise DiskFull(
                f"its {adapter.size_bytes / 1e6:.1f} MB do not fit beside the other desired adapters, by {excess / 1e6:.1f} MB of "
                f"{self._limit_bytes / 1e6:.1f}; declare fewer adapters, or train at a lower rank"
            )

    def _remove(self, version: Path) -> None:
        """At no moment does half of a version lie under its name."""
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=PARTIAL_PREFIX, ignore_cleanup_errors=True) as doomed:
            version.rename(Path(doomed) / version.name)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
