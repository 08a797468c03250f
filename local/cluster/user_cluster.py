"""A cluster of the user's own as the place of the stack: chosen by its context, used without root, left as it was.

It runs in Docker on this machine (kind, k3d, minikube). What changes in it, our namespaces apart: it gets two images, and
one node carries the GPU group's label and advertises a GPU, which `remove` takes back. The node gets no taint: it may be
the only one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import names
from local import commands
from local.cluster.kubectl import kubectl
from local.cluster.place import Images, check_memory
from local.images import docker
from local.processes import ProcessError
from local.progress import Say
from local.tools.toolchain import Tool, ensure

_KIND, _K3D = "kind-", "k3d-"
_LOCAL = (_KIND, _K3D, "minikube")
"""How contexts of clusters in Docker on this machine begin."""
_OLDEST_MINOR = 30
"""Kubernetes 1.30 is the first with native sidecars and a hook that sleeps."""
_NAMESPACES = (names.SERVING_NAMESPACE, names.MONITORING_NAMESPACE)
_PATIENCE = "--request-timeout=10s"
_REMOVAL_PATIENCE = "--timeout=2m"


@dataclass(frozen=True)
class UserCluster:
    """The cluster whose context was chosen; `state` holds a copy of that context and the name of the node that serves."""

    state: Path
    title = "your cluster: images, one node for the model"
    exists = True

    @classmethod
    def load(cls, state: Path) -> UserCluster | None:
        """The one that was chosen; None where none was."""
        cluster = cls(state)
        return cluster if cluster.kubeconfig.exists() else None

    @classmethod
    def choose(cls, state: Path, context: str) -> UserCluster:
        """Copies this context, and nothing else, of the user's kubeconfig. Raises ProcessError where it cannot serve."""
        if context not in (known := contexts()):
            listed = ", ".join(known) or "none"
            raise ProcessError(
                f"Your kubeconfig has no context {context!r}; `kubectl config get-contexts` lists: {listed}."
            )
        check_memory()
        _address(context)

        def on_it(*arguments: str) -> str:
            return kubectl(None, *arguments, f"--context={context}", _PATIENCE)

        _check_version(on_it)
        _check_vacant(on_it)
        _pick(_nodes(on_it))
        cluster = cls(state)
        state.mkdir(parents=True, exist_ok=True)
        copied = cluster.kubeconfig.with_suffix(".partial")
        copied.touch(mode=0o600)
        copied.write_text(kubectl(None, "config", "view", "--minify", "--flatten", f"--context={context}"))
        copied.rename(cluster.kubeconfig)
        return cluster

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def context(self) -> str:
        return self._kubectl("config", "current-context").strip()

    @property
    def settings(self) -> Mapping[str, Any]:
        """KEDA's operator would have to be installed into the cluster."""
        return {"scalingEnabled": False}

    @property
    def running(self) -> bool:
        with suppress(ProcessError):
            self._kubectl("get", "--raw=/readyz", _PATIENCE)
            return True
        return False

    @property
    def address(self) -> str:
        return _address(self.context)

    @property
    def node(self) -> str | None:
        """The node that was prepared."""
        return self._node_file.read_text() if self._node_file.exists() else None

    def check(self) -> None:
        if not self.running:
            raise ProcessError(
                f"The cluster of context {self.context} does not answer: start it, and run the same command again. If it "
                f"is gone: `make down`, then `make up CONTEXT={self.context}` once there is a new one."
            )
        _address(self.context)

    def prepare(self, say: Say) -> Images:
        ensure(Tool.PULUMI, Tool.KUBECTL)
        return Images(vllm=docker.vllm(say), loraserve=docker.loraserve(say))

    def start(self, say: Say) -> None:
        node = _pick(_nodes(self._kubectl), self.node)
        images = self.prepare(say)
        self._load([image for image in (images.vllm, images.loraserve) if image not in _images_on(node)], say)
        name: str = node["metadata"]["name"]
        self._node_file.write_text(name)
        say(f"node {name} takes the model: it gets a label and advertises one GPU")
        self._set_on_node(name, labels=names.GPU_SELECTOR, gpus="1")

    def wake(self) -> None:
        """Without KEDA the program itself says how many replicas there are."""

    def start_scaling(self) -> None:
        """KEDA is off here: a cluster of one's own may have one."""

    def revive(self) -> None:
        """Whoever runs the cluster does that."""

    def run_in_vllm_image(self, command: Sequence[str], folders: Sequence[Path]) -> None:
        docker.run_in_image(docker.vllm(lambda _: None), command, folders)

    def status(self) -> dict[str, str]:
        answers = "answers" if self.running else "does not answer"
        return {
            "Kubernetes": f"context {self.context}, {answers}",
            "Node": self.node or "not chosen yet (`make up` goes on)",
        }

    def remove(self) -> list[str]:
        try:
            self._kubectl("delete", "namespace", *_NAMESPACES, "--ignore-not-found", _REMOVAL_PATIENCE)
            if self.node in _nodes(self._kubectl):
                self._set_on_node(str(self.node), labels=dict.fromkeys(names.GPU_SELECTOR), gpus=None)
        except ProcessError as error:
            return [f"what was made in the cluster of context {self.context}, unless that is gone ({error})"]
        return []

    @property
    def _node_file(self) -> Path:
        return self.state / "node"

    def _kubectl(self, *arguments: str) -> str:
        return kubectl(self.kubeconfig, *arguments)

    def _set_on_node(self, name: str, labels: Mapping[str, str | None], gpus: str | None) -> None:
        """What the node group and the device plugin would do; None takes it back."""
        resources = {names.GPU_RESOURCE: gpus}
        for patch, where in (
            ({"metadata": {"labels": labels}}, []),
            ({"status": {"capacity": resources, "allocatable": resources}}, ["--subresource=status"]),
        ):
            self._kubectl("patch", "node", name, "--type=merge", f"--patch={json.dumps(patch)}", *where)

    def _load(self, images: Sequence[str], say: Say) -> None:
        """Gives the cluster images that it lacks. Raises ProcessError, which says how, where it cannot be done here."""
        if not images:
            return
        context = self.context
        if context.startswith(_KIND):
            command = ["kind", "load", "docker-image", *images, "--name", context.removeprefix(_KIND)]
        elif context.startswith(_K3D):
            command = ["k3d", "image", "import", *images, "--cluster", context.removeprefix(_K3D)]
        else:
            raise ProcessError(
                f"The cluster of context {context} lacks images that Docker has built here. Load them with its own tool "
                f"(such as `minikube image load IMAGE`), then run the same command again: {', '.join(images)}"
            )
        say(f"loading images into the cluster: {', '.join(images)}")
        if not shutil.which(command[0]):
            raise ProcessError(f"`{command[0]}` loads images into the cluster of {context}, and it is not on PATH.")
        commands.output(command)


