"""The local control plane behaves like a cluster: it schedules, refuses, cleans up, stops and repairs itself."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from infra import names
from local.cluster.control_plane import PARTS, ControlPlane
from local.processes import Process
from local.tools.toolchain import Tool
from tests.engine import simulated_nodes
from tests.waiting import eventually

_RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    folder = tmp_path_factory.mktemp("control-plane")
    with ControlPlane.start(folder, die_with_parent=True) as started, simulated_nodes.kwok(started):
        api = config.new_client_from_config(str(started.kubeconfig))
        simulated_nodes.register(client.CoreV1Api(api), simulated_nodes.SYSTEM, "system-1")
        simulated_nodes.register(client.CoreV1Api(api), simulated_nodes.GPU, "gpu-1")
        simulated_nodes.apply_daemon_sets(client.AppsV1Api(api))
        yield started


@pytest.fixture(scope="module")
def api(plane: ControlPlane) -> client.ApiClient:
    return config.new_client_from_config(str(plane.kubeconfig))


@pytest.fixture(scope="module")
def core(api: client.ApiClient) -> client.CoreV1Api:
    return client.CoreV1Api(api)


@pytest.fixture
def namespace(core: client.CoreV1Api, request: pytest.FixtureRequest) -> Iterator[str]:
    name = request.node.name.replace("_", "-")[:63].rstrip("-")
    core.create_namespace(client.V1Namespace.model_validate({"metadata": {"name": name}}))
    yield name
    core.delete_namespace(name)


def test_nodes_offer_what_eks_leaves_of_the_instance(core: client.CoreV1Api) -> None:
    system, gpu = (eventually(lambda name=name: _ready_node(core, name)) for name in ("system-1", "gpu-1"))
    assert system.status.allocatable["cpu"] == "1930m"
    assert gpu.status.allocatable["cpu"] == "3920m"
    assert gpu.status.allocatable[names.GPU_RESOURCE] == "1"
    assert names.GPU_RESOURCE not in system.status.allocatable
    # EKS reserves 255 MiB + 11 MiB for each of the 58 pods that a g6.xlarge's interfaces could hold.
    assert gpu.status.allocatable["memory"] == f"{int(16 * 1024 * 0.94) - (255 + 11 * 58) - 100}Mi"


def test_daemon_sets_run_where_they_belong(core: client.CoreV1Api) -> None:
    everywhere = {"aws-node", "ebs-csi-node", "eks-node-monitoring-agent", "kube-proxy", "node-exporter", "pod-logs"}
    eventually(lambda: _daemons(core, "system-1") == everywhere)
    of_gpus = {"nvidia-device-plugin", "dcgm-exporter", "dcgm-server"}
    eventually(lambda: _daemons(core, "gpu-1") == everywhere | of_gpus)


def test_a_pod_that_tolerates_the_taint_runs_on_the_gpu_node(core: client.CoreV1Api, namespace: str) -> None:
    _create_pod(core, namespace, gpu_pod())
    (pod,) = eventually(lambda: _running_pods(core, namespace))
    assert pod.spec.node_name == "gpu-1"
    assert [container.ready for container in pod.status.container_statuses] == [True]


def test_a_pod_without_the_toleration_does_not_land_on_the_gpu_node(core: client.CoreV1Api, namespace: str) -> None:
    pod = gpu_pod()
    del pod["spec"]["tolerations"]
    _create_pod(core, namespace, pod)
    reason = eventually(lambda: _unschedulable_reason(core, namespace))
    assert "untolerated taint" in reason


def test_fourteen_gib_requested_do_not_fit_a_g6_xlarge(core: client.CoreV1Api, namespace: str) -> None:
    _create_pod(core, namespace, gpu_pod(memory="14Gi"))
    reason = eventually(lambda: _unschedulable_reason(core, namespace))
    assert "Insufficient memory" in reason


def test_a_deleted_deployment_takes_its_pods_along(
    api: client.ApiClient, core: client.CoreV1Api, namespace: str
) -> None:
    apps, labels = client.AppsV1Api(api), {"app": "web"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "web", "image": "simulated"}]}}
    deployment = {
        "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": pod},
    }
    apps.create_namespaced_deployment(namespace, client.V1Deployment.model_validate(deployment))
    eventually(lambda: len(_running_pods(core, namespace)) == 2)

    apps.delete_namespaced_deployment("web", namespace)
    eventually(lambda: not core.list_namespaced_pod(namespace).items)


def test_a_restricted_namespace_refuses_a_privileged_pod(core: client.CoreV1Api, namespace: str) -> None:
    core.patch_namespace(namespace, {"metadata": {"labels": _RESTRICTED}})
    with pytest.raises(ApiException, match="violates PodSecurity"):
        _create_pod(core, namespace, gpu_pod())


def test_monitoring_resources_are_known(api: client.ApiClient, namespace: str) -> None:
    custom = client.CustomObjectsApi(api)
    monitor = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": "vllm"},
        "spec": {"selector": {}, "endpoints": [{"port": "metrics", "interval": "often"}]},
    }
    with pytest.raises(ApiException, match="interval"):
        custom.create_namespaced_custom_object("monitoring.coreos.com", "v1", namespace, "servicemonitors", monitor)


def test_start_returns_the_control_plane_that_runs(plane: ControlPlane) -> None:
    before = plane.url, _pids(plane)
    again = ControlPlane.start(plane.state, die_with_parent=True)
    assert (again.url, _pids(again)) == before


def test_start_repairs_what_was_killed_and_keeps_the_objects(
    plane: ControlPlane, core: client.CoreV1Api, namespace: str
) -> None:
    core.create_namespaced_config_map(
        namespace, client.V1ConfigMap.model_validate({"metadata": {"name": "kept"}, "data": {"answer": "42"}})
    )
    url = plane.url
    for part in _parts(plane):
        part.signal(signal.SIGKILL)
    eventually(lambda: not _parts(plane))

    assert ControlPlane.start(plane.state, die_with_parent=True).url == url
    assert core.read_namespaced_config_map("kept", namespace).data == {"answer": "42"}
    _create_pod(core, namespace, gpu_pod())
    eventually(lambda: _running_pods(core, namespace))


def test_stop_leaves_no_process(plane: ControlPlane, tmp_path: Path) -> None:
    assert ControlPlane.load(tmp_path) is None
    found = ControlPlane.load(plane.state)
    assert found
    assert len(_processes_of(plane.state)) == len(PARTS)

    found.stop()
    assert _processes_of(plane.state) == []
    assert found.stopped_parts == list(PARTS)


def gpu_pod(memory: str = "12Gi") -> dict[str, Any]:
    resources = {"cpu": "3", "memory": memory, names.GPU_RESOURCE: "1"}
    return {
        "metadata": {"name": "vllm"},
        "spec": {
            "nodeSelector": names.GPU_SELECTOR,
            "tolerations": [names.GPU_TAINT.toleration()],
            "containers": [
                {
                    "name": "vllm",
                    "image": "simulated",
                    "resources": {"requests": resources, "limits": {names.GPU_RESOURCE: "1"}},
                }
            ],
        },
    }


def _create_pod(core: client.CoreV1Api, namespace: str, pod: dict[str, Any]) -> None:
    core.create_namespaced_pod(namespace, client.V1Pod.model_validate(pod))


def _ready_node(core: client.CoreV1Api, name: str) -> Any:
    node: Any = core.read_node(name)
    is_ready = any(c.type == "Ready" and c.status == "True" for c in node.status.conditions or [])
    return node if is_ready else None


def _running_pods(core: client.CoreV1Api, namespace: str) -> list[Any]:
    return core.list_namespaced_pod(namespace, field_selector="status.phase=Running").items


def _daemons(core: client.CoreV1Api, node: str) -> set[str]:
    pods = _running_pods(core, names.SYSTEM_NAMESPACE)
    return {pod.spec.containers[0].name for pod in pods if pod.spec.node_name == node}


def _unschedulable_reason(core: client.CoreV1Api, namespace: str) -> str:
    pod: Any = core.read_namespaced_pod("vllm", namespace)
    return next((c.message for c in pod.status.conditions or [] if c.reason == "Unschedulable"), "")


def _parts(plane: ControlPlane) -> list[Process]:
    part_names = [pid_file.stem for pid_file in plane.state.glob("*.pid")]
    return [part for name in part_names if (part := Process.load(name, plane.state))]


def _pids(plane: ControlPlane) -> list[int]:
    return sorted(part.pid for part in _parts(plane))


def _processes_of(state: Path) -> list[str]:
    """Command lines that mention the state folder, as every part's does; kwok is no part of it."""
    command_lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command_lines.append(entry.read_text(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [line for line in command_lines if f"{state}/" in line and Tool.KWOK not in line]
