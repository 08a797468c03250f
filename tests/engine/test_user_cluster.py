"""`make up CONTEXT=...`: a cluster of the user's own serves the stack, without root, and is left as it was.

A real control plane with simulated nodes stands for the user's cluster; `docker`, `kind` and `k3d` are stubs that write
down how they were called.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from infra import names, versions
from local.cluster import place, user_cluster
from local.cluster.control_plane import ControlPlane
from local.cluster.machine import Machine
from local.cluster.user_cluster import UserCluster
from local.engine.workspace import CHECKOUT
from local.images import docker, recipes
from local.paths import cache_dir
from local.processes import ProcessError
from local.stack import LocalStack
from local.tools.toolchain import Tool, ensure
from local.tools.versions import VLLM_PYTHON_IMAGE
from loraserve.planning.instance_types import SYSTEM_INSTANCE_TYPES
from tests.engine import simulated_nodes
from tests.waiting import eventually

KIND, K3D, OTHER, PRODUCTION = "kind-mine", "k3d-mine", "minikube", "production"
GATEWAY = "127.0.0.1"
_NOBODY = 65534
_STUB = """\
#!/bin/sh
echo "$(basename "$0") $*" >> {calls}
case "$(basename "$0") $1 $2" in
  "docker network inspect") cat {answers}/"$3" ;;
  "docker image ls") if test -e {answers}/images; then cat {answers}/images; fi ;;
esac
"""


@dataclass(frozen=True)
class Desktop:
    """The user's machine: a kubeconfig, and programs that write down how they are called."""

    folder: Path

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def calls(self, program: str) -> list[str]:
        """Arguments of every call of this program that changes something."""
        calls = self.folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        looks = ("docker network inspect", "docker image ls")
        found = [line for line in lines if line.startswith(f"{program} ") and not line.startswith(looks)]
        return [line.removeprefix(f"{program} ") for line in found]

    def install(self, *programs: str) -> None:
        for program in programs:
            stub = self.bin / program
            stub.write_text(_STUB.format(calls=self.folder / "calls", answers=self.folder))
            stub.chmod(0o755)

    def has_network(self, name: str, *gateways: str) -> None:
        config = [{"Subnet": "unused", "Gateway": gateway} for gateway in gateways]
        (self.folder / name).write_text(json.dumps([{"Name": name, "IPAM": {"Config": config}}]))

    def has_built(self) -> None:
        """Docker holds every image already."""
        (self.folder / "images").write_text("0123456789ab\n")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    folder = tmp_path_factory.mktemp("user-cluster")
    with ControlPlane.start(folder, die_with_parent=True) as started, simulated_nodes.kwok(started):
        core = client.CoreV1Api(started.client())
        for name in ("control-plane", "worker"):
            simulated_nodes.register(core, SYSTEM_INSTANCE_TYPES["m7i.large"], name)
        taint = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}
        core.patch_node("control-plane", {"spec": {"taints": [taint]}})
        eventually(lambda: all(is_settled(core.read_node(name)) for name in ("control-plane", "worker")))
        yield started


@pytest.fixture
def core(plane: ControlPlane) -> client.CoreV1Api:
    return client.CoreV1Api(plane.client())


@pytest.fixture
def desktop(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desktop]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # whoever runs the tests, others read it too
        yield furnish(Desktop(Path(folder)), plane, monkeypatch)