def contexts() -> list[str]:
    """Of the user's kubeconfig; none where there is no kubectl. Raises CommandError."""
    if not (found := shutil.which("kubectl")):
        return []
    return commands.output([found, "config", "get-contexts", "--output=name"]).split()


def how_to_choose() -> str:
    """The command that names a cluster of the user's own: none is ever taken unasked, it may serve production."""
    local: list[str] = []
    with suppress(ProcessError):
        local = [context for context in contexts() if context.startswith(_LOCAL)]
    if not local:
        return "make one (`kind create cluster`), then `make up CONTEXT=kind-kind`"
    return " or ".join(f"`make up CONTEXT={context}`" for context in local)


def _address(context: str) -> str:
    """This machine's, as pods of this cluster reach it. Raises ProcessError."""
    # kind has one network for all its clusters; k3d and minikube name each after the context.
    network = "kind" if context.startswith(_KIND) else context
    try:
        return str(docker.gateway(network))
    except ProcessError as error:
        needed = "A cluster of your own must run in Docker on this machine (kind, k3d, minikube)"
        raise ProcessError(f"{needed}; for context {context} that was not found: {error}") from None


def _nodes(kubectl: Callable[..., str]) -> dict[str, dict[str, Any]]:
    listed = json.loads(kubectl("get", "nodes", "--output=json"))["items"]
    return {node["metadata"]["name"]: node for node in listed}


def _pick(nodes: Mapping[str, dict[str, Any]], known: str | None = None) -> dict[str, Any]:
    """The node that was prepared before, else the first that can be. Raises ProcessError."""
    for name, node in nodes.items():
        if name == known or (known not in nodes and _can_serve(node)):
            return node
    raise ProcessError(
        f"No node of the cluster can take the model ({', '.join(nodes)}): one must be Ready and open to every pod (no "
        "taint, not cordoned), and have no GPU and no label `workload` of its own."
    )


def _check_version(kubectl: Callable[..., str]) -> None:
    version = json.loads(kubectl("version", "--output=json"))["serverVersion"]
    minor = int("".join(filter(str.isdigit, version["minor"])))
    if minor < _OLDEST_MINOR:
        raise ProcessError(
            f"The cluster runs Kubernetes {version['gitVersion']}, and 1.{_OLDEST_MINOR} or newer is needed."
        )


def _check_vacant(kubectl: Callable[..., str]) -> None:
    """The program takes over what it finds under its names, and `make down` deletes it."""
    listed = kubectl("get", "namespaces", *_NAMESPACES, "--ignore-not-found", "--output=name").split()
    if listed:
        raise ProcessError(
            f"The cluster has {' and '.join(listed)} already, which the stack would take over and `make down` delete. "
            "If they are yours, use another cluster; else delete them first."
        )


def _can_serve(node: Mapping[str, Any]) -> bool:
    spec, status = node["spec"], node["status"]
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))
    open_to_all = not spec.get("unschedulable") and not spec.get("taints")
    own_labels = names.GPU_SELECTOR.keys() & node["metadata"]["labels"].keys()
    return ready and open_to_all and not own_labels and names.GPU_RESOURCE not in status["capacity"]


def _images_on(node: Mapping[str, Any]) -> set[str]:
    """The kubelet lists the largest ones only; one that it leaves out is loaded once more, which does no harm."""
    return {name for image in node["status"].get("images", []) for name in image.get("names", [])}
