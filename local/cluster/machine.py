"""This machine as the place of the stack: a control plane and one real node, made for it and removed with it."""

from __future__ import annotations

import os
import string
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import names
from local.cluster import containerd, keda, node, user_cluster
from local.cluster.control_plane import ControlPlane
from local.cluster.kubectl import kubectl
from local.cluster.network import Network
from local.cluster.node import Node
from local.cluster.place import Images, check_memory
from local.engine import plugins
from local.images import recipes
from local.images.recipes import Image
from local.processes import ProcessError
from local.progress import Say
from local.tools import debian
from local.tools.toolchain import OF_TESTS, Tool, are_there, check_room, disk_gb, ensure

_FIRST = [tool for tool in Tool if tool not in (*keda.PARTS, *OF_TESTS, Tool.PULUMI_KUBERNETES)]
"""What the first answers need. KEDA comes after them; a plugin is built where the user has none; kwok and vegeta serve
tests and benches."""
_MISSING = "not there (`make up` starts it)"


@dataclass(frozen=True)
class Machine:
    """Needs root. `state` is the stack's folder."""

    state: Path
    context = None
    title = "Kubernetes: control plane and one node"

    @property
    def control_plane(self) -> ControlPlane | None:
        return ControlPlane.load(self.state / "cluster")

    @property
    def node(self) -> Node | None:
        control_plane = self.control_plane
        return Node(self.state / "node", control_plane) if control_plane and control_plane.network else None

    @property
    def keda_state(self) -> Path:
        return self.state / "keda"

    @property
    def exists(self) -> bool:
        return self.control_plane is not None

    @property
    def running(self) -> bool:
        control_plane = self.control_plane
        return bool(control_plane and not control_plane.stopped_parts)

    @property
    def kubeconfig(self) -> Path:
        return self._started().kubeconfig

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}

    @property
    def address(self) -> str:
        network = self._started().network
        assert network
        return str(network.host)

    def check(self) -> None:
        if os.geteuid():
            raise ProcessError(
                "The local stack makes a Kubernetes node on this machine, which needs root: run `sudo make up`. Without "
                f"root it uses a cluster of your own: {user_cluster.how_to_choose()}."
            )
        if not (self.node and self.node.running):
            check_memory()
            check_room(disk_gb(_tools()) + self._images_disk_gb(), "The local stack")

    def prepare(self, say: Say) -> Images:
        debian.ensure(say)
        # Builds are bound by the processors, images by disk and network.
        with ThreadPoolExecutor() as side_by_side:
            for work in [side_by_side.submit(ensure, *_tools()), side_by_side.submit(self._images, say)]:
                work.result()
        return Images(vllm=recipes.vllm().reference, loraserve=recipes.loraserve().reference)

    def start(self, say: Say) -> None:
        template, own_archive = self._images(say)
        known = self.control_plane
        network = known.network if known else None
        if network:
            network.connect()
        else:
            network = Network.claim()
        control_plane = ControlPlane.start(self.state / "cluster", network=network)
        machine = Node(self.state / "node", control_plane)
        machine.start(template)
        machine.import_image(own_archive)
        template_text = Path(__file__).with_name("coredns.yaml").read_text()
        manifest = string.Template(template_text).substitute(
            image=recipes.coredns().reference, domain=node.CLUSTER_DOMAIN, address=network.dns_service
        )
        kubectl(control_plane.kubeconfig, "apply", "--server-side", "--filename", "-", stdin=manifest)
        if are_there(*keda.PARTS):
            self.start_scaling()

    def wake(self) -> None:
        if not are_there(*keda.PARTS):  # the number of replicas is KEDA's, and the bucket was made with none
            scale = ("scale", f"deployment/{names.VLLM}", "--replicas=1", "--namespace", names.SERVING_NAMESPACE)
            kubectl(self._started().kubeconfig, *scale)

    def start_scaling(self) -> None:
        ensure(*keda.PARTS)
        keda.start(self.keda_state, self._started())

    def revive(self) -> None:
        if network := self._started().network:
            network.connect()
        control_plane = ControlPlane.start(self.state / "cluster")
        if self.keda_state.exists():
            keda.start(self.keda_state, control_plane)
        if self.node and self.node.state.exists():
            self.node.boot()

    def run_in_vllm_image(self, command: Sequence[str], folders: Sequence[Path]) -> None:
        assert self.node
        self.node.run_in_image(recipes.vllm().reference, command, folders)

    def status(self) -> dict[str, str]:
        control_plane = self.control_plane
        stopped = control_plane.stopped_parts if control_plane else []
        cluster = f"stopped: {', '.join(stopped)} (`make up` repairs it)" if stopped else "runs"
        return {
            "Kubernetes": cluster if control_plane else _MISSING,
            "Node": "runs" if self.node and self.node.running else _MISSING,
        }

    def remove(self) -> list[str]:
        machine, control_plane = self.node, self.control_plane
        network = control_plane.network if control_plane else None
        keda.stop(self.keda_state)
        if machine:
            machine.remove()
        if control_plane:
            control_plane.stop()
        if not network:
            return []
        network.disconnect()
        return network.left_behind()

    def _started(self) -> ControlPlane:
        control_plane = self.control_plane
        if not control_plane:
            raise ProcessError("The local stack does not run; `make up` starts it.")
        return control_plane

    @staticmethod
    def _images_disk_gb() -> float:
        loaded = containerd.template_folder(_node_images(), recipes.pause()).exists()
        return 0 if loaded else recipes.IMAGES_DISK_GB

    @staticmethod
    def _images(say: Say) -> tuple[Path, Path]:
        """A containerd's folder with the heavy images, and the archive of ours; built where they are missing."""
        template = containerd.template(_node_images(), recipes.pause(), say)
        return template, recipes.loraserve().ensure_archive(say)


def _node_images() -> list[Image]:
    return [recipes.vllm(), recipes.coredns()]


def _tools() -> list[Tool]:
    return [*_FIRST, *plugins.to_build(plugins.own_home())]
