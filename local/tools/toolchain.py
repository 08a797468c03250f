"""The command-line tools of the local stack: the user's own where they are recent enough, else built from source.

Everything built goes to a cache outside the checkout, in one folder per source and version. A tool appears there only
when it is complete, so that an interrupted build is simply built again. `python -m local.tools` builds everything.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from local import commands
from local.commands import CommandError
from local.paths import cache_dir
from local.processes import ProcessError, locked
from local.progress import Say, say
from local.tools import go_build, versions
from local.tools.go_build import GoModule


class ToolchainError(ProcessError):
    """A tool that can be neither found nor built. The message says what to do."""


class Tool(StrEnum):
    PULUMI = "pulumi"
    PULUMI_KUBERNETES = "pulumi-resource-kubernetes"
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
    PROMTOOL = "promtool"
    PROMETHEUS = "prometheus"
    ALERTMANAGER = "alertmanager"
    KUBE_STATE_METRICS = "kube-state-metrics"
    VEGETA = "vegeta"
    KUBECONFORM = "kubeconform"
    KUBE_SCORE = "kube-score"


OF_MONITORING = (Tool.PROMETHEUS, Tool.ALERTMANAGER, Tool.KUBE_STATE_METRICS)
OF_SCANS = (Tool.KUBECONFORM, Tool.KUBE_SCORE)
OF_TESTS = (Tool.KWOK, Tool.PROMTOOL, Tool.VEGETA, *OF_MONITORING, *OF_SCANS)
"""What `make up` needs none of."""
_KEDA_RESOURCES = (
    "keda.sh_scaledobjects",
    "keda.sh_scaledjobs",
    "keda.sh_triggerauthentications",
    "keda.sh_clustertriggerauthentications",
    "eventing.keda.sh_cloudeventsources",
    "eventing.keda.sh_clustercloudeventsources",
)
_COREDNS = GoModule("coredns", "github.com/coredns/coredns", versions.COREDNS, programs={Tool.COREDNS: "."}, minutes=3)
_ETCD = GoModule(
    "etcd", "go.etcd.io/etcd/server/v3", versions.ETCD, programs={Tool.ETCD: "go.etcd.io/etcd/server/v3"}, minutes=2
)
_KUBERNETES = GoModule(
    "kubernetes",
    "k8s.io/kubernetes",
    versions.KUBERNETES,
    programs={
        tool: f"k8s.io/kubernetes/cmd/{tool}"
        for tool in (
            Tool.KUBE_APISERVER,
            Tool.KUBE_CONTROLLER_MANAGER,
            Tool.KUBE_SCHEDULER,
            Tool.KUBELET,
            Tool.KUBE_PROXY,
            Tool.KUBECTL,
        )
    },
    minutes=8,
    siblings_version=versions.KUBERNETES_LIBRARIES,
    version_variable="k8s.io/component-base/version.gitVersion",
)
_PULUMI = GoModule(
    "pulumi",
    "github.com/pulumi/pulumi/pkg/v3",
    versions.PULUMI,
    programs={Tool.PULUMI: "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"},
    minutes=5,
    replace=("gocloud.dev => gocloud.dev v0.47.0",),
    # Without it the Automation API takes the CLI for a development build and refuses it.
    version_variable="github.com/pulumi/pulumi/sdk/v3/go/common/version.Version",
)
_PULUMI_KUBERNETES = GoModule(
    "pulumi-kubernetes",
    "github.com/pulumi/pulumi-kubernetes/provider/v4",
    versions.PULUMI_KUBERNETES,
    programs={Tool.PULUMI_KUBERNETES: "."},
    minutes=9,
    version_variable="main.version",
    # The CLI warns at each run of a provider that says it is older than the SDK whose requests it serves.
    stamp=f"{metadata.version('pulumi-kubernetes')}+{versions.PULUMI_KUBERNETES.rpartition('-')[2]}",
    embedded=(
        "cmd/pulumi-resource-kubernetes/schema.json",
        "cmd/pulumi-resource-kubernetes/terraform-mapping.json",
    ),
)
_KEDA = GoModule(
    "keda",
    "github.com/kedacore/keda/v2",
    versions.KEDA,
    programs={
        Tool.KEDA: "github.com/kedacore/keda/v2/cmd/operator",
        Tool.KEDA_ADAPTER: "github.com/kedacore/keda/v2/cmd/adapter",
    },
    minutes=9,
    files=tuple(f"config/crd/bases/{name}.yaml" for name in _KEDA_RESOURCES),
)
_KWOK = GoModule(
    "kwok",
    "sigs.k8s.io/kwok",
    versions.KWOK,
    programs={Tool.KWOK: "sigs.k8s.io/kwok/cmd/kwok"},
    minutes=2,
    files=(
        "kustomize/stage/node/fast/node-initialize.yaml",
        "kustomize/stage/pod/fast/pod-ready.yaml",
        "kustomize/stage/pod/fast/pod-complete.yaml",
        "kustomize/stage/pod/fast/pod-delete.yaml",
    ),
)
_PROMETHEUS_OPERATOR = GoModule(
    "prometheus-operator",
    "github.com/prometheus-operator/prometheus-operator",
    versions.PROMETHEUS_OPERATOR,
    files=tuple(
        f"example/prometheus-operator-crd/monitoring.coreos.com_{plural}.yaml"
        for plural in ("servicemonitors", "prometheusrules")
    ),
)
_PROMETHEUS = GoModule(
    "prometheus",
    "github.com/prometheus/prometheus",
    versions.PROMETHEUS,
    programs={tool: f"github.com/prometheus/prometheus/cmd/{tool}" for tool in (Tool.PROMTOOL, Tool.PROMETHEUS)},
    minutes=4,
    # Its ways to find targets bring the SDK of every cloud.
    tags=("remove_all_sd", "enable_kubernetes_sd"),
)
_ALERTMANAGER = GoModule(
    "alertmanager",
    "github.com/prometheus/alertmanager",
    versions.ALERTMANAGER,
    programs={Tool.ALERTMANAGER: "github.com/prometheus/alertmanager/cmd/alertmanager"},
    minutes=3,
    # Its pages are built apart and are not in the module; the API needs none.
    lacking=("ui/app/dist/index.html",),
)
_KUBE_STATE_METRICS = GoModule(
    "kube-state-metrics",
    "k8s.io/kube-state-metrics/v2",
    versions.KUBE_STATE_METRICS,
    programs={Tool.KUBE_STATE_METRICS: "k8s.io/kube-state-metrics/v2"},
    minutes=3,
)
_VEGETA = GoModule(
    "vegeta",
    "github.com/tsenart/vegeta/v12",
    versions.VEGETA,
    programs={Tool.VEGETA: "github.com/tsenart/vegeta/v12"},
    minutes=2,
)
_KUBECONFORM = GoModule(
    "kubeconform",
    "github.com/yannh/kubeconform",
    versions.KUBECONFORM,
    programs={Tool.KUBECONFORM: "github.com/yannh/kubeconform/cmd/kubeconform"},
    minutes=1,
)
_KUBE_SCORE = GoModule(
    "kube-score",
    "github.com/zegl/kube-score",
    versions.KUBE_SCORE,
    programs={Tool.KUBE_SCORE: "github.com/zegl/kube-score/cmd/kube-score"},
    minutes=2,
)

MODULES = (
    _COREDNS,
    _ETCD,
    _KUBERNETES,
    _PULUMI,
    _PULUMI_KUBERNETES,
    _KEDA,
    _KWOK,
    _PROMETHEUS_OPERATOR,
    _PROMETHEUS,
    _ALERTMANAGER,
    _KUBE_STATE_METRICS,
    _VEGETA,
    _KUBECONFORM,
    _KUBE_SCORE,
)
"""In the order in which they are built: CoreDNS's image is made beside the other builds."""

