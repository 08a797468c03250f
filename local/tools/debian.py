"""Programs that a real node and the image builder need and that Debian packages: unpacked, or installed where they must be.

Where they are found is known once `ensure` has run.

What runs containers is only unpacked, into the cache: an installed containerd would start a service, and removes the one
that Docker brought. The rest are plain commands and are installed, if the machine lacks them and nothing is removed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from local import commands
from local.commands import CommandError
from local.paths import cache_dir
from local.processes import ProcessError, locked
from local.progress import Say, awaited

_UNPACKED = {
    "containerd": "containerd",
    "ctr": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "runc": "runc",
}
_INSTALLED = {
    "ip": "iproute2",
    "iptables": "iptables",
    "nsenter": "util-linux",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}
"""Command -> its Debian package."""
BROWSER = "chromium"
"""Command, and its Debian package."""
_CNI_PACKAGE = "containernetworking-plugins"
_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")


def ensure_browser(say: Say) -> None:
    """What draws our pages in tests, which without it are skipped; needs root. Raises ProcessError."""
    with locked(cache_dir() / "debian.lock"):
        if _found(BROWSER):
            return
        if os.geteuid() or not _found("apt-get"):
            say(f"{BROWSER} is not installed, and is only by root and on Debian: tests in a browser are skipped")
            return
        with awaited(f"installing the Debian package {BROWSER}", say):
            _apt("update")
            _apt("install", "--yes", "--no-remove", "--no-install-recommends", BROWSER)


def ensure(say: Say) -> None:
    """Unpacks and installs what is missing; needs root. Raises ProcessError, with nothing half done."""
    with locked(cache_dir() / "debian.lock"):
        missing = [name for name in _INSTALLED if not _found(name)]
        unpacked = _folder().exists() or all(map(_found, _UNPACKED))
        if not missing and unpacked:
            return
        if not _found("apt-get"):
            lacking = [*missing, *(name for name in _UNPACKED if not _found(name))]
            raise ProcessError(
                f"These commands are missing: {', '.join(lacking)}; only on Debian and its kin can they be installed "
                "by this program. Install them with your system's package manager and run the same command again."
            )
        with awaited("asking Debian's archive what there is", say):
            _apt("update")
        if missing:
            packages = sorted({_INSTALLED[name] for name in missing})
            with awaited(f"installing Debian packages: {', '.join(packages)}", say):
                _apt("install", "--yes", "--no-remove", "--no-install-recommends", *packages)
        if not unpacked:
            packages = sorted({*_UNPACKED.values(), _CNI_PACKAGE})
            with awaited(f"unpacking Debian packages into the cache: {', '.join(packages)}", say):
                _unpack(packages)


def path() -> str:
    """A PATH on which all of them are."""
    own = [str(_folder() / "usr" / folder) for folder in ("sbin", "bin")]
    return os.pathsep.join([*own, *_SYSTEM_FOLDERS])


def environment() -> dict[str, str]:
    """This process's environment with that PATH."""
    return os.environ | {"PATH": path()}


def find(name: str) -> Path:
    """The executable of this name."""
    return Path(shutil.which(name, path=path()) or name)


def cni_plugins() -> Path:
    """The folder of the CNI plugins."""
    unpacked = _folder() / "usr" / "lib" / "cni"
    return unpacked if unpacked.exists() else Path("/opt/cni/bin")


def package_mirror() -> str | None:
    """The address this machine's apt takes Debian's main archive from; None where it has none of its own."""
    listing = _output("apt-get", "indextargets", "--format", "$(REPO_URI)|$(CODENAME)|$(ORIGIN)")
    for line in listing.splitlines():
        uri, codename, origin = line.split("|")  # a repository may say neither
        if origin == "Debian" and "-" not in codename:
            return uri
    return None


def _folder() -> Path:
    return cache_dir() / "debian"


def _found(name: str) -> bool:
    return shutil.which(name, path=path()) is not None


def _unpack(packages: Iterable[str]) -> None:
    partial = _folder().with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.TemporaryDirectory() as downloads:
        os.chmod(downloads, 0o755)  # apt downloads as a user of its own
        _apt("download", *packages, cwd=Path(downloads))
        for package in Path(downloads).glob("*.deb"):
            commands.output(["dpkg", "--extract", package, partial])
    partial.rename(_folder())


def _apt(*arguments: str, cwd: Path | None = None) -> None:
    commands.logged(
        ["apt-get", "--quiet", *arguments],
        cache_dir() / "apt.log",
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        cwd=cwd,
        next_step="Check that Debian's archive answers (`apt-get update`), then run the same command again.",
    )


def _output(*command: str) -> str:
    try:
        return commands.output(command)
    except CommandError:
        return ""
