"""The package on its own, its locks, vLLM's one version, the import rules and the releases: what nothing else would notice."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from infra import versions
from local.paths import CHECKOUT, cache_dir

_PROJECT: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
_PACKAGE: list[str] = _PROJECT["project"]["dependencies"]
_SERVER: list[str] = _PROJECT["project"]["optional-dependencies"]["server"]
_GROUPS: dict[str, list[str]] = _PROJECT["dependency-groups"]
_VLLM_CPU = CHECKOUT / "images" / "vllm-cpu"

_LOCKS = {
    "requirements.txt": [*_PACKAGE, *_GROUPS["program"]],
    "requirements-dev.txt": [*_PACKAGE, *_SERVER, *_GROUPS["program"], *_GROUPS["dev"]],
    "images/loraserve/requirements.txt": [*_PACKAGE, *_SERVER],
}


def _pins(lock: str | Path) -> dict[str, str]:
    """Version by package."""
    return dict(re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;]+)", (CHECKOUT / lock).read_text(), re.MULTILINE))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("lock", _LOCKS)
def test_a_lock_fits_what_pyproject_asks_for(lock: str) -> None:
    pins = _pins(lock)
    unmet = [
        text
        for text in _LOCKS[lock]
        if (asked := Requirement(text)) and not asked.specifier.contains(pins.get(asked.name, "0"), prereleases=True)
    ]
    assert unmet == [], f"{lock} is out of date: `make lock`"


@pytest.mark.parametrize("lock", [lock for lock in _LOCKS if lock != "requirements-dev.txt"])
def test_what_is_tested_is_what_runs(lock: str) -> None:
    assert _pins(lock).items() <= _pins("requirements-dev.txt").items()


def test_vllm_has_one_version_in_the_image_the_cpu_build_and_the_group() -> None:
    assert versions.vllm_image() == f"vllm/vllm-openai:v{versions.VLLM}"
    assert _GROUPS["vllm"] == [f"vllm=={versions.VLLM}"]
    assert f"vllm-cpu=={versions.VLLM}" in (_VLLM_CPU / "requirements.in").read_text().splitlines()
    assert _pins(_VLLM_CPU / "requirements.txt")["vllm-cpu"] == versions.VLLM


@pytest.mark.parametrize("lock", _LOCKS)
def test_no_word_of_the_makefile_installs_vllm(lock: str) -> None:
    assert not {"vllm", "torch"} & _pins(lock).keys()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` installs, built by the uv that `make install` installed (nothing is downloaded)."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [cache_dir() / "uv/bin/uv", "build", "--quiet", "--offline", "--no-cache", "--wheel", "--out-dir", folder]
    subprocess.run([*command, CHECKOUT], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_package_imports_without_pulumi_and_without_the_rest_of_the_checkout(wheel: Path) -> None:
    imported = _imported(wheel, ["loraserve"], blocked=["pulumi", "infra", "local", "bench", "tests"])
    assert {"loraserve.operator.cli", "loraserve.agent.main", "loraserve.gateway.main"} <= imported


def test_an_operators_shell_needs_no_servers_libraries(wheel: Path) -> None:
    servers = [Requirement(text).name.replace("-", "_") for text in _SERVER]
    rooms = [f"loraserve.{room}" for room in ("operator", "catalog", "planning", "contract")]
    imported = _imported(wheel, rooms, blocked=["pulumi", "infra", "local", *servers])
    assert {"loraserve.operator.status", "loraserve.planning.cost"} <= imported


def _imported(wheel: Path, packages: list[str], blocked: list[str]) -> set[str]:
    """Imports every module of some packages in a process of its own; returns their names."""
    script = f"""
import importlib, pkgutil, sys
sys.path.insert(0, {str(wheel)!r})
sys.modules.update(dict.fromkeys({blocked!r}))
for package in map(importlib.import_module, {packages!r}):
    assert {str(wheel)!r} in package.__file__
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            print(importlib.import_module(module.name).__name__)
"""
    run = subprocess.run([sys.executable, "-I", "-c", script], cwd=wheel.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def _releases() -> list[tuple[str, str]]:
    """Tag and commit, oldest first."""
    lines = (CHECKOUT / "tests/releases.txt").read_text().splitlines()
    return [(tag, commit) for tag, commit in (line.split() for line in lines if not line.startswith("#"))]


@pytest.mark.parametrize(("tag", "commit"), _releases())
def test_a_release_is_a_commit_of_this_history(tag: str, commit: str) -> None:
    if not (CHECKOUT / ".git").exists():
        pytest.skip("this is not a clone: there is no history to look into")
    if _git("rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("this clone is shallow: `git fetch --unshallow` brings the history")
    _git("merge-base", "--is-ancestor", commit, "HEAD")
    assert tomllib.loads(_git("show", f"{commit}:pyproject.toml"))["project"]["version"] == tag.removeprefix("v")


def test_every_release_is_in_the_changelog_and_the_next_one_has_another_number() -> None:
    tags = [tag for tag, _ in _releases()]
    sections = re.findall(r"^## \[(\d\S*)\]", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[::-1] == [tag.removeprefix("v") for tag in tags]
    assert _PROJECT["project"]["version"] not in sections


def test_the_import_rules_catch_a_room_that_reaches_up(tmp_path: Path) -> None:
    """The rules are run by `make check`; here on a copy in which one room breaks one."""
    subprocess.run(
        ["cp", "-r", *(CHECKOUT / name for name in ("loraserve", "infra", "local", "bench")), tmp_path], check=True
    )
    (tmp_path / "pyproject.toml").write_text((CHECKOUT / "pyproject.toml").read_text())
    with (tmp_path / "loraserve/contract/keys.py").open("a") as module:
        module.write("import loraserve.agent.settings\nimport pulumi\n")
    command = [Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    assert "loraserve.contract is not allowed to import loraserve.agent" in run.stdout
    assert "loraserve is not allowed to import pulumi" in run.stdout
