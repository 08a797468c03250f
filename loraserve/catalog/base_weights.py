"""The base model's weights, mirrored to the bucket."""

import json
from pathlib import Path

from loraserve.catalog import versions
from loraserve.catalog.bucket import Bucket
from loraserve.catalog.files import MAX_FILE_BYTES, PARTIAL_PREFIX, FileEntry, OnProgress, UnsafeFile
from loraserve.catalog.manifest import DATA_SUFFIXES, MANIFEST_FILE, WEIGHTS_SUFFIX, BaseManifest
from loraserve.catalog.safetensors import BrokenSafetensors, tensors_of
from loraserve.catalog.versions import VersionId
from loraserve.contract.base_model import Mirror

MAX_HEADER_BYTES = 100 << 20


def publish(bucket: Bucket, folder: Path, model: str, version: str, progress: OnProgress = lambda *_: None) -> Mirror:
    """Uploads a model's folder and returns the stack-config entry; what is no data is left out.

    Equal files give an equal manifest: a second publish of them changes nothing and says the same.
    Raises UnsafeFile, InvalidDesiredState (a bad name), VersionExists, CatalogUnavailable.
    """
    paths = data_files(folder)
    for path in paths:
        if path.suffix == WEIGHTS_SUFFIX:
            _check_whole(path)
    files = {path.name: FileEntry.read(path, progress=progress) for path in paths}
    manifest = BaseManifest.of(model=model, version=version, files=files)
    versions.publish(bucket, VersionId.of_base(model, version), folder, manifest, progress)
    return manifest.entry(manifest.digest)


def fetch(bucket: Bucket, model: str, wanted: Mirror, folder: Path, progress: OnProgress = lambda *_: None) -> None:
    """Makes `folder` hold the mirrored weights, whole or not at all; goes on where a killed fetch stopped.

    Raises what `versions.fetch` does.
    """
    partial = folder.with_name(PARTIAL_PREFIX + folder.name)
    id = VersionId.of_base(model, wanted.version)
    versions.fetch(bucket, id, wanted, BaseManifest, partial, folder, progress=progress)


def has_chat_template(folder: Path) -> bool:
    """Whether a model's folder has a chat template of its own, in any of the places where transformers looks."""
    config = folder / "tokenizer_config.json"
    try:
        in_config = bool(json.loads(config.read_bytes()).get("chat_template")) if config.is_file() else False
    except (OSError, ValueError, AttributeError) as error:
        raise UnsafeFile(f"{config} cannot be read ({error}); download it again") from None
    return in_config or any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json"))


def is_complete(folder: Path) -> bool:
    """Only a finished fetch is renamed to `folder`, whose name tells the manifest's digest."""
    return (folder / MANIFEST_FILE).is_file()


def data_files(folder: Path) -> list[Path]:
    """What `publish` uploads of a folder. Raises UnsafeFile."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in DATA_SUFFIXES and path.name != MANIFEST_FILE)
    except OSError as error:
        raise UnsafeFile(f"{folder} cannot be read: {error.strerror}; give the folder of one whole model") from None


def _check_whole(path: Path) -> None:
    """Notices a download that was cut short, before a pod does. Raises UnsafeFile."""
    try:
        tensors_of(path, MAX_FILE_BYTES, MAX_HEADER_BYTES)
    except BrokenSafetensors as error:
        raise UnsafeFile(f"{error}; download it again") from None
