"""KEDA's real operator and metrics adapter, as processes of this machine that work on the stack's cluster.

The operator asks the gateway's pods for their numbers by their addresses, which are routed from here, and takes the model
from zero and to it. Between one and the most replicas the cluster's own autoscaler decides, by the numbers that it gets
from the adapter.
"""

from __future__ import annotations

import base64
import json
import os
import string
from collections.abc import Sequence
from pathlib import Path

import httpx
from kubernetes import client

from local.cluster.control_plane import ControlPlane
from local.cluster.kubectl import kubectl
from local.processes import Process, free_ports
from local.tools.toolchain import Tool, ensure

_NAMESPACE = "keda"
PARTS = (Tool.KEDA, Tool.KEDA_ADAPTER)
"""Each a process of its name, in the order of their start."""
_AUTHORITY = f"keda-operator.{_NAMESPACE}.svc"
"""The operator's name in its certificate."""
METRICS_FILE = "metrics.json"
"""In its state folder: where the operator shows its metrics, as a file of Prometheus' file_sd_configs."""
_RESTARTED = ("sh", "-c", 'while true; do "$@"; sleep 1; done', "sh")
"""As a pod would be: when the operator has made its certificates, it ends."""


def start(state: Path, control_plane: ControlPlane) -> None:
    """Starts what of it does not run. Raises ProcessError."""
    if all(Process.load(tool, state) for tool in PARTS):
        return
    stop(state)
    network = control_plane.network
    assert network
    service, metrics, health, adapter, adapter_metrics = free_ports(5)
    template = string.Template(Path(__file__).with_name("keda.yaml").read_text())
    manifest = template.substitute(namespace=_NAMESPACE, address=network.host, port=adapter)
    kubectl(control_plane.kubeconfig, "apply", "--server-side", "--filename", "-", stdin=manifest)
    certificates = state / "certificates"
    operator = _start(
        Tool.KEDA,
        state,
        control_plane,
        [
            f"--kubeconfig={control_plane.kubeconfig}",
            f"--cert-dir={certificates}",
            "--enable-cert-rotation=true",
            "--enable-webhook-patching=false",
            "--leader-elect=false",
            f"--metrics-bind-address=127.0.0.1:{metrics}",
            f"--health-probe-bind-address=127.0.0.1:{health}",
            f"--metrics-service-bind-address=127.0.0.1:{service}",
        ],
    )
    operator.wait_until(lambda: _mount_certificates(control_plane, certificates))
    operator.wait_until(lambda: _is_ready(health))
    (state / METRICS_FILE).write_text(json.dumps([{"targets": [f"127.0.0.1:{metrics}"]}]))
    uses = ("lister", "authentication", "authorization")
    adapting = _start(
        Tool.KEDA_ADAPTER,
        state,
        control_plane,
        [
            *(f"--{use}-kubeconfig={control_plane.kubeconfig}" for use in uses),
            f"--cert-dir={certificates}",
            f"--tls-cert-file={certificates / 'tls.crt'}",
            f"--tls-private-key-file={certificates / 'tls.key'}",
            f"--bind-address={network.host}",
            f"--secure-port={adapter}",
            f"--port={adapter_metrics}",
            f"--metrics-service-address=127.0.0.1:{service}",
            f"--metrics-service-grpc-authority={_AUTHORITY}",
        ],
    )
    adapting.wait_until(lambda: _is_part_of_the_api(control_plane))


def _start(tool: Tool, state: Path, control_plane: ControlPlane, flags: Sequence[str]) -> Process:
    environment = {
        "KUBECONFIG": str(control_plane.kubeconfig),
        "POD_NAMESPACE": _NAMESPACE,
        "KEDA_CLUSTER_OBJECT_NAMESPACE": _NAMESPACE,
        "WATCH_NAMESPACE": "",
    }
    return Process.start(tool, [*_RESTARTED, ensure(tool)[tool], *flags], state, env=os.environ | environment)


def _mount_certificates(control_plane: ControlPlane, folder: Path) -> bool:
    """Puts the certificates that the operator keeps in a Secret where a kubelet would; whether there are any yet."""
    try:
        secret = client.CoreV1Api(control_plane.client()).read_namespaced_secret("kedaorg-certs", _NAMESPACE)
    except client.ApiException:
        return False
    for name, content in (secret.data or {}).items():
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / name).write_bytes(base64.b64decode(content))
    return bool(secret.data)


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).is_success
    except httpx.TransportError:
        return False


def _is_part_of_the_api(control_plane: ControlPlane) -> bool:
    api = client.CustomObjectsApi(control_plane.client())
    try:
        return bool(api.get_api_resources("external.metrics.k8s.io", "v1beta1"))
    except client.ApiException:
        return False


def stop(state: Path) -> None:
    """Ends it. Does nothing where it does not run."""
    for tool in reversed(PARTS):
        if process := Process.load(tool, state):
            process.stop(limit_s=3)  # it would wait for its watches
