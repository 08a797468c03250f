"""Which plugins the Pulumi CLI finds: the user's own where they do the work, and none that outlives its engine."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from local.engine import plugins
from local.tools.toolchain import Tool

BUILT = Path("/cache/pulumi-resource-kubernetes")


def place(home: Path, plugin: str) -> Path:
    version = metadata.version(f"pulumi-{plugin}")
    return home / "plugins" / f"resource-{plugin}-v{version}" / f"pulumi-resource-{plugin}"


def has_own(home: Path, plugin: str) -> Path:
    own = place(home, plugin)
    own.parent.mkdir(parents=True)
    own.touch()
    return own


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Tool]:
    """What was built."""
    tools: list[Tool] = []

    def ensure(*wanted: Tool) -> dict[Tool, Path]:
        tools.extend(wanted)
        return dict.fromkeys(wanted, BUILT)

    monkeypatch.setattr(plugins, "ensure", ensure)
    return tools


def test_a_users_own_provider_is_preferred_and_nothing_is_built(tmp_path: Path, built: list[Tool]) -> None:
    own = has_own(tmp_path / "own", "kubernetes")
    has_own(tmp_path / "own", "aws")
    plugins.install(tmp_path / "home", tmp_path / "own")
    assert place(tmp_path / "home", "kubernetes").readlink() == own
    assert place(tmp_path / "home", "aws").readlink().is_relative_to(plugins.CHECKOUT), "the real one reaches no moto"
    assert built == plugins.to_build(tmp_path / "own") == []


def test_without_one_the_provider_is_built(tmp_path: Path, built: list[Tool]) -> None:
    plugins.install(tmp_path / "home", tmp_path / "nothing")
    assert place(tmp_path / "home", "kubernetes").readlink() == BUILT
    assert built == plugins.to_build(tmp_path / "nothing") == [Tool.PULUMI_KUBERNETES]


def test_a_plugin_that_outlived_its_engine_is_ended_and_no_other(tmp_path: Path) -> None:
    sleep = shutil.which("sleep")
    assert sleep
    started = []
    for home in ("home", "other"):
        plugin = place(tmp_path / home, "kubernetes")
        plugin.parent.mkdir(parents=True)
        plugin.symlink_to(sleep)
        started.append(subprocess.Popen([plugin, "60"]))
    ours, others = started
    try:
        plugins.end(tmp_path / "home")
        assert ours.wait(timeout=10) < 0
        assert others.poll() is None
    finally:
        others.kill()
        others.wait()
