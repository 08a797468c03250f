"""Finding and building tools, with a stand-in for Go: what is taken, what is built once, and what a failure says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from local.tools import toolchain
from local.tools.toolchain import Tool, ToolchainError

_GO = """#!/bin/sh
case "$1 $2" in
  version*) echo go version go1.99.0 linux/amd64 ;;
  "env GOCACHE") echo {folder}/gocache; echo {folder}/gomodcache ;;
  "mod download") echo '{{"GoMod": "{folder}/own.mod", "Dir": "{folder}"}}' ;;
  "mod edit") echo '{{"Replace": [{{"Old": {{"Path": "k8s.io/api"}}, "New": {{"Path": "./staging/api"}}}}]}}' ;;
  build*)
    echo built >> {folder}/builds
    test -e {folder}/broken && echo undefined: Frobnicate && exit 1
    sleep 0.2
    while [ "$1" != -o ]; do shift; done
    echo tool > "$2" ;;
esac
"""


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on PATH but a stand-in for Go, and an empty cache. The folder holds what it did."""
    programs = tmp_path / "programs"
    programs.mkdir()
    _write_program(programs / "go", _GO.format(folder=tmp_path))
    for needed in ("sh", "sleep"):
        (programs / needed).symlink_to(f"/bin/{needed}")
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("LORASERVE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_missing_tool_is_built_once(go: Path) -> None:
    first = toolchain.ensure(Tool.ETCD)
    assert first[Tool.ETCD].is_relative_to(go / "cache")
    assert toolchain.ensure(Tool.ETCD) == first
    assert _builds(go) == 1


def test_a_recent_pulumi_of_the_users_is_taken(go: Path) -> None:
    own = go / "programs" / "pulumi"
    _write_program(own, "#!/bin/sh\necho v3.300.1\n")
    assert toolchain.ensure(Tool.PULUMI) == {Tool.PULUMI: own}
    assert _builds(go) == 0


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


def test_modules_of_kubernetes_own_tree_are_taken_at_their_published_version(go: Path) -> None:
    toolchain.ensure(Tool.KUBE_SCHEDULER)
    (go_mod,) = go.glob("cache/kubernetes-*/go.mod")
    assert "replace k8s.io/api => k8s.io/api v0.35.4\n" in go_mod.read_text()


def test_a_failed_build_shows_the_compilers_words_and_is_repeated(go: Path) -> None:
    (go / "broken").touch()
    with pytest.raises(ToolchainError, match=r"undefined: Frobnicate(.|\n)*GOPROXY"):
        toolchain.ensure(Tool.ETCD)
    (go / "broken").unlink()
    assert toolchain.ensure(Tool.ETCD)[Tool.ETCD].exists()


def test_an_interrupted_build_is_repeated(go: Path) -> None:
    tool = toolchain.ensure(Tool.ETCD)[Tool.ETCD]
    tool.rename(tool.with_suffix(".partial"))
    assert toolchain.ensure(Tool.ETCD)[Tool.ETCD].exists()
    assert _builds(go) == 2


def test_a_full_disk_is_noticed_before_building(go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0.25e9))
    with pytest.raises(ToolchainError, match=r"0\.8 GB are missing"):
        toolchain.ensure(Tool.ETCD)
    assert _builds(go) == 0


def test_a_second_builder_waits_for_the_first(go: Path) -> None:
    with ThreadPoolExecutor(2) as builders:
        results = list(builders.map(lambda _: toolchain.ensure(Tool.ETCD), range(2)))
    assert results[0] == results[1]
    assert _builds(go) == 1


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _builds(go: Path) -> int:
    return len((go / "builds").read_text().splitlines()) if (go / "builds").exists() else 0
