"""Finding and building tools, with a stand-in for Go: what is taken, what is built once, and what a failure says."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from local.processes import ProcessError
from local.tools import toolchain
from local.tools.go_build import GoModule
from local.tools.toolchain import MODULES, Tool

_GO = """#!/bin/sh
case "$1 $2" in
  version*) echo go version go1.99.0 linux/amd64 ;;
  "mod download") echo >> {folder}/downloads; echo '{{"Dir": "{folder}/module"}}' ;;
  list*) test -e go.sum; echo "$GOFLAGS" >> {folder}/flags ;;
  build*)
    echo "$@" >> {folder}/builds
    echo "$GOFLAGS" >> {folder}/flags
    test -e {folder}/broken && echo undefined: Frobnicate && exit 1
    sleep 0.2
    while [ "$1" != -o ]; do shift; done
    results="$2"; shift 2; mkdir "$results"
    for package; do
      name="${{package%/v[0-9]}}"; name="${{name%/v[0-9][0-9]}}"; name="${{name##*/}}"
      test "$name" = . && name=build
      echo "$package" > "$results$name"
    done ;;
esac
"""


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on PATH but a stand-in for Go, and an empty cache. The folder holds what it did."""
    programs = tmp_path / "programs"
    programs.mkdir()
    _write_program(programs / "go", _GO.format(folder=tmp_path))
    for needed in ("sh", "sleep", "mkdir"):
        (programs / needed).symlink_to(f"/bin/{needed}")
    for module in MODULES:
        for name in (*module.embedded, *module.files):
            (tmp_path / "module" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "module" / name).write_text(name)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("LORASERVE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_missing_tool_is_built_once(go: Path) -> None:
    first = toolchain.ensure(Tool.ETCD)
    assert first[Tool.ETCD].is_relative_to(go / "cache")
    assert toolchain.ensure(Tool.ETCD) == first
    assert len(_builds(go)) == 1


def test_programs_of_one_module_are_built_together_and_each_is_itself(go: Path) -> None:
    found = toolchain.ensure(*Tool)
    assert len(_builds(go)) == len([module for module in MODULES if module.programs])
    for module in MODULES:
        for tool, package in module.programs.items():
            assert found[Tool(tool)].read_text().strip() == package


def test_sources_and_the_compilers_cache_go_when_the_tools_are_built(
    go: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toolchain.ensure(Tool.ETCD, Tool.COREDNS)
    assert "deleting sources" in capsys.readouterr().out, "a slow disk takes minutes for it: they are not silent"
    assert sorted(path.name.partition("-v")[0] for path in (go / "cache").iterdir()) == ["coredns", "etcd", "lock"]


def test_a_build_resolves_nothing(go: Path) -> None:
    """It asks for what its go.sum names; without one, thousands of requests come before the first compiled line."""
    toolchain.ensure(Tool.ETCD)
    flags = (go / "flags").read_text().splitlines()
    assert len(flags) == 2
    assert all("-mod=readonly" in line for line in flags)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_what_is_pinned_fits_the_version_that_is_built(module: GoModule) -> None:
    """After a change in versions.py: `make lock-tools NAMES=...`."""
    go_mod, go_sum = ((module.lock / name).read_text() for name in ("go.mod", "go.sum"))
    assert re.search(rf"{re.escape(module.path)} {re.escape(module.version)}(\s|$)", go_mod)
    assert f"\n{module.path} {module.version} h1:" in f"\n{go_sum}"
    packages = {package for package in module.programs.values() if package != "."}
    assert set(re.findall(r"^(?:tool |\t)(\S+)$", go_mod, re.MULTILINE)) == packages
    if "." in module.programs.values():
        assert module.path in (module.lock / "main.go").read_text()


def test_nothing_is_pinned_that_is_not_built() -> None:
    assert {path.name for path in toolchain.go_build.LOCKS.iterdir()} == {module.name for module in MODULES}


def test_files_of_a_module_lie_beside_its_programs(go: Path) -> None:
    toolchain.ensure(Tool.KEDA)
    for manifest in toolchain.crds():
        assert manifest.read_text().endswith(manifest.name)
    assert len(_builds(go)) == 1


def test_who_waited_for_another_that_made_the_files_takes_them(go: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: toolchain.crds(), range(4)))
    assert len((go / "downloads").read_text().splitlines()) == len({"keda", "prometheus-operator"})


def test_only_for_programs_that_are_wanted_is_everything_fetched_that_they_import(go: Path) -> None:
    toolchain.crds()
    assert not (go / "flags").exists(), "no `go list`: a gigabyte for KEDA alone"


def test_a_recent_pulumi_of_the_users_is_taken(go: Path) -> None:
    own = go / "programs" / "pulumi"
    _write_program(own, "#!/bin/sh\necho v3.300.1\n")
    assert toolchain.ensure(Tool.PULUMI) == {Tool.PULUMI: own}
    assert not _builds(go)


@pytest.mark.parametrize("version", ["v3.100.0", "v4.0.0", "nonsense"])
def test_a_pulumi_that_does_not_fit_is_not_taken(go: Path, version: str) -> None:
    own = go / "programs" / "pulumi"
    _write_program(own, f"#!/bin/sh\necho {version}\n")
    assert toolchain.ensure(Tool.PULUMI)[Tool.PULUMI] != own


def test_a_kubectl_of_a_neighbouring_version_is_taken(go: Path) -> None:
    own = go / "programs" / "kubectl"
    _write_program(own, "#!/bin/sh\necho Client Version: v1.34.1\n")
    assert toolchain.ensure(Tool.KUBECTL)[Tool.KUBECTL] == own
    _write_program(own, "#!/bin/sh\necho Client Version: v1.20.2\n")
    assert toolchain.ensure(Tool.KUBECTL)[Tool.KUBECTL] != own


def test_a_failed_build_shows_the_compilers_words_and_is_repeated(go: Path) -> None:
    (go / "broken").touch()
    with pytest.raises(ProcessError, match=r"undefined: Frobnicate(.|\n)*GOPROXY"):
        toolchain.ensure(Tool.ETCD)
    (go / "broken").unlink()
    assert toolchain.ensure(Tool.ETCD)[Tool.ETCD].exists()


def test_an_interrupted_build_is_repeated(go: Path) -> None:
    tool = toolchain.ensure(Tool.ETCD)[Tool.ETCD]
    tool.rename(tool.with_suffix(".partial"))
    assert toolchain.ensure(Tool.ETCD)[Tool.ETCD].exists()
    assert len(_builds(go)) == 2


def test_a_full_disk_is_noticed_before_building(go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0.25e9))
    with pytest.raises(ProcessError, match=r"0\.25? GB are free|GB are missing"):
        toolchain.ensure(Tool.ETCD)
    assert not _builds(go)


def test_a_second_builder_waits_for_the_first(go: Path) -> None:
    with ThreadPoolExecutor(2) as builders:
        results = list(builders.map(lambda _: toolchain.ensure(Tool.ETCD), range(2)))
    assert results[0] == results[1]
    assert len(_builds(go)) == 1


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _builds(go: Path) -> list[str]:
    return (go / "builds").read_text().splitlines() if (go / "builds").exists() else []
