"""containerd, and a folder of it that holds the heavy images already.

Importing gigabytes takes a minute or more. It is done once, into a folder in the cache; each node starts from a copy of
that folder made of hard links, which takes seconds. containerd never changes a layer's files in place.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from local import commands
from local.commands import CommandError
from local.images.recipes import Image
from local.paths import cache_dir
from local.processes import Process, locked
from local.progress import Say, awaited
from local.tools import debian

SOCKET = Path("/run/containerd/containerd.sock")
"""On a node."""
NAMESPACE = "k8s.io"
PAUSE_IMAGE = "localhost/pause:local"


def configuration(root: Path, socket: Path, cni: Path) -> str:
    """For a containerd that keeps images and layers in `root`; `cni` holds the network's configuration."""
    return f"""\
version = 2
root = "{root}"
state = "{socket.parent}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true # the machine may lack the right to lower it
  netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{debian.cni_plugins()}"
  conf_dir = "{cni}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""


def template(images: Sequence[Image], pause: Image, say: Say) -> Path:
    """The folder of a containerd that holds these images, made where it is missing. Raises ProcessError."""
    folder = template_folder(images, pause)
    with locked(cache_dir() / "containerd.lock"):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            _fill(partial, images, pause, say)
            partial.rename(folder)
            for older in cache_dir().glob("containerd-*"):
                if older.is_dir() and older != folder:
                    shutil.rmtree(older)
    return folder


def template_folder(images: Sequence[Image], pause: Image) -> Path:
    """Where `template` puts it."""
    references = [*sorted(image.reference for image in images), pause.reference]
    key = hashlib.sha256(" ".join(references).encode()).hexdigest()[:12]
    return cache_dir() / f"containerd-{key}"


def copy(source: Path, target: Path) -> None:
    """Hard links where the file system allows; the databases, which are written in place, as copies."""
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if not commands.succeeds(["cp", "--archive", "--link", source, partial]):
        shutil.rmtree(partial, ignore_errors=True)
        commands.output(["cp", "--archive", "--reflink=auto", source, partial])
    for database in partial.glob("io.containerd.*/*.db"):
        content = database.read_bytes()
        database.unlink()
        database.write_bytes(content)
    partial.rename(target)


def import_command(archive: Path, socket: Path = SOCKET) -> list[str]:
    """Makes an OCI archive's image known to the containerd that listens on `socket`."""
    return [*_ctr(socket), "images", "import", str(archive)]


def run_command(reference: str, name: str, mounts: Sequence[str], cgroup: str) -> list[str]:
    """Starts a container of an image and waits for it; the command in it follows these words."""
    return [*_ctr(SOCKET), "run", "--rm", "--cgroup", f"/{cgroup}", *mounts, reference, name]


def kill_command(container: str) -> list[str]:
    """Kills a running container without warning, by its id."""
    return [*_ctr(SOCKET), "tasks", "kill", "--signal", "SIGKILL", container]


def _fill(root: Path, images: Sequence[Image], pause: Image, say: Say) -> None:
    archives = {image: image.ensure_archive(say) for image in (*images, pause)}
    root.mkdir()
    runtime = root.with_suffix(".run")
    runtime.mkdir(exist_ok=True)
    socket = runtime / "containerd.sock"
    config = runtime / "config.toml"
    config.write_text(configuration(root, socket, runtime))
    command = [debian.find("containerd"), "--config", config]
    process = Process.start("containerd", command, runtime, env=debian.environment())
    try:
        process.wait_until(lambda: commands.succeeds([*_ctr(socket), "version"], env=debian.environment()))
        for image, archive in archives.items():
            with awaited(f"loading {image.name} into containerd", say):
                _load(socket, image, archive)
        _run([*_ctr(socket), "images", "tag", pause.reference, PAUSE_IMAGE])
    finally:
        process.stop()
        shutil.rmtree(runtime, ignore_errors=True)


def _load(socket: Path, image: Image, archive: Path) -> None:
    """One form goes before the next is made: archive, stored layers, unpacked files. Each takes gigabytes."""
    _run([*import_command(archive, socket), "--no-unpack"])
    image.forget()
    listed = _run([*_ctr(socket), "images", "ls", f"name=={image.reference}"]).splitlines()[1]
    _run([*_ctr(socket), "snapshots", "unpack", listed.split()[2]])
    for layer in _layers(socket):
        with suppress(CommandError):
            _run([*_ctr(socket), "content", "rm", layer])


def _layers(socket: Path) -> list[str]:
    """Digests of stored contents of a megabyte or more: manifests and configurations are smaller."""
    listing = _run([*_ctr(socket), "content", "ls"]).splitlines()[1:]
    return [line.split()[0] for line in listing if line.split()[1].endswith(("MB", "GB", "MiB", "GiB"))]


def _ctr(socket: Path) -> list[str]:
    return ["ctr", "--address", str(socket), "--namespace", NAMESPACE]


def _run(command: Sequence[str]) -> str:
    return commands.output(command, env=debian.environment())
