"""The package on its own, its locks, vLLM's one version and the import rules."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from infra import pinned_images, versions
from local.paths import CHECKOUT, cache_dir

_PROJECT: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
_PACKAGE: list[str] = _PROJECT["project"]["dependencies"]
_EXTRAS: dict[str, list[str]] = _PROJECT["project"]["optional-dependencies"]
_SERVER, _EVALUATE = _EXTRAS["server"], _EXTRAS["evaluate"]
_GROUPS: dict[str, list[str]] = _PROJECT["dependency-groups"]
_VLLM_CPU = CHECKOUT / "images" / "vllm-cpu"

_TRAINING = "images/training/requirements.txt"
"""Of an image that only a stack which trains builds."""
_LOCKS = {
    "requirements.txt": [*_PACKAGE, *_EVALUATE, *_GROUPS["program"]],
    "requirements-dev.txt": [*_PACKAGE, *_SERVER, *_EVALUATE, *_GROUPS["program"], *_GROUPS["dev"]],
    "images/loraserve/requirements.txt": [*_PACKAGE, *_SERVER, *_EVALUATE],
    _TRAINING: [*_PACKAGE, *_PROJECT["project"]["optional-dependencies"]["train"]],
}


def _pins(lock: str | Path) -> dict[str, str]:
    """Version by package."""
    return dict(re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;]+)", (CHECKOUT / lock).read_text(), re.MULTILINE))


@pytest.mark.parametrize("lock", _LOCKS)
def test_a_lock_fits_what_pyproject_asks_for(lock: str) -> None:
    pins = _pins(lock)
    unmet = [
        text
        for text in _LOCKS[lock]
        if (asked := Requirement(text)) and not asked.specifier.contains(pins.get(asked.name, "0"), prereleases=True)
    ]
    assert unmet == [], f"{lock} is out of date: `make lock`"


@pytest.mark.parametrize("lock", [lock for lock in _LOCKS if lock not in ("requirements-dev.txt", _TRAINING)])
def test_what_is_tested_is_what_runs(lock: str) -> None:
    assert _pins(lock).items() <= _pins("requirements-dev.txt").items()


def test_vllm_has_one_version_in_the_image_the_cpu_build_and_the_group() -> None:
    assert f"docker.io/vllm/vllm-openai:v{versions.VLLM}" == pinned_images.VLLM
    assert _GROUPS["vllm"] == [f"vllm=={versions.VLLM}"]
    assert f"vllm-cpu=={versions.VLLM}" in (_VLLM_CPU / "requirements.in").read_text().splitlines()
    assert _pins(_VLLM_CPU / "requirements.txt")["vllm-cpu"] == versions.VLLM


def test_the_policy_pack_runs_with_what_it_is_tested_with() -> None:
    assert _pins("policy/requirements.txt").items() <= _pins("requirements-dev.txt").items()


@pytest.mark.parametrize("lock", [lock for lock in _LOCKS if lock != _TRAINING])
def test_no_word_of_the_makefile_installs_vllm(lock: str) -> None:
    assert not {"vllm", "torch"} & _pins(lock).keys()


@pytest.mark.parametrize("fails", [False, True])
def test_an_installation_on_a_slow_line_is_not_silent(tmp_path: Path, fails: bool) -> None:
    slow = tmp_path / "uv"
    slow.write_text(f"#!/bin/sh\nmkdir -p .venv\nsleep 0.5\nexit {int(fails)}\n")
    slow.chmod(0o755)
    for name in ("Makefile", "requirements-dev.txt"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    command = ["make", "install", f"UV={slow}", "BEAT_SECONDS=0.1"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.splitlines()[0] == "installing Python packages into .venv ..."
    assert " s so far" in run.stdout
    assert bool(run.returncode) is fails


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` installs, built by the uv that `make install` installed (nothing is downloaded)."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [cache_dir() / "uv/bin/uv", "build", "--quiet", "--offline", "--no-cache", "--wheel", "--out-dir", folder]
    subprocess.run([*command, CHECKOUT], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_nothing_needs_pulumi_or_this_checkout_and_an_operators_shell_needs_no_servers_libraries(wheel: Path) -> None:
    servers = [Requirement(text).name.replace("-", "_") for text in _SERVER]
    script = f"""
import importlib, pkgutil
def import_all(package):
    package = importlib.import_module(package)
    assert {str(wheel)!r} in package.__file__
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(("__main__", "training.trainer")):  # which needs torch
            importlib.import_module(module.name)
for room in ("operator", "catalog", "planning", "contract"):
    import_all("loraserve." + room)
assert "loraserve.operator.cli" in sys.modules and "loraserve.agent" not in sys.modules
for library in {servers!r}:
    del sys.modules[library]
import_all("loraserve")
assert "loraserve.gateway.main" in sys.modules
"""
    run = _run(wheel, script, blocked=["pulumi", "infra", "local", "bench", "tests", *servers])
    assert run.returncode == 0, run.stderr


def test_a_server_without_its_libraries_says_what_to_install(wheel: Path) -> None:
    script = "from loraserve.operator.cli import main\nsys.exit(main(['gateway']))"
    run = _run(wheel, script, blocked=["uvloop"])
    assert (run.returncode, run.stderr) == (1, "loraserve: uvloop is missing here: pip install 'loraserve[server]'\n")


def _run(wheel: Path, script: str, blocked: list[str]) -> subprocess.CompletedProcess[str]:
    """A process that has the wheel and this environment's packages, but for some."""
    start = f"import sys\nsys.path.insert(0, {str(wheel)!r})\nsys.modules.update(dict.fromkeys({blocked!r}))\n"
    command = [sys.executable, "-I", "-c", start + script]
    return subprocess.run(command, cwd=wheel.parent, capture_output=True, text=True)


def test_the_import_rules_catch_a_room_that_reaches_up(tmp_path: Path) -> None:
    """The rules are run by `make check`; here on a copy in which one room breaks one."""
    subprocess.run(
        ["cp", "-r", *(CHECKOUT / name for name in ("loraserve", "infra", "local", "policy", "bench")), tmp_path],
        check=True,
    )
    (tmp_path / "pyproject.toml").write_text((CHECKOUT / "pyproject.toml").read_text())
    with (tmp_path / "loraserve/contract/keys.py").open("a") as module:
        module.write("import loraserve.agent.settings\nimport pulumi\n")
    command = [Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    assert "loraserve.contract is not allowed to import loraserve.agent" in run.stdout
    assert "loraserve is not allowed to import pulumi" in run.stdout


@pytest.mark.parametrize("container", ["loraserve", "local"])
def test_the_map_for_newcomers_has_every_room_of_the_import_rules(container: str) -> None:
    [rooms] = [
        rule["layers"]
        for rule in _PROJECT["tool"]["importlinter"]["contracts"]
        if rule.get("containers") == [container]
    ]
    named = {room.strip() for layer in rooms for room in layer.split("|")} - {"__main__"}
    map_ = (CHECKOUT / "CONTRIBUTING.md").read_text().partition("## The map")[2].partition("The rules are in")[0]
    assert [room for room in sorted(named) if not re.search(rf"\b{room}\b", map_)] == []
