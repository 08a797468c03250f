"""KEDA's real operator, as a process of this machine that works on the stack's cluster.

It asks the gateway's pods for their numbers by their addresses, which are routed from here, and sets the replicas.
"""

from __future__ import annotations

import os
from pathlib import Path

import httpx
from kubernetes import client

from local.control_plane import ControlPlane
from local.processes import Process, free_ports
from local.toolchain import Tool, ensure

_NAME = "keda"
_NAMESPACE = "keda"
_RESTARTED = ("sh", "-c", 'while true; do "$@"; sleep 1; done', "sh")
"""As a pod would be: when it has made its certificates, it ends so as to read them."""


def start(state: Path, control_plane: ControlPlane) -> None:
    """Starts the operator, where it does not run. Raises ProcessError."""
    if Process.load(_NAME, state):
        return
    state.mkdir(parents=True, exist_ok=True)
    _create_namespace(client.CoreV1Api(control_plane.client()))
    metrics, health, service = free_ports(3)
    command = [
        ensure(Tool.KEDA)[Tool.KEDA],
        f"--kubeconfig={control_plane.kubeconfig}",
        f"--cert-dir={state / 'certificates'}",
        "--enable-cert-rotation=true",
        "--leader-elect=false",
        f"--metrics-bind-address=127.0.0.1:{metrics}",
        f"--health-probe-bind-address=127.0.0.1:{health}",
        f"--metrics-service-bind-address=127.0.0.1:{service}",
    ]
    namespaces = {"POD_NAMESPACE": _NAMESPACE, "KEDA_CLUSTER_OBJECT_NAMESPACE": _NAMESPACE, "WATCH_NAMESPACE": ""}
    process = Process.start(_NAME, [*_RESTARTED, *command], state, env=os.environ | namespaces)
    process.wait_until(lambda: _is_ready(health))


def _create_namespace(core: client.CoreV1Api) -> None:
    """Its certificates are kept there."""
    try:
        core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=_NAMESPACE)))
    except client.ApiException as error:
        if error.status != 409:
            raise


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).is_success
    except httpx.TransportError:
        return False


def stop(state: Path) -> None:
    """Ends it. Does nothing where it does not run."""
    if process := Process.load(_NAME, state):
        process.stop(limit_s=3)  # it would wait for its watches
