"""Puts plugins where the Pulumi CLI looks for them: real ones where they can be had here, else stand-ins."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from local.paths import CHECKOUT
from local.tools.toolchain import Tool, ensure

_STAND_IN = CHECKOUT / "local" / "stand_ins" / "plugin"
_IMITATED = (
    "language-python",
    "resource-aws",
    "resource-docker-build",
    "resource-eks",
    "resource-random",
)
_KUBERNETES = "resource-kubernetes"
_OWN_PREFERRED = (_KUBERNETES, "resource-random")
"""Plugins of which a user's own does just as well here; the others only know how to reach AWS or a builder."""


def install(pulumi_home: Path, user_home: Path | None = None) -> None:
    """Links every plugin into the plugin folder of a `PULUMI_HOME`. Raises ToolchainError.

    Where `user_home`, the user's own `PULUMI_HOME`, holds the real plugin in the SDK's version, that one is linked if it
    can do the work here. Plugins on PATH would do too, but win over installed ones, and the CLI warns of each.
    """
    for plugin in (*_IMITATED, _KUBERNETES):
        link = _path(pulumi_home, plugin)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(_own(user_home, plugin) or (_STAND_IN if plugin in _IMITATED else _built()))


def to_build(user_home: Path | None) -> list[Tool]:
    """What `install` builds where it is missing: nothing where the user has the plugin."""
    return [] if _own(user_home, _KUBERNETES) else [Tool.PULUMI_KUBERNETES]


def end(pulumi_home: Path) -> None:
    """Ends plugins that outlived a killed engine: the real ones look for it every five minutes only."""
    ours = f"{pulumi_home / 'plugins'}/".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cmdline").read_bytes().startswith(ours):
                os.kill(int(process.name), signal.SIGKILL)


def own_home() -> Path:
    """The user's own `PULUMI_HOME`."""
    return Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")


def _own(user_home: Path | None, plugin: str) -> Path | None:
    own = _path(user_home, plugin) if user_home and plugin in _OWN_PREFERRED else None
    return own if own and own.is_file() else None


def _built() -> Path:
    return ensure(Tool.PULUMI_KUBERNETES)[Tool.PULUMI_KUBERNETES]


def _path(home: Path, plugin: str) -> Path:
    return home / "plugins" / f"{plugin}-v{_version(plugin)}" / f"pulumi-{plugin}"


def _version(plugin: str) -> str:
    """A plugin is found under the version of the Python SDK whose requests it serves."""
    kind, _, package = plugin.partition("-")
    return metadata.version(f"pulumi-{package}" if kind == "resource" else "pulumi")
