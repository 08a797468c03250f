"""Puts the stand-in plugins where the Pulumi CLI looks for plugins."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

_SHIMS = Path(__file__).with_name("bin")


def install(pulumi_home: Path) -> None:
    """Links every stand-in into the plugin folder of a `PULUMI_HOME`, unless a plugin of that name is there already.

    Plugins on PATH would do too, but win over installed ones, and the CLI warns of each.
    """
    for shim in sorted(_SHIMS.iterdir()):
        plugin = shim.name.removeprefix("pulumi-")
        if _installed(pulumi_home, plugin):
            continue
        folder = pulumi_home / "plugins" / f"{plugin}-v{_version(plugin)}"
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / shim.name
        link.unlink(missing_ok=True)
        link.symlink_to(shim)


def _installed(pulumi_home: Path, plugin: str) -> bool:
    found = (pulumi_home / "plugins").glob(f"{plugin}-v*/pulumi-{plugin}")
    return any(not path.is_symlink() for path in found)


def _version(plugin: str) -> str:
    """A stand-in carries the version of the Python SDK whose requests it serves."""
    package = plugin.partition("-")[2]
    return metadata.version("pulumi" if plugin.startswith("language-") else f"pulumi-{package}")
