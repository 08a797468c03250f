"""A real Kubernetes node on this machine: containerd, kubelet and kube-proxy in namespaces of their own.

The node has its own mounts, network and process ids: it looks like a freshly booted machine to its programs, nothing of
this machine's own container runtimes or packet filters is touched, and all of it ends with one process. What stays is
a folder and one cgroup, which `remove` takes away.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from kubernetes import client

from infra import names
from local import commands
from local.cluster import certificates, containerd
from local.cluster.control_plane import ControlPlane
from local.cluster.network import NODE_INTERFACE, Network
from local.processes import Process, ProcessError, tail
from local.tools import debian
from local.tools.toolchain import Tool, ensure
from loraserve.planning.instance_types import L4

NAME = "gpu-1"
CLUSTER_DOMAIN = "cluster.local"
_INIT = Path(__file__).with_name("node_init.py")
_CGROUP_EMPTY_S = 10
_SERVICES = ("containerd", "kubelet", "kube-proxy")


@dataclass(frozen=True)
class Node:
    """The one node of the control plane `control_plane`, kept in `state`."""

    state: Path
    control_plane: ControlPlane

    @property
    def network(self) -> Network:
        network = self.control_plane.network
        assert network, "a real node needs a control plane with a network"
        return network

    @property
    def running(self) -> bool:
        return Process.load("node", self.state) is not None

    def start(self, images: Path) -> None:
        """Boots the node, where it does not run with these images, and waits until it takes pods. Raises ProcessError.

        `images` is the folder of a containerd that holds them (`containerd.template`).
        """
        held, copied_from = self.state / "containerd", self.state / "containerd.source"
        if not held.exists() or not copied_from.exists() or copied_from.read_text() != images.name:
            self.stop()
            self.state.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(held, ignore_errors=True)
            containerd.copy(images, held)
            copied_from.write_text(images.name)
        self.boot()

    def boot(self) -> None:
        """Boots the node, where it does not run, with the images that it has."""
        if self.running:
            return
        self._write_configuration()
        (self.state / "started").unlink(missing_ok=True)
        unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = [*unshare, "--", sys.executable, "-I", _INIT, self.state / "plan.json"]
        process = Process.start("node", command, self.state)
        try:
            process.wait_until(lambda: _only_child(process.pid) is not None)
            self.network.plug_in(self._init_pid(process))
            process.wait_until((self.state / "started").exists)
            process.wait_until(self._is_ready, limit_s=120)
        except ProcessError as error:
            self.stop()
            logs = "\n".join(f"{name}: {tail(self.state / f'{name}.log', 5)}" for name in _SERVICES)
            raise ProcessError(f"The node did not come up: {error}\n{logs}") from None
        self.offer_gpus(1)

    def stop(self) -> None:
        """Pulls the plug: every process and mount of the node ends. Its folder stays, so that it can be booted again."""
        if process := Process.load("node", self.state):
            process.stop(limit_s=5)

    def remove(self) -> None:
        """Stops the node and removes its folder and its cgroup."""
        self.stop()
        _remove_cgroup(self._cgroup)
        shutil.rmtree(self.state, ignore_errors=True)

    def import_image(self, archive: Path) -> None:
        """Makes the image of an OCI archive known to the node."""
        self.run(*containerd.import_command(archive))

    def offer_gpus(self, count: int) -> None:
        """What the NVIDIA device plugin would do."""
        path = f"/status/capacity/{names.GPU_RESOURCE.replace('/', '~1')}"
        patch = [{"op": "add", "path": path, "value": str(count)}]
        client.CoreV1Api(self.control_plane.client()).patch_node_status(NAME, patch)

    def run_in_image(self, reference: str, command: Sequence[str], folders: Sequence[Path]) -> None:
        """Runs a command in a container of an image that the node holds, as root, with these folders in it.

        The folders have the same paths there as here. Raises ProcessError.
        """
        mounts = [f"--mount=type=bind,src={folder},dst={folder},options=rbind:rw" for folder in folders]
        name = f"run-{uuid.uuid4().hex[:8]}"
        self.run(*containerd.run_command(reference, name, mounts, f"{self._cgroup}/{name}"), *command)

    def run(self, *command: str) -> str:
        """Runs a command on the node. Raises ProcessError."""
        process = Process.load("node", self.state)
        if not process:
            raise ProcessError("The node does not run; `make up` boots it.")
        namespaces = ["nsenter", "--target", str(self._init_pid(process)), "--mount", "--net", "--pid"]
        return commands.output([*namespaces, "--", *command], env=debian.environment())

    def _init_pid(self, process: Process) -> int:
        pid = _only_child(process.pid)
        if pid is None:
            raise ProcessError("The node has just ended.")
        return pid

    @property
    def _cgroup(self) -> str:
        return self.network.name

    def _write_configuration(self) -> None:
        tools = ensure(Tool.KUBELET, Tool.KUBE_PROXY)
        etc = self.state / "etc"
        (etc / "cni").mkdir(parents=True, exist_ok=True)
        certificates.create_node(self.control_plane.pki, NAME, [self.network.node])
        kubeconfigs = {name: self.control_plane.write_kubeconfig(name) for name in certificates.NODE_CLIENTS}
        (etc / "containerd.toml").write_text(
            containerd.configuration(self.state / "containerd", containerd.SOCKET, etc / "cni")
        )
        (etc / "cni" / "10-bridge.conflist").write_text(json.dumps(_cni_config(self.network)))
        (etc / "resolv.conf").write_text(f"nameserver {self.network.dns_service}\n")
        (etc / "kubelet.yaml").write_text(yaml.safe_dump(self._kubelet_config()))
        (etc / "kube-proxy.yaml").write_text(yaml.safe_dump(self._proxy_config(kubeconfigs["kube-proxy"])))
        labels = names.gpu_node_labels(L4.product)
        taint = names.GPU_TAINT
        kubelet = [
            tools[Tool.KUBELET],
            f"--config={etc / 'kubelet.yaml'}",
            f"--kubeconfig={kubeconfigs['kubelet']}",
            f"--root-dir={self.state / 'kubelet'}",
            f"--hostname-override={NAME}",
            f"--node-ip={self.network.node}",
            f"--node-labels={','.join(f'{key}={value}' for key, value in labels.items())}",
            f"--register-with-taints={taint.key}={taint.value}:{taint.effect}",
        ]
        services = {
            "containerd": ["containerd", "--config", etc / "containerd.toml"],
            "kubelet": kubelet,
            "kube-proxy": [tools[Tool.KUBE_PROXY], f"--config={etc / 'kube-proxy.yaml'}"],
        }
        with_path = ["env", f"PATH={debian.path()}"]
        plan = {
            "state": str(self.state),
            "cgroup": self._cgroup,
            "address": f"{self.network.node}/30",
            "gateway": str(self.network.host),
            "interface": NODE_INTERFACE,
            "services": {name: [str(word) for word in [*with_path, *words]] for name, words in services.items()},
        }
        (self.state / "plan.json").write_text(json.dumps(plan))

    def _kubelet_config(self) -> Mapping[str, object]:
        pki = self.control_plane.pki
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": str(self.network.node),
            "authentication": {"x509": {"clientCAFile": str(pki / "ca.crt")}, "anonymous": {"enabled": False}},
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(pki / "kubelet-server.crt"),
            "tlsPrivateKeyFile": str(pki / "kubelet-server.key"),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._cgroup}",
            "clusterDNS": [str(self.network.dns_service)],
            "clusterDomain": CLUSTER_DOMAIN,
            "containerRuntimeEndpoint": f"unix://{containerd.SOCKET}",
            "resolvConf": str(self.state / "etc" / "resolv.conf"),
            "failCgroupV1": False,
            "failSwapOn": False,
            # The disk is this machine's: the node must not clean up, or evict pods, because others fill it.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            # A new desired state reaches its mount sooner.
            "configMapAndSecretChangeDetectionStrategy": "Watch",
            "syncFrequency": "20s",
            "podLogsDir": str(self.state / "pod-logs"),
            "nodeStatusUpdateFrequency": "5s",
            "shutdownGracePeriod": "0s",
        }

    def _proxy_config(self, kubeconfig: Path) -> Mapping[str, object]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clusterCIDR": str(self.network.pods),
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "hostnameOverride": NAME,
            "bindAddress": str(self.network.node),
            "metricsBindAddress": "127.0.0.1:10249",
            # Global settings of this machine stay as they are.
            "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }

    def _is_ready(self) -> bool:
        core = client.CoreV1Api(self.control_plane.client())
        with contextlib.suppress(client.ApiException):
            node = core.read_node(NAME)
            booted = (node.status and node.status.node_info) is not None
            conditions = (node.status and node.status.conditions) or []
            return booted and any(c.type == "Ready" and c.status == "True" for c in conditions)
        return False


def _cni_config(network: Network) -> Mapping[str, object]:
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": str(network.pods)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": "/run/cni-addresses",  # addresses are given anew after a boot
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}


def _only_child(pid: int) -> int | None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return None
    return int(children[0]) if children else None


def _remove_cgroup(name: str) -> None:
    """Removes the groups, once the last process in them is gone. Raises ProcessError where one stays."""
    deadline = time.monotonic() + _CGROUP_EMPTY_S
    while left := [*Path("/sys/fs/cgroup").glob(name), *Path("/sys/fs/cgroup").glob(f"*/{name}")]:
        for top in left:
            for folder in [*sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True), top]:
                with contextlib.suppress(OSError):  # busy while a process is still dying
                    folder.rmdir()
        if time.monotonic() > deadline:
            raise ProcessError(
                f"Processes are left in the control group {left[0]}: {left[0]}/**/cgroup.procs names them."
            )
        time.sleep(0.1)
