"""The adapter catalog in S3: immutable versions, verified whenever they are read.

    llm-models/{model}/{version}/adapter_config.json
    llm-models/{model}/{version}/adapter_model.safetensors
    llm-models/{model}/{version}/manifest.json

The manifest holds the digest of every file, is uploaded last and so commits the version; its own digest is what the
stack config pins. Nothing is ever overwritten: each object is created with `If-None-Match: *`.
"""

import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from loraserve.catalog.bucket import Bucket, DigestMismatch, OnProgress, VersionExists
from loraserve.catalog.files import PARTIAL_PREFIX, FileEntry, digest_of, put_in_place, write
from loraserve.catalog.gate import FILE_LIMITS, UnsafeAdapter, inspect
from loraserve.catalog.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest
from loraserve.contract.addresses import ADAPTER_PREFIX
from loraserve.contract.base_model import Base
from loraserve.contract.desired_state import Adapter


class Catalog:
    """One bucket's adapters. Safe to share by threads."""

    def __init__(self, bucket: str, region: str | None = None, pause_seconds: float = 0.5) -> None:
        self._bucket = Bucket(bucket, region, pause_seconds)

    def publish(
        self,
        folder: Path,
        model: str,
        version: str,
        name: str | None = None,
        progress: OnProgress = lambda *_: None,
        *,
        base: Base | None = None,
        probe_prompts: Sequence[str] = (),
    ) -> Adapter:
        """Uploads a PEFT folder as a new version and returns its stack-config entry (`name` defaults to `model`).

        It is checked against `base` where that is given; on `probe_prompts` it must answer otherwise than the base.

        An interrupted publish of the same bytes is taken up again.
        Raises UnsafeFile, InvalidDesiredState (a bad name or prompt), VersionExists, CatalogUnavailable.
        """
        facts = inspect(folder, base)
        files = {file: FileEntry.read(folder / file, limit) for file, limit in FILE_LIMITS.items()}
        manifest = Manifest.of(facts, files, datetime.now(UTC), probe_prompts)
        adapter = manifest.entry(name or model, model, version)
        if self._bucket.exists(_key(adapter, MANIFEST_FILE)):
            raise VersionExists(f"{self._url(adapter)} is published already; publish as a new version, such as 'v2'")
        for file, entry in files.items():
            self._bucket.upload(_key(adapter, file), folder / file, entry, progress)
        self._bucket.create(_key(adapter, MANIFEST_FILE), manifest.to_json())
        return adapter

    def fetch(self, adapter: Adapter, into: Path, base: Base | None = None) -> Path:
        """Returns the folder below `into` that holds exactly this version, downloading and verifying it if it is new.

        The folder appears whole or not at all.
        Raises ObjectMissing, DigestMismatch, UnsafeFile, CatalogUnavailable; OSError when the disk fails.
        """
        folder = into / adapter.folder_name
        if _is_complete(folder, adapter):
            Manifest.parse((folder / MANIFEST_FILE).read_bytes()).check_entry(adapter)
            return folder
        content = self._read_manifest(adapter)
        manifest = Manifest.parse(content)
        manifest.check_entry(adapter)
        with tempfile.TemporaryDirectory(dir=into, prefix=PARTIAL_PREFIX) as temporary:
            # A folder inside: the temporary one is readable by its owner only, and vLLM runs as another user.
            partial = Path(temporary) / "adapter"
            partial.mkdir()
            for file, entry in manifest.files.items():
                self._bucket.download(_key(adapter, file), entry, partial / file)
            if inspect(partial, base) != manifest.facts():
                raise UnsafeAdapter(f"{self._url(adapter)}: the manifest and the files disagree; publish a new version")
            write(partial / MANIFEST_FILE, content)
            if not _is_complete(folder, adapter):  # another fetch of the same bytes may have been faster
                put_in_place(partial, folder)
        return folder

    def _url(self, adapter: Adapter) -> str:
        return self._bucket.url(_key(adapter, ""))

    def _read_manifest(self, adapter: Adapter) -> bytes:
        key = _key(adapter, MANIFEST_FILE)
        content = self._bucket.read(key, MAX_MANIFEST_BYTES)
        if digest_of(content) != adapter.digest:
            raise DigestMismatch(
                f"{self._bucket.url(key)} has digest {digest_of(content)}, the stack config pins {adapter.digest}; "
                "paste the entry that `loraserve publish` printed for this version"
            )
        return content


def remove_partial_downloads(folder: Path) -> None:
    """Deletes what a killed fetch left below `folder`; call it when no fetch runs."""
    for partial in folder.glob(f"{PARTIAL_PREFIX}*"):
        shutil.rmtree(partial, ignore_errors=True)


def _key(adapter: Adapter, file: str) -> str:
    return f"{ADAPTER_PREFIX}/{adapter.model}/{adapter.version}/{file}"


def _is_complete(folder: Path, adapter: Adapter) -> bool:
    """Only a finished download is renamed to `folder`, so its manifest stands for all of it."""
    try:
        return digest_of((folder / MANIFEST_FILE).read_bytes()) == adapter.digest
    except FileNotFoundError:
        return False
