"""What the real `kubernetes` provider does with objects that others write to too: docs/decisions.md 4, 5 and 13 rest on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from local.cluster.control_plane import ControlPlane
from local.cluster.kubectl import kubectl
from tests.engine.cli import Refused
from tests.engine.throwaway import Throwaway

PROGRAM = """
import json
import pulumi
import pulumi_kubernetes as k8s

config = pulumi.Config()
provider = k8s.Provider(
    "cluster", kubeconfig=open("kubeconfig").read(), enable_config_map_mutable=True, enable_secret_mutable=True
)
opts = pulumi.ResourceOptions(provider=provider, custom_timeouts=pulumi.CustomTimeouts(create="5s", update="5s"))
metadata = {"name": "web", "namespace": k8s.core.v1.Namespace("home", metadata={"name": "home"}, opts=opts).metadata.name}
k8s.core.v1.ConfigMap("words", metadata=metadata, data=json.loads(config.get("words") or '{"a": "1"}'), opts=opts)
k8s.core.v1.Secret("keys", metadata=metadata, string_data=json.loads(config.get("keys") or '{"a": "1", "b": "1"}'), opts=opts)
labels = {"app": "web"}
container = {"name": "web", "image": "simulated", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
replicas = config.get_int("replicas") or 0
spec = {"replicas": replicas, "revision_history_limit": 3, "selector": {"match_labels": labels}, "template": template}
k8s.apps.v1.Deployment("web", metadata=metadata, spec=spec, opts=opts)
"""
RESOURCES = 6
"""With the stack and the provider."""
DEAD_RUN = "pulumi-kubernetes-0badcafe"
"""Each creation signs with a name of its own; this one's run was killed before it was recorded."""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane.start(tmp_path_factory.mktemp("control-plane"), die_with_parent=True) as started:
        yield started


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, plane: ControlPlane) -> Iterator[Throwaway]:
    folder = tmp_path_factory.mktemp("project")
    (folder / "kubeconfig").write_text(plane.kubeconfig.read_text())
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "home"}}
    words = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "web", "namespace": "home"},
        "data": {"a": "1"},
    }
    for manifest in (namespace, words):
        apply(plane, manifest, DEAD_RUN)
    created = Throwaway(folder, PROGRAM)
    assert created.up().counts == {"create": RESOURCES}
    yield created
    with forced(created):
        created.destroy()


def test_what_a_killed_run_left_is_taken_over_and_changed_later_by_force_only(
    project: Throwaway, plane: ControlPlane
) -> None:
    project.configure(words='{"a": "2"}')
    with pytest.raises(Refused, match=f'conflict with "{DEAD_RUN}"'):
        project.up()
    with forced(project):
        project.up()
    assert live(plane, "configmap")["data"] == {"a": "2"}


def test_what_kubectl_edited_is_taken_back(project: Throwaway, plane: ControlPlane) -> None:
    edit(plane, "kubectl-edit")
    project.up("--refresh")
    assert live(plane, "deployment")["spec"]["revisionHistoryLimit"] == 3


@pytest.mark.parametrize("manager", ["some-operator", "kubectl scale"])
def test_what_others_changed_is_taken_back_by_force_only(project: Throwaway, plane: ControlPlane, manager: str) -> None:
    if manager == "kubectl scale":
        kubectl(plane.kubeconfig, "scale", "deployment/web", "--replicas=1", "--namespace=home")
    else:
        edit(plane, manager)
    with pytest.raises(Refused, match=rf'conflict with "{manager.split()[0]}"'):
        project.up("--refresh")
    with forced(project):
        project.up()
    spec = live(plane, "deployment")["spec"]
    assert (spec["revisionHistoryLimit"], spec["replicas"]) == (3, 0)


def test_a_key_taken_out_of_a_secret_is_gone(project: Throwaway, plane: ControlPlane) -> None:
    project.configure(keys='{"a": "1"}')
    project.up()
    assert set(live(plane, "secret")["data"]) == {"a"}


def test_an_object_that_does_not_become_ready_is_kept_and_awaited_again(project: Throwaway) -> None:
    project.configure(replicas="1")
    with pytest.raises(Refused, match="timed out waiting to be Ready"):
        project.up()
    project.configure(replicas="0")
    assert project.up().counts == {"same": RESOURCES - 1, "update": 1}


@contextmanager
def forced(project: Throwaway) -> Iterator[None]:
    """What `enable_patch_force` means to providers that know it."""
    project.environment["PULUMI_K8S_ENABLE_PATCH_FORCE"] = "true"
    try:
        yield
    finally:
        del project.environment["PULUMI_K8S_ENABLE_PATCH_FORCE"]


def edit(plane: ControlPlane, manager: str) -> None:
    patch = json.dumps({"spec": {"revisionHistoryLimit": 9}})
    arguments = ("--type=merge", f"--patch={patch}", f"--field-manager={manager}", "--namespace=home")
    kubectl(plane.kubeconfig, "patch", "deployment/web", *arguments)


def apply(plane: ControlPlane, manifest: dict[str, Any], manager: str) -> None:
    arguments = ("--server-side", f"--field-manager={manager}", "--filename=-")
    kubectl(plane.kubeconfig, "apply", *arguments, stdin=json.dumps(manifest))


def live(plane: ControlPlane, kind: str) -> dict[str, Any]:
    return json.loads(kubectl(plane.kubeconfig, "get", f"{kind}/web", "--namespace=home", "--output=json"))
