"""The stand-in `kubernetes` provider against a real API server: under the real engine, and called directly."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pulumi import automation

from local.cluster.control_plane import ControlPlane
from local.stand_ins.kubernetes.cluster import Cluster
from local.stand_ins.kubernetes.kinds import KINDS, Kind
from local.stand_ins.kubernetes.objects import KubernetesObject
from local.stand_ins.kubernetes.settings import Connection
from local.stand_ins.provider import Operation, PartlyCreated, Properties, ProviderError
from tests.engine.throwaway import Throwaway

PRELUDE = """
import json
import pulumi
import pulumi_kubernetes as k8s

config = pulumi.Config()
provider = k8s.Provider(
    "cluster", kubeconfig=pulumi.Output.secret(open("kubeconfig").read()), **json.loads(config.get("provider") or "{}")
)
opts = pulumi.ResourceOptions(provider=provider)
"""

SMALL_STACK = (
    PRELUDE
    + """
namespace = k8s.core.v1.Namespace("home", opts=opts)
metadata = {"namespace": namespace.metadata.name}
settings = k8s.core.v1.ConfigMap("settings", metadata=metadata, data={"a": config.get("a") or "1"}, opts=opts)
named = k8s.core.v1.ConfigMap("named", metadata={**metadata, "name": "named"}, data={"b": config.get("b") or "1"}, opts=opts)
password = k8s.core.v1.Secret("password", metadata=metadata, string_data={"key": pulumi.Output.secret("hidden-value")}, opts=opts)
labels = {"app": config.get("app") or "web"}
pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "web", "image": config.get("image") or "web:1"}]}}
deployment = k8s.apps.v1.Deployment("web", metadata=metadata, spec={"replicas": 0, "selector": {"matchLabels": labels}, "template": pod}, opts=opts)
chart = k8s.helm.v4.Chart(
    "metrics", chart="metrics", version="1.2.3", namespace=namespace.metadata.name,
    repository_opts={"repo": "https://charts.invalid"}, values={"deployment": deployment.metadata.name}, opts=opts,
)
pulumi.export("namespace", namespace.metadata.name)
pulumi.export("settings", settings.metadata.name)
pulumi.export("deployment", deployment.metadata.name)
pulumi.export("data", password.data)
"""
)
OBJECTS = 6  # with the chart's receipt


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane.start(tmp_path_factory.mktemp("control-plane"), die_with_parent=True) as plane:
        yield plane


@pytest.fixture(scope="module")
def kubeconfig(control_plane: ControlPlane) -> str:
    return control_plane.kubeconfig.read_text()


@pytest.fixture(scope="module")
def cluster(kubeconfig: str) -> Cluster:
    return Cluster(yaml.safe_load(kubeconfig), None)


@pytest.fixture
def project(tmp_path: Path, kubeconfig: str) -> Throwaway:
    (tmp_path / "kubeconfig").write_text(kubeconfig)
    return Throwaway.create(tmp_path, SMALL_STACK)


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    kind, name = _kind("Namespace"), f"test-{abs(hash(request.node.name))}"
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    cluster.apply(kind, manifest, "test", force=False)
    yield name
    cluster.delete(kind, "", name)


class Objects:
    """The provider's handlers, configured for the test cluster."""

    def __init__(self, kubeconfig: str, namespace: str, **settings: bool) -> None:
        self.connection = Connection()
        self.connection.configure({"kubeconfig": kubeconfig, "namespace": namespace, **settings})

    def type(self, kind: str) -> KubernetesObject:
        return KubernetesObject(_kind(kind), self.connection)

    def inputs(self, kind: str, **properties: Any) -> Properties:
        return self.type(kind).check("x", properties, {}, b"seed")

    def create(self, kind: str, **properties: Any) -> Properties:
        inputs = self.inputs(kind, **properties)
        self.type(kind).create(inputs)
        return inputs


@pytest.fixture
def objects(kubeconfig: str, namespace: str) -> Objects:
    return Objects(kubeconfig, namespace)


def _kind(name: str) -> Kind:
    return next(kind for kind in KINDS if kind.name == name)


