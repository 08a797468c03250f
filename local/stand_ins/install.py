"""Puts the stand-in plugins where the Pulumi CLI looks for plugins."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

_SHIMS = Path(__file__).with_name("bin")
_OWN_PREFERRED = ("resource-kubernetes", "resource-random")
"""Plugins of which a user's real one does just as well here; the others only know how to reach AWS or a builder."""


def install(pulumi_home: Path, user_home: Path | None = None) -> None:
    """Links every stand-in into the plugin folder of a `PULUMI_HOME`.

    Where `user_home`, the user's own `PULUMI_HOME`, holds the real plugin in the SDK's version, that one is linked if it
    can do the work here. Plugins on PATH would do too, but win over installed ones, and the CLI warns of each.
    """
    for shim in sorted(_SHIMS.iterdir()):
        plugin = shim.name.removeprefix("pulumi-")
        folder = Path("plugins") / f"{plugin}-v{_version(plugin)}"
        link = pulumi_home / folder / shim.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        own = user_home / folder / shim.name if user_home and plugin in _OWN_PREFERRED else None
        link.symlink_to(own if own and own.is_file() else shim)


def _version(plugin: str) -> str:
    """A stand-in carries the version of the Python SDK whose requests it serves."""
    package = plugin.partition("-")[2]
    return metadata.version("pulumi" if plugin.startswith("language-") else f"pulumi-{package}")
