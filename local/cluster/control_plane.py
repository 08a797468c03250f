"""A Kubernetes control plane on this machine: etcd, API server, controllers and scheduler.

Admission, RBAC, garbage collection and scheduling are what a cluster does. With a real node (`local.cluster.node`) it has
a `Network`, on whose address it listens; else it listens on 127.0.0.1. Ports are free ones; all it keeps lies in one state
folder.
"""

from __future__ import annotations

import base64
import json
import re
import signal
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import httpx
import yaml
from kubernetes import client as kubernetes_client
from kubernetes import config

from local.cluster import certificates
from local.cluster.network import Network
from local.processes import Process, ProcessError, free_ports, is_free, locked
from local.tools import toolchain
from local.tools.toolchain import Tool

SERVICE_ACCOUNT_ISSUER = "https://kubernetes.default.svc"
_SERVICE_NETWORK = "10.100.0.0/16"  # what EKS picks

_PATIENCE_S = 60  # a busy machine's API server takes long over its first large definitions

_HEALTH = {
    Tool.ETCD: "http://{}:{}/health",
    Tool.KUBE_APISERVER: "https://{}:{}/readyz",
    Tool.KUBE_CONTROLLER_MANAGER: "https://{}:{}/healthz",
    Tool.KUBE_SCHEDULER: "https://{}:{}/readyz",
}
PARTS = tuple(_HEALTH)
"""In the order of their start; each listens on one port."""