def furnish(desktop: Desktop, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> Desktop:
    desktop.bin.mkdir()
    content = yaml.safe_load(plane.kubeconfig.read_text())
    (context,) = content["contexts"]
    content["contexts"] = [context | {"name": name} for name in (PRODUCTION, KIND, K3D, OTHER)]
    content["users"].append({"name": "colleague", "user": {"token": "secret"}})
    content["current-context"] = PRODUCTION
    desktop.kubeconfig.write_text(yaml.safe_dump(content))
    desktop.install("docker", "kind", "k3d")
    (kubectl := desktop.bin / "kubectl").write_text(f'#!/bin/sh\nexec {ensure(Tool.KUBECTL)[Tool.KUBECTL]} "$@"\n')
    kubectl.chmod(0o755)
    for network in ("kind", K3D, OTHER):
        desktop.has_network(network, "fc00:f853:ccd:e793::1", GATEWAY)
    monkeypatch.setenv("KUBECONFIG", str(desktop.kubeconfig))
    monkeypatch.setenv("PATH", f"{desktop.bin}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(place, "_NEEDED_MEMORY_GB", 0)
    return desktop


def is_settled(node: Any) -> bool:
    """Whether it is Ready and the controllers have labelled it and taken their own taints off it."""
    ready = any(c.type == "Ready" and c.status == "True" for c in node.status.conditions or [])
    taints = [taint.key for taint in node.spec.taints or [] if "not-ready" in taint.key]
    return ready and not taints and "beta.kubernetes.io/os" in node.metadata.labels


def contents(core: client.CoreV1Api) -> dict[str, Any]:
    """What a user would miss or stumble over: each node's labels, taints and resources, and every namespace."""
    plain: Any = core.api_client.sanitize_for_serialization
    return {
        "namespaces": sorted(item["metadata"]["name"] for item in plain(core.list_namespace())["items"]),
        "nodes": {
            node["metadata"]["name"]: (
                node["metadata"]["labels"],
                node["spec"].get("taints"),
                node["status"]["capacity"],
                node["status"]["allocatable"],
            )
            for node in plain(core.list_node())["items"]
        },
    }


@contextmanager
def pod_of_the_model(core: client.CoreV1Api) -> Iterator[str]:
    """The name of a pod that asks for what the model's pod asks for."""
    gpu = {names.GPU_RESOURCE: "1"}
    container = {"name": "vllm", "image": "simulated", "resources": {"requests": gpu, "limits": gpu}}
    spec = {"nodeSelector": names.GPU_SELECTOR, "containers": [container]}
    manifest = {"metadata": {"name": "model"}, "spec": spec}
    core.create_namespaced_pod("default", client.V1Pod.model_validate(manifest))
    try:
        yield "model"
    finally:
        core.delete_namespaced_pod("model", "default", grace_period_seconds=0)


def phase(core: client.CoreV1Api, pod: str) -> str:
    found: Any = core.read_namespaced_pod(pod, "default")
    return found.status.phase


def say(_: str) -> None:
    """Nobody listens."""


def test_the_chosen_context_alone_is_remembered_for_its_owner_only(desktop: Desktop, tmp_path: Path) -> None:
    before = desktop.kubeconfig.read_bytes()
    chosen = UserCluster.choose(tmp_path / "place", KIND)
    kept = yaml.safe_load(chosen.kubeconfig.read_text())
    assert [context["name"] for context in kept["contexts"]] == [KIND]
    assert "secret" not in chosen.kubeconfig.read_text()
    assert chosen.kubeconfig.stat().st_mode & 0o777 == 0o600
    again = UserCluster.load(tmp_path / "place")
    assert again
    assert (again.context, again.running) == (KIND, True)
    assert desktop.kubeconfig.read_bytes() == before


def test_one_node_takes_the_model_and_is_left_as_it_was(
    desktop: Desktop, core: client.CoreV1Api, tmp_path: Path
) -> None:
    desktop.has_built()
    before = contents(core)
    chosen = UserCluster.choose(tmp_path / "place", KIND)
    chosen.start(say)
    chosen.start(say)  # as after a crash
    assert chosen.node == "worker"
    changed = contents(core)
    assert changed["nodes"]["control-plane"] == before["nodes"]["control-plane"]
    assert changed["nodes"]["worker"][1] is None
    with pod_of_the_model(core) as pod:
        eventually(lambda: phase(core, pod) == "Running")
    assert chosen.remove() == []
    assert contents(core) == before
    assert chosen.remove() == []


def test_remove_takes_our_namespace_along_where_destroy_could_not(
    desktop: Desktop, core: client.CoreV1Api, tmp_path: Path
) -> None:
    before = contents(core)
    chosen = UserCluster.choose(tmp_path / "place", KIND)
    ours = client.V1Namespace.model_validate({"metadata": {"name": names.SERVING_NAMESPACE}})
    core.create_namespace(ours)
    assert chosen.remove() == []
    assert contents(core) == before


@pytest.mark.parametrize(
    ("context", "tool", "call"),
    [
        (KIND, "kind", "load docker-image {images} --name mine"),
        (K3D, "k3d", "image import {images} --cluster mine"),
    ],
)
def test_images_are_loaded_with_the_clusters_own_tool(
    desktop: Desktop, tmp_path: Path, context: str, tool: str, call: str
) -> None:
    desktop.has_built()
    chosen = UserCluster.choose(tmp_path / "place", context)
    try:
        chosen.start(say)
        made = chosen.prepare(say)
        assert desktop.calls(tool) == [call.format(images=f"{made.vllm} {made.loraserve}")]
    finally:
        chosen.remove()


def test_images_that_the_node_has_are_not_loaded_again(
    desktop: Desktop, core: client.CoreV1Api, tmp_path: Path
) -> None:
    desktop.has_built()
    chosen = UserCluster.choose(tmp_path / "place", OTHER)
    made = chosen.prepare(say)
    with pytest.raises(ProcessError, match="minikube image load") as lacking:
        chosen.start(say)
    assert made.vllm in str(lacking.value)
    assert made.loraserve in str(lacking.value)
    try:
        present = [{"names": [image], "sizeBytes": 1} for image in (made.vllm, made.loraserve)]
        core.patch_node_status("worker", {"status": {"images": present}})
        chosen.start(say)
    finally:
        core.patch_node_status("worker", {"status": {"images": None}})
        chosen.remove()


def test_docker_builds_what_it_lacks_from_the_containerfiles(
    desktop: Desktop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORASERVE_CACHE", str(tmp_path))
    (packages := tmp_path / "packages").mkdir()

    @contextmanager
    def installed(_: object) -> Iterator[Path]:
        yield packages

    monkeypatch.setattr(recipes, "vllm_packages", installed)
    vllm, loraserve = docker.vllm(say), docker.loraserve(say)
    assert desktop.calls("docker") == [
        f"build --build-arg=BASE={VLLM_PYTHON_IMAGE} --tag {vllm}"
        f" --file {CHECKOUT}/images/vllm-cpu/Containerfile {packages}",
        f"build --build-arg=BASE={versions.PYTHON_IMAGE} --tag {loraserve}"
        f" --file {CHECKOUT}/images/loraserve/Containerfile {CHECKOUT}",
    ]
    desktop.has_built()
    docker.vllm(say)
    assert len(desktop.calls("docker")) == 2


def test_models_are_trained_as_the_user_without_a_network(desktop: Desktop, tmp_path: Path) -> None:
    docker.run_in_image("localhost/vllm-cpu:1", ["python3", "train.py"], [tmp_path])
    (call,) = desktop.calls("docker")
    assert f"--user={os.getuid()}:{os.getgid()}" in call
    assert "--network=none" in call
    assert call.endswith(f"--volume={tmp_path}:{tmp_path} localhost/vllm-cpu:1 python3 train.py")


def test_pods_reach_this_machine_at_the_ipv4_gateway_of_their_network(desktop: Desktop, tmp_path: Path) -> None:
    assert UserCluster.choose(tmp_path / "one", KIND).address == GATEWAY
    assert UserCluster.choose(tmp_path / "two", K3D).address == GATEWAY


def test_a_gateway_that_is_elsewhere_is_refused(desktop: Desktop, tmp_path: Path) -> None:
    desktop.has_network("kind", "203.0.113.1")
    with pytest.raises(ProcessError, match=r"203\.0\.113\.1.*no address of this machine"):
        UserCluster.choose(tmp_path / "place", KIND)
    assert not (tmp_path / "place").exists()


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        ("kind-gone", f"no context 'kind-gone'; .* lists: {K3D}, {KIND}, {OTHER}, {PRODUCTION}"),
        (PRODUCTION, "must run in Docker on this machine"),
    ],
)
def test_a_context_that_cannot_serve_is_refused_before_anything_is_written(
    desktop: Desktop, tmp_path: Path, context: str, reason: str
) -> None:
    with pytest.raises(ProcessError, match=reason):
        UserCluster.choose(tmp_path / "place", context)
    assert not (tmp_path / "place").exists()


def test_a_namespace_of_the_users_is_not_taken_over(desktop: Desktop, core: client.CoreV1Api, tmp_path: Path) -> None:
    theirs = client.V1Namespace.model_validate({"metadata": {"name": names.MONITORING_NAMESPACE}})
    core.create_namespace(theirs)
    try:
        with pytest.raises(ProcessError, match=f"{names.MONITORING_NAMESPACE} already"):
            UserCluster.choose(tmp_path / "place", KIND)
    finally:
        core.delete_namespace(names.MONITORING_NAMESPACE)
        eventually(lambda: names.MONITORING_NAMESPACE not in contents(core)["namespaces"])


def test_a_cluster_without_a_node_for_everyone_is_refused(
    desktop: Desktop, core: client.CoreV1Api, tmp_path: Path
) -> None:
    core.patch_node("worker", {"spec": {"unschedulable": True}})
    try:
        with pytest.raises(ProcessError, match=r"control-plane, worker.*not cordoned"):
            UserCluster.choose(tmp_path / "place", KIND)
    finally:
        core.patch_node("worker", {"spec": {"unschedulable": None, "taints": None}})


def test_a_missing_program_is_named(desktop: Desktop, tmp_path: Path) -> None:
    desktop.has_built()
    chosen = UserCluster.choose(tmp_path / "place", KIND)
    (desktop.bin / "kind").unlink()
    with pytest.raises(ProcessError, match="`kind` loads images"):
        chosen.start(say)
    (desktop.bin / "docker").unlink()
    with pytest.raises(ProcessError, match="no `docker` on PATH"):
        chosen.check()


def test_a_cluster_that_is_too_old_is_refused(
    desktop: Desktop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_cluster, "_OLDEST_MINOR", 99)
    with pytest.raises(ProcessError, match=r"runs Kubernetes v1\..*1\.99 or newer"):
        UserCluster.choose(tmp_path / "place", KIND)


def test_after_a_reboot_the_stack_is_built_anew_in_the_same_cluster(
    desktop: Desktop, core: client.CoreV1Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desktop.has_built()
    before = contents(core)
    UserCluster.choose(tmp_path / "user-cluster", KIND).start(say)
    (tmp_path / "aws").mkdir()
    (tmp_path / "aws" / "aws.json").write_text("{}")  # of an emulated AWS that has ended

    def stop_here(*_: object) -> None:
        raise ProcessError("far enough")

    monkeypatch.setattr(UserCluster, "prepare", stop_here)
    with pytest.raises(ProcessError, match="far enough"):
        LocalStack(tmp_path).up()
    again = UserCluster.load(tmp_path / "user-cluster")
    assert again
    assert again.context == KIND
    assert not (tmp_path / "aws").exists()
    assert contents(core) == before


def test_a_cluster_that_does_not_answer_any_more_is_named(desktop: Desktop, tmp_path: Path) -> None:
    chosen = UserCluster.choose(tmp_path / "place", KIND)
    kept = yaml.safe_load(chosen.kubeconfig.read_text())
    kept["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    chosen.kubeconfig.write_text(yaml.safe_dump(kept))
    with pytest.raises(ProcessError, match=f"cluster of context {KIND} does not answer: start it"):
        chosen.check()
    assert "does not answer" in chosen.status()["Kubernetes"]
    (left,) = chosen.remove()
    assert KIND in left


def test_a_stack_does_not_move_while_it_stands(desktop: Desktop, tmp_path: Path) -> None:
    UserCluster.choose(tmp_path / "user-cluster", KIND)
    with pytest.raises(ProcessError, match=f"context {KIND}. To move it: `make down`, then `make up CONTEXT={K3D}`"):
        LocalStack(tmp_path).up(K3D)


def test_who_is_not_root_is_told_which_contexts_look_local(
    desktop: Desktop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ProcessError) as refused:
        Machine(tmp_path).check()
    assert f"`make up CONTEXT={KIND}`" in str(refused.value)
    assert f"`make up CONTEXT={OTHER}`" in str(refused.value)
    assert PRODUCTION not in str(refused.value)


def test_without_root_the_program_is_applied_to_the_users_cluster_and_destroyed(
    desktop: Desktop, core: client.CoreV1Api
) -> None:
    """All of `up` and `down` but the models, which need real containers: none are declared."""
    desktop.has_built()
    before = contents(core)
    state = desktop.folder / "state"
    state.mkdir()
    (state / "declared.yaml").write_text("loraserve:adapters: []")
    program = f"""
from pathlib import Path
from local.__main__ import down, status
from local.stack import LocalStack
stack = LocalStack(Path({str(state)!r}))
stack.up({KIND!r})
stack.up()
print("AWS at", stack.cloud.endpoint)
status(stack)
down(stack)
"""
    done = run_without_root(program, desktop.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"AWS at http://{GATEWAY}:" in done.stdout
    assert f"Kubernetes: context {KIND}, answers\nNode:       worker\nAWS:        runs\n" in done.stdout
    assert "left behind: nothing" in done.stdout
    assert contents(core) == before
    assert not state.exists()


def run_without_root(program: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python as a user who may read this checkout and the tools, and nothing more; root becomes nobody."""
    drop: list[str] = []
    if not os.getuid():
        subprocess.run(["chown", "--recursive", f"{_NOBODY}:{_NOBODY}", home], check=True)
        readers = [f"--{kind}-caps=-all,+dac_read_search" for kind in ("inh", "ambient")]
        drop = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", *readers, "--"]
    return subprocess.run(
        [*drop, sys.executable, "-c", f"import os\nassert os.geteuid(){program}"],
        cwd=CHECKOUT,
        env=os.environ | {"HOME": str(home), "LORASERVE_CACHE": str(cache_dir())},
        capture_output=True,
        text=True,
    )