_BUILDING_GB_A_MINUTE = 0.35
"""What sources, the compiler's cache and the programs take, for each minute that a build takes."""


def ensure(*tools: Tool) -> dict[Tool, Path]:
    """The executables of these tools, built first where they are missing. Raises ProcessError."""
    if not are_there(*tools):
        with _cache_lock():
            _build({module: programs for module in MODULES if (programs := _missing(module, tools))})
    return {tool: _find(tool) or _built(tool) for tool in tools}


def are_there(*tools: Tool) -> bool:
    """Whether nothing has to be built for them."""
    return all(_find(tool) for tool in tools)


def crds() -> list[Path]:
    """Manifests of the custom resources that the program creates, or that KEDA's operator looks for."""
    return [*_files(_PROMETHEUS_OPERATOR), *_files(_KEDA)]


def kwok_stages() -> list[Path]:
    """Manifests that tell kwok how nodes and pods come to life, finish and go."""
    return _files(_KWOK)


def disk_gb(tools: Iterable[Tool]) -> float:
    """What building those of them that are missing takes at its peak; most of it is given back."""
    return sum(module.minutes * _BUILDING_GB_A_MINUTE for module in MODULES if _missing(module, tools))


def write_locks(names: Iterable[str], say: Say) -> None:
    """Pins anew what the modules of these names are built from; all of them where none is named. Raises ProcessError."""
    chosen = set(names)
    if unknown := chosen - {module.name for module in MODULES}:
        raise ToolchainError(
            f"There is no module {', '.join(sorted(unknown))}: choose from {', '.join(module.name for module in MODULES)}"
        )
    go_build.write_locks([module for module in MODULES if not chosen or module.name in chosen], say)


def _missing(module: GoModule, tools: Iterable[Tool]) -> list[str]:
    return [tool for tool in tools if tool in module.programs and _find(tool) is None]


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
    try:
        said = commands.output(command, env=environment)
    except CommandError:
        return ()
    numbers = re.search(r"(\d+)\.(\d+)", said)
    return tuple(int(number) for number in numbers.groups()) if numbers else ()


def _built(tool: Tool) -> Path:
    return next(module.folder for module in MODULES if tool in module.programs) / tool


def _cache_lock() -> AbstractContextManager[None]:
    return locked(cache_dir() / "lock", waiting=lambda: say(f"waiting for another build in {cache_dir()} to finish"))


def _build(wanted: dict[GoModule, list[str]]) -> None:
    if wanted:
        check_room(sum(module.minutes * _BUILDING_GB_A_MINUTE for module in wanted), "Building the local tools")
        go_build.build(wanted, say)


def check_room(needed_gb: float, what: str) -> None:
    """Raises ToolchainError where the cache's disk has less free."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    free_gb = shutil.disk_usage(cache_dir()).free / 1e9
    if free_gb < needed_gb:
        raise ToolchainError(
            f"{what} needs about {needed_gb:.0f} GB in {cache_dir()}, where {free_gb:.1f} GB are free: "
            f"{needed_gb - free_gb:.1f} GB are missing. Free some space, or point LORASERVE_CACHE at a larger disk."
        )


def _files(module: GoModule) -> list[Path]:
    """Files of a module's source, copied to the cache."""
    copies = [module.folder / Path(name).name for name in module.files]

    def are_there() -> bool:
        return all(copy.exists() for copy in copies)

    if not are_there():
        with _cache_lock():
            if not are_there():
                go_build.build({module: []}, say)
    return copies
