"""Adapters in the bucket: PEFT folders that passed the gate, at publish and again at each fetch."""

import codecs
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from loraserve.catalog import versions
from loraserve.catalog.bucket import Bucket
from loraserve.catalog.files import PARTIAL_PREFIX, FileEntry, OnProgress, write
from loraserve.catalog.gate import CONFIG_FILE, FILE_LIMITS, UnsafeAdapter, inspect
from loraserve.catalog.manifest import MANIFEST_FILE, AdapterManifest
from loraserve.catalog.versions import VersionId
from loraserve.contract.base_model import Base
from loraserve.contract.desired_state import Adapter

_inspection = threading.Lock()
"""One adapter's header at a time: parsed, it takes ten times its bytes, and the agent's memory is small."""


def publish(
    bucket: Bucket,
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
    Raises UnsafeFile, InvalidDesiredState (a bad name or prompt), VersionExists, CatalogUnavailable.
    """
    facts = inspect(folder, base)
    manifest = AdapterManifest.of(
        **facts.model_dump(),
        files={file: FileEntry.read(folder / file, limit) for file, limit in FILE_LIMITS.items()},
        probe_prompts=tuple(probe_prompts),
    )
    adapter = manifest.entry(name or model, model, version, manifest.digest)
    digest = versions.publish(bucket, VersionId.of_adapter(adapter), folder, manifest, progress)
    return adapter.model_copy(update={"digest": digest})


def fetch(bucket: Bucket, adapter: Adapter, into: Path, base: Base | None = None) -> Path:
    """Returns the folder below `into` that holds exactly this version, downloading and verifying it if it is new.

    Raises what `versions.fetch` does.
    """
    folder, id = into / adapter.folder_name, VersionId.of_adapter(adapter)
    if versions.holds(folder, adapter.digest):
        AdapterManifest.parse((folder / MANIFEST_FILE).read_bytes()).check_entry(adapter)
        return folder
    with tempfile.TemporaryDirectory(dir=into, prefix=PARTIAL_PREFIX) as temporary:
        # A folder inside: the temporary one is readable by its owner only, and vLLM runs as another user.
        partial = Path(temporary) / "adapter"

        def check(manifest: AdapterManifest) -> None:
            with _inspection:
                facts = inspect(partial, base)
            if facts != manifest.facts:
                raise UnsafeAdapter(
                    f"{bucket.url(id.key())}: the manifest and the files disagree; publish a new version"
                )
            _remove_byte_order_mark(partial / CONFIG_FILE)

        versions.fetch(bucket, id, adapter, AdapterManifest, partial, folder, check)
    return folder


def _remove_byte_order_mark(config: Path) -> None:
    """Some editors write one, and vLLM cannot read it."""
    content = config.read_bytes()
    if content.startswith(codecs.BOM_UTF8):
        write(config, content.removeprefix(codecs.BOM_UTF8))


def remove_partial_downloads(folder: Path) -> None:
    """Deletes what a killed fetch left below `folder`; call it when no fetch runs."""
    for partial in folder.glob(f"{PARTIAL_PREFIX}*"):
        shutil.rmtree(partial, ignore_errors=True)