@dataclass(frozen=True)
class ControlPlane:
    """A control plane that was started in `state`, by this process or an earlier one."""

    state: Path

    @classmethod
    def start(cls, state: Path, *, network: Network | None = None, die_with_parent: bool = False) -> ControlPlane:
        """Start what is not running of the control plane in `state`, and wait until it is ready for pods.

        `network` is taken for the first start and kept; it must be connected. With `die_with_parent` it ends with the
        calling thread, however that ends. Raises ProcessError or ToolchainError; then nothing is left running.
        """
        plane = cls(state.resolve())
        with locked(plane.state / "lock"):
            if network and not plane._network_file.exists():
                plane._network_file.write_text(str(network.base))
            try:
                plane._start(die_with_parent)
            except BaseException:
                plane.stop()
                raise
        return plane

    @classmethod
    def load(cls, state: Path) -> ControlPlane | None:
        """The control plane that was started in `state`, running or not; None where there never was one."""
        plane = cls(state.resolve())
        return plane if plane.kubeconfig.exists() else None

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig file with all rights."""
        return self.state / "kubeconfig"

    @property
    def network(self) -> Network | None:
        """The network of the real node; None where there is none."""
        if not self._network_file.exists():
            return None
        return Network(IPv4Network(self._network_file.read_text()))

    @property
    def url(self) -> str:
        return f"https://{self._address}:{self._ports[Tool.KUBE_APISERVER]}"

    def client(self) -> kubernetes_client.ApiClient:
        """A client of its API, with all rights."""
        return config.new_client_from_config(str(self.kubeconfig))

    def write_kubeconfig(self, name: str) -> Path:
        """The kubeconfig file of the certificate `name`."""
        path = self.kubeconfig if name == "admin" else self.pki / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(self._kubeconfig_content(name)))
        return path

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def stopped_parts(self) -> list[Tool]:
        """The parts that are not running; none when all is well."""
        return [part for part in PARTS if Process.load(part, self.state) is None]

    def stop(self) -> None:
        """Stop every process. What the API server holds stays in the state folder."""
        running = [process for part in reversed(PARTS) if (process := Process.load(part, self.state))]
        for process in running:
            if process.name != Tool.ETCD:  # the API server needs it until it has ended
                process.signal(signal.SIGTERM)
        for process in running:
            process.stop()

    def __enter__(self) -> ControlPlane:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, die_with_parent: bool) -> None:
        if not self.stopped_parts:
            return
        tools = toolchain.ensure(*PARTS)
        certificates.create(self.pki, self._server_addresses)
        self._choose_ports()
        self._write_kubeconfigs()
        with httpx.Client(verify=self._tls()) as client:
            started: dict[Tool, Process] = {}
            for part in self.stopped_parts:
                command = [tools[part], *self._flags(part)]
                started[part] = Process.start(part, command, self.state, die_with_parent=die_with_parent)
                if part is Tool.KUBE_APISERVER:
                    self._wait_until_healthy(client, part, started[part])
            self._apply_crds(client)
            for part, process in started.items():
                self._wait_until_healthy(client, part, process)
            *_, last = started.values()
            paths = [_served_path(manifest) for manifest in toolchain.crds()]
            last.wait_until(lambda: self._is_complete(client, paths))

    def _choose_ports(self) -> None:
        """Keep the ports of an earlier start, unless somebody else has taken one meanwhile."""
        if self._ports_file.exists() and all(is_free(self._ports[part]) for part in self.stopped_parts):
            return
        self.stop()
        self._ports_file.write_text(json.dumps(dict(zip(PARTS, free_ports(len(PARTS)), strict=True))))

    def _write_kubeconfigs(self) -> None:
        for name in certificates.CLIENTS:
            self.write_kubeconfig(name)

    def _kubeconfig_content(self, client: str) -> dict[str, object]:
        def data(name: str) -> str:
            return base64.b64encode((self.pki / name).read_bytes()).decode()

        user = {"client-certificate-data": data(f"{client}.crt"), "client-key-data": data(f"{client}.key")}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "local", "cluster": {"server": self.url, "certificate-authority-data": data("ca.crt")}}
            ],
            "users": [{"name": client, "user": user}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": client}}],
            "current-context": "local",
        }

    def _flags(self, part: Tool) -> list[str]:
        flags = {
            Tool.ETCD: self._etcd_flags,
            Tool.KUBE_APISERVER: self._apiserver_flags,
            Tool.KUBE_CONTROLLER_MANAGER: self._controller_manager_flags,
            Tool.KUBE_SCHEDULER: self._scheduler_flags,
        }[part]()
        return [f"--{name}={value}" for name, value in flags.items()]

    def _etcd_flags(self) -> dict[str, object]:
        return {
            "data-dir": self.state / "etcd",
            "listen-client-urls": self._etcd_url,
            "advertise-client-urls": self._etcd_url,
            "listen-peer-urls": "http://127.0.0.1:0",
            "unsafe-no-fsync": "true",  # survives a killed process, not a power cut
            "log-level": "warn",
        }

    def _apiserver_flags(self) -> dict[str, object]:
        return (
            self._serving_flags(Tool.KUBE_APISERVER)
            | self._reaching_nodes_flags()
            | {
                "etcd-servers": self._etcd_url,
                "client-ca-file": self.pki / "ca.crt",
                "authorization-mode": "Node,RBAC",
                "allow-privileged": "true",
                "service-account-issuer": SERVICE_ACCOUNT_ISSUER,
                "service-account-key-file": self.pki / "service-accounts.key",
                "service-account-signing-key-file": self.pki / "service-accounts.key",
                # An API that another server serves, as KEDA's metrics: it trusts what this certificate says about users.
                "enable-aggregator-routing": "true",
                "proxy-client-cert-file": self.pki / f"{certificates.FRONT_PROXY}.crt",
                "proxy-client-key-file": self.pki / f"{certificates.FRONT_PROXY}.key",
                "requestheader-client-ca-file": self.pki / "ca.crt",
                "requestheader-allowed-names": certificates.FRONT_PROXY,
                "requestheader-username-headers": "X-Remote-User",
                "requestheader-group-headers": "X-Remote-Group",
                "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            }
        )

    def _reaching_nodes_flags(self) -> dict[str, object]:
        if not self.network:
            # An endpoint on the loopback address is not allowed.
            return {"service-cluster-ip-range": _SERVICE_NETWORK, "endpoint-reconciler-type": "none"}
        return {
            "service-cluster-ip-range": self.network.services,
            "advertise-address": self.network.host,
            "kubelet-client-certificate": self.pki / "admin.crt",
            "kubelet-client-key": self.pki / "admin.key",
            "kubelet-certificate-authority": self.pki / "ca.crt",
            "kubelet-preferred-address-types": "InternalIP",
        }

    def _controller_manager_flags(self) -> dict[str, object]:
        return self._serving_flags(Tool.KUBE_CONTROLLER_MANAGER) | {
            "kubeconfig": self.pki / "kube-controller-manager.kubeconfig",
            "root-ca-file": self.pki / "ca.crt",
            "service-account-private-key-file": self.pki / "service-accounts.key",
            "use-service-account-credentials": "true",  # RBAC grants rights to each controller, not to their process
            "leader-elect": "false",
            "kube-api-qps": 500,  # the default makes it take seconds to get a token for each controller
            "kube-api-burst": 1000,
            "node-monitor-period": "1s",
        }

    def _scheduler_flags(self) -> dict[str, object]:
        return self._serving_flags(Tool.KUBE_SCHEDULER) | {
            "kubeconfig": self.pki / "kube-scheduler.kubeconfig",
            "leader-elect": "false",
        }

    def _serving_flags(self, part: Tool) -> dict[str, object]:
        return {
            "bind-address": self._address,
            "secure-port": self._ports[part],
            "tls-cert-file": self.pki / "server.crt",
            "tls-private-key-file": self.pki / "server.key",
        }

    def _wait_until_healthy(self, client: httpx.Client, part: Tool, process: Process) -> None:
        process.wait_until(lambda: _answers(client, self._health_url(part)))

    def _health_url(self, part: Tool) -> str:
        address = certificates.LOOPBACK if part is Tool.ETCD else self._address
        return _HEALTH[part].format(address, self._ports[part])

    def _is_complete(self, client: httpx.Client, custom_resources: Sequence[str]) -> bool:
        """Pods are refused until the controllers have made their service account; CRDs are served a little later."""
        service_account = "api/v1/namespaces/default/serviceaccounts/default"
        return all(_answers(client, f"{self.url}/{path}") for path in (service_account, *custom_resources))

    def _apply_crds(self, client: httpx.Client) -> None:
        for manifest in toolchain.crds():
            group, plural = _crd_name(manifest)
            answer = client.patch(
                f"{self.url}/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.{group}",
                params={"fieldManager": "local", "force": "true"},
                headers={"Content-Type": "application/apply-patch+yaml"},
                content=manifest.read_bytes(),
                timeout=_PATIENCE_S,
            )
            if answer.is_error:
                raise ProcessError(f"The API server refused {manifest.name}: {answer.text}")

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.pki / "ca.crt")
        context.load_cert_chain(self.pki / "admin.crt", self.pki / "admin.key")
        return context

    @property
    def _network_file(self) -> Path:
        return self.state / "network"

    @property
    def _address(self) -> IPv4Address:
        return self.network.host if self.network else certificates.LOOPBACK

    @property
    def _server_addresses(self) -> list[IPv4Address]:
        return (
            [certificates.LOOPBACK, self.network.host, self.network.api_service]
            if self.network
            else [certificates.LOOPBACK]
        )

    @property
    def _ports_file(self) -> Path:
        return self.state / "ports.json"

    @property
    def _ports(self) -> dict[str, int]:
        return json.loads(self._ports_file.read_text())

    @property
    def _etcd_url(self) -> str:
        return f"http://127.0.0.1:{self._ports[Tool.ETCD]}"


def _crd_name(manifest: Path) -> tuple[str, str]:
    """Group and plural of a CRD, from its file's name as controller-gen spells it."""
    group, plural = manifest.stem.split("_")
    return group, plural


def _served_path(manifest: Path) -> str:
    """Where a CRD's objects are served; its text is searched, since some take a second to parse."""
    group, plural = _crd_name(manifest)
    version = re.search(r"^(?:  - |    )name: (v\d\w*)$", manifest.read_text(), re.MULTILINE)
    assert version, f"{manifest} names no version"
    return f"apis/{group}/{version[1]}/{plural}"


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).is_success
    except httpx.TransportError:
        return False