def _deployment(**pod_spec: Any) -> Properties:
    labels = {"app": "x"}
    container = {"name": "x", "image": "x:1", "resources": {"requests": {"cpu": "1000m"}}} | pod_spec
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    return {"spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}}


# Under the engine


def test_a_second_up_changes_nothing_and_destroy_leaves_nothing(project: Throwaway, cluster: Cluster) -> None:
    assert project.up() == {"create": OBJECTS + 3}  # the stack, the provider, the chart
    assert project.up() == {"same": OBJECTS + 3}
    outputs = project.outputs()
    assert base64.b64decode(outputs["data"]["key"]) == b"hidden-value"
    assert "hidden-value" not in project.state()
    assert base64.b64encode(b"hidden-value").decode() not in project.state()
    receipt = cluster.get(_kind("ConfigMap"), outputs["namespace"], "chart-metrics")
    assert receipt
    assert receipt["data"]["version"] == "1.2.3"
    assert json.loads(receipt["data"]["values"]) == {"deployment": outputs["deployment"]}

    project.destroy()

    assert cluster.get(_kind("Namespace"), "", outputs["namespace"]) is None


def test_a_change_touches_only_what_it_must(project: Throwaway) -> None:
    project.up()
    first = project.outputs()

    # ConfigMaps are replaced unless they may be mutated.
    project.configure(image="web:2", a="2", b="2")
    assert project.up() == {"same": OBJECTS, "update": 1, "replace": 2}
    second = project.outputs()
    assert second["settings"] != first["settings"]
    assert second["deployment"] == first["deployment"]

    # A selector is immutable; the chart and its receipt name the Deployment.
    mutable = json.dumps({"enable_config_map_mutable": True})
    project.configure(image="web:2", app="other", a="3", b="3", provider=mutable)
    assert project.up() == {"same": 3, "update": 5, "replace": 1}
    third = project.outputs()
    assert third["settings"] == second["settings"]
    assert third["deployment"] != second["deployment"]


def test_a_hand_edit_shows_after_refresh_and_is_taken_back_when_forced(project: Throwaway, cluster: Cluster) -> None:
    project.up()
    outputs = project.outputs()
    _edit(cluster, "Deployment", outputs["namespace"], outputs["deployment"], {"spec": {"replicas": 1, "paused": True}})

    assert project.refresh()["update"] == 1
    with pytest.raises(automation.CommandError, match=r'conflict with "kubectl-edit".*patchForce'):
        project.up()
    project.configure(provider='{"enable_patch_force": true}')
    project.up()

    live = cluster.get(_kind("Deployment"), outputs["namespace"], outputs["deployment"])
    assert live
    assert live["spec"]["replicas"] == 0


def test_nothing_is_asked_of_a_cluster_that_does_not_exist_yet(project: Throwaway) -> None:
    project.rewrite(
        PRELUDE
        + """
first = k8s.core.v1.Namespace("first", opts=opts)
kubeconfig = first.status.apply(lambda _: open("kubeconfig").read())
later = pulumi.ResourceOptions(provider=k8s.Provider("later", kubeconfig=kubeconfig))
k8s.core.v1.ConfigMap("x", metadata={"namespace": first.metadata.name}, data={"a": "1"}, opts=later)
k8s.helm.v4.Chart("metrics", chart="oci://registry.invalid/metrics", version="1", namespace="default", opts=later)
"""
    )

    assert project.stack.preview().change_summary[automation.OpType.CREATE] == 6
    assert project.up()["create"] == 7


def test_what_this_program_does_not_emit_is_refused(project: Throwaway) -> None:
    project.rewrite(PRELUDE + 'k8s.core.v1.LimitRange("limits", spec={"limits": []}, opts=opts)')

    with pytest.raises(
        automation.CommandError, match="core/v1:LimitRange: the stand-in kubernetes plugin does not know"
    ):
        project.stack.preview()


def test_an_object_that_does_not_become_ready_is_kept_and_awaited_again(project: Throwaway, cluster: Cluster) -> None:
    program = (
        PRELUDE
        + """
wanted = {"nvidia.com/gpu": "1"} if config.get("gpu") else {}
pod = {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "x", "image": "x", "resources": {"limits": wanted}}]}}
spec = {"replicas": config.get_int("replicas"), "selector": {"matchLabels": {"app": "x"}}, "template": pod}
k8s.apps.v1.Deployment("x", spec=spec, opts=pulumi.ResourceOptions(provider=provider, custom_timeouts=pulumi.CustomTimeouts(create="2s")))
"""
    )
    project.rewrite(program)
    project.configure(gpu="1", replicas="1")
    with pytest.raises(
        automation.CommandError, match=r"not ready within 2 s: 0 of 1 replicas(.|\n)*no nodes available"
    ):
        project.up()

    project.configure(gpu="1", replicas="0")
    assert project.up() == {"same": 2, "update": 1}


# Called directly


def test_an_unknown_field_is_named(objects: Objects) -> None:
    deployment = _deployment(comand=["sleep"])

    with pytest.raises(ProviderError, match=r'containers\[name="x"\].comand: field not declared'):
        objects.create("Deployment", **deployment)


def test_a_missing_namespace_or_definition_is_explained(objects: Objects) -> None:
    with pytest.raises(ProviderError, match=r'namespaces "nowhere" not found. Either its namespace does not exist'):
        objects.create("ConfigMap", metadata={"namespace": "nowhere"})
    widget = KubernetesObject(Kind("example.com/v1", "Widget", "widgets"), objects.connection)
    with pytest.raises(ProviderError, match=r"does not know example.com/v1 Widget yet"):
        widget.create(widget.check("x", {}, {}, b"seed"))


def test_an_object_that_exists_already_is_not_taken_over_unless_asked(objects: Objects, kubeconfig: str) -> None:
    objects.create("ConfigMap", metadata={"name": "mine"}, data={"a": "1"})

    with pytest.raises(ProviderError, match="mine exists already and is not in this stack's state"):
        objects.create("ConfigMap", metadata={"name": "mine"}, data={"a": "1"})
    namespace = objects.connection.settings.default_namespace
    Objects(kubeconfig, namespace, upsertExistingObjects=True).create("ConfigMap", metadata={"name": "mine"})


def test_values_that_the_server_spells_differently_are_no_drift(objects: Objects) -> None:
    inputs = objects.create("Deployment", **_deployment())

    read = objects.type("Deployment").read("", inputs, {})

    assert read
    assert read.inputs == inputs  # "1000m" is stored as "1"
    assert read.outputs["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "1"


def test_a_hand_edited_secret_shows_as_drift_in_the_inputs_own_form(objects: Objects, cluster: Cluster) -> None:
    inputs = objects.create("Secret", stringData={"a": "1", "b": "2"})
    metadata = inputs["metadata"]
    _edit(cluster, "Secret", metadata["namespace"], metadata["name"], {"stringData": {"a": "changed"}})

    read = objects.type("Secret").read("", inputs, {})

    assert read
    assert read.inputs["stringData"] == {"a": "changed", "b": "2"}


def test_an_ignored_field_keeps_what_another_manager_set(
    objects: Objects, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = objects.create("Deployment", **_deployment())
    namespace, name = inputs["metadata"]["namespace"], inputs["metadata"]["name"]
    _edit(cluster, "Deployment", namespace, name, {"spec": {"replicas": 1}})  # as an autoscaler does
    skip_await = {"metadata": inputs["metadata"] | {"annotations": {"pulumi.com/skipAwait": "true"}}}

    with pytest.raises(ProviderError, match=r"conflict with .*spec.replicas"):
        objects.type("Deployment").update("", inputs, inputs | skip_await, {})
    operation = Operation(ignore_changes=("spec.replicas",))
    monkeypatch.setattr("local.stand_ins.kubernetes.objects.current_operation", lambda: operation)
    outputs = objects.type("Deployment").update("", inputs, inputs | skip_await, {})

    assert outputs["spec"]["replicas"] == 1


def test_a_key_taken_out_of_a_secret_is_gone(objects: Objects, cluster: Cluster) -> None:
    inputs = objects.create("Secret", metadata={"name": "s"}, stringData={"a": "1", "b": "2"})
    news = objects.inputs("Secret", metadata={"name": "s"}, stringData={"a": "1"})

    objects.type("Secret").update("", inputs, news, {})

    live = cluster.get(_kind("Secret"), news["metadata"]["namespace"], "s")
    assert live
    assert live["data"] == {"a": base64.b64encode(b"1").decode()}


def test_a_deleted_object_is_gone_on_read_and_may_be_deleted_again(objects: Objects) -> None:
    inputs = objects.create("ConfigMap", data={"a": "1"})
    objects.type("ConfigMap").delete("", inputs, {})

    assert objects.type("ConfigMap").read("", inputs, {}) is None
    objects.type("ConfigMap").delete("", inputs, {})


def test_a_finalizer_that_blocks_deletion_is_named(objects: Objects, cluster: Cluster) -> None:
    metadata = {"name": "held", "finalizers": ["example.com/held"], "annotations": {"pulumi.com/timeoutSeconds": "0.2"}}
    inputs = objects.create("ConfigMap", metadata=metadata)

    with pytest.raises(ProviderError, match=r"still being deleted; its finalizers example.com/held wait"):
        objects.type("ConfigMap").delete("", inputs, {})
    _edit(cluster, "ConfigMap", inputs["metadata"]["namespace"], "held", {"metadata": {"finalizers": None}})


def test_a_service_without_pods_is_not_ready_unless_waiting_is_skipped(objects: Objects) -> None:
    spec = {"selector": {"app": "nobody"}, "ports": [{"port": 80}]}

    with pytest.raises(PartlyCreated, match="no ready pod behind it"):
        objects.create("Service", metadata={"annotations": {"pulumi.com/timeoutSeconds": "0.2"}}, spec=spec)
    objects.create("Service", metadata={"name": "a", "annotations": {"pulumi.com/skipAwait": "true"}}, spec=spec)
    objects.create("Service", metadata={"name": "b"}, spec=spec | {"clusterIP": "None"})


def _edit(cluster: Cluster, kind: str, namespace: str, name: str, patch: Properties) -> None:
    """What `kubectl edit` does."""
    path = _kind(kind).path(namespace, name)
    cluster.request("PATCH", path, {"fieldManager": "kubectl-edit"}, patch, "application/merge-patch+json")
