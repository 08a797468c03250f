"""What a start of vLLM compiles, kept for the next node: Python modules, torch.compile's and Triton's output, the KV cache's size.

All of it is code that vLLM runs unasked (marshalled modules, pickles, machine code), and none of it is signed. What may be
unpacked is therefore said by the digest in the stack config, and written by one role alone.
"""

import tarfile
import tempfile
from pathlib import Path

from loraserve.catalog import versions
from loraserve.catalog.bucket import Bucket
from loraserve.catalog.files import PARTIAL_PREFIX, FileEntry, UnsafeFile, write
from loraserve.catalog.manifest import START_CACHE_FILE, StartCacheManifest
from loraserve.catalog.versions import VersionId
from loraserve.contract.addresses import START_CACHE_PREFIX, VLLM
from loraserve.contract.base_model import StartCache

FOLDERS = ("pyc", "vllm", "triton", "inductor", "flashinfer", "numba")
"""Of the cache volume. The others hold weights, what one GPU's driver compiled, and homes."""
_UNPACKED = ".start-cache"
_COMPILED = "vllm/torch_compile_cache/torch_aot_compile"


def publish(bucket: Bucket, cache: Path, version: str) -> StartCache:
    """Uploads the cache volume of a vLLM that has started, and returns the stack-config entry.

    Raises UnsafeFile (nothing is there yet), VersionExists, CatalogUnavailable.
    """
    folders = [folder for name in FOLDERS if (folder := cache / name).is_dir()]
    if not any(compiled(cache)):
        raise UnsafeFile(f"{cache / _COMPILED} is empty: vLLM has compiled nothing there")
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / START_CACHE_FILE
        with tarfile.open(archive, "w") as tar:
            for folder in folders:
                tar.add(folder, folder.name)
        manifest = StartCacheManifest.of(version=version, files={START_CACHE_FILE: FileEntry.read(archive)})
        id = VersionId(START_CACHE_PREFIX, VLLM, version)
        return manifest.entry(versions.publish(bucket, id, Path(scratch), manifest, lambda *_: None))


def fetch(bucket: Bucket, wanted: StartCache, cache: Path) -> None:
    """Unpacks it where it was packed: what was compiled names its own path, so no other will do.

    Raises what `versions.fetch` does, and UnsafeFile: the archive holds what does not belong there.
    """
    with tempfile.TemporaryDirectory(dir=cache, prefix=PARTIAL_PREFIX) as scratch:
        partial, folder = Path(scratch) / "partial", Path(scratch) / "whole"
        id = VersionId(START_CACHE_PREFIX, VLLM, wanted.version)
        versions.fetch(bucket, id, wanted, StartCacheManifest, partial, folder)
        try:
            with tarfile.open(folder / START_CACHE_FILE) as tar:
                tar.extractall(cache, filter="data")
        except tarfile.TarError as error:
            raise UnsafeFile(f"the start cache {wanted.version} cannot be unpacked: {error}") from None
    write(cache / _UNPACKED, "\n".join([wanted.digest, *compiled(cache)]).encode())


def is_fresh(cache: Path) -> bool:
    """Whether no vLLM has started on this volume yet."""
    return not any((cache / name).exists() for name in FOLDERS)


def compiled(cache: Path) -> list[str]:
    """What torch.compile's output is there: a name for each set of flags, image and GPU."""
    folder = cache / _COMPILED
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def unpacked(cache: Path) -> set[str] | None:
    """What of it was unpacked; None where nothing was."""
    try:
        return set((cache / _UNPACKED).read_text().splitlines()[1:])
    except FileNotFoundError:
        return None
