"""Third-party parts of the cluster, EKS add-ons and Helm charts: pinned, in step with Kubernetes, each on its nodes."""

from __future__ import annotations

import json
import re
from typing import Any

import pulumi
import pytest

from infra import addons as addons_module
from infra import names, versions
from infra.iam import TOKEN_DIR, TOKEN_FILE
from local.tools import versions as local_versions
from tests.unit.declared import Program, declare


@pytest.fixture(scope="module")
def dev() -> Program:
    return declare("dev")


@pytest.fixture(scope="module")
def prod() -> Program:
    return declare("prod")


def addons(program: Program) -> dict[str, dict[str, Any]]:
    return {addon.inputs["addonName"]: addon.inputs for addon in program.of_type("eks/addon:Addon")}


def chart_values(program: Program, chart: str) -> dict[str, Any]:
    return program.one("helm.sh/v4:Chart", chart).inputs["values"]


def test_what_belongs_to_a_kubernetes_version_has_its_minor_version() -> None:
    for version in (versions.CLUSTER_AUTOSCALER_IMAGE, versions.KUBE_PROXY, local_versions.KUBERNETES):
        assert version.startswith(f"v{versions.KUBERNETES}.")
    assert re.fullmatch(rf"{re.escape(versions.KUBERNETES)}\.\d+-\d{{8}}", versions.NODE_RELEASE)


def test_every_addon_is_pinned(prod: Program) -> None:
    cluster = prod.one("eks:index:Cluster").inputs
    pinned = [addon["addonVersion"] for addon in addons(prod).values()]
    pinned += [cluster["vpcCniOptions"]["addonVersion"], cluster["kubeProxyAddonOptions"]["version"]]
    assert len(pinned) == 5
    assert all(re.fullmatch(r"v\d+\.\d+\.\d+-eksbuild\.\d+", version) for version in pinned)


def test_coredns_takes_over_from_the_one_that_eks_starts_with(dev: Program) -> None:
    assert addons(dev)["coredns"]["resolveConflictsOnCreate"] == "OVERWRITE"


def test_the_volume_driver_comes_only_with_a_volume(dev: Program, prod: Program) -> None:
    assert addons(prod).keys() - addons(dev).keys() == {"aws-ebs-csi-driver"}


def test_an_addon_that_never_became_healthy_is_made_anew(prod: Program) -> None:
    for addon in prod.of_type("eks/addon:Addon"):
        assert (addon.replace_on_changes, addon.delete_before_replace) == (["#initerror"], True)


def test_volumes_are_deleted_before_the_driver_that_deletes_them(prod: Program) -> None:
    namespace = prod.one("core/v1:Namespace", names.MONITORING_NAMESPACE)
    volume = prod.one("core/v1:PersistentVolume")
    assert volume.urn in namespace.depends_on
    assert any("ebs-csi" in urn for urn in volume.depends_on)


def test_charts_are_pinned(dev: Program) -> None:
    charts = dev.of_type("helm.sh/v4:Chart")
    assert len(charts) == 5
    assert all(chart.inputs["version"] and chart.inputs["repositoryOpts"]["repo"] for chart in charts)


@pytest.mark.parametrize(
    ("mirror", "chart", "repository"),
    [
        ("https://charts.example.com/all/", "keda", {"repo": "https://charts.example.com/all"}),
        ("oci://registry.example.com/charts", "oci://registry.example.com/charts/keda", None),
    ],
)
def test_every_chart_comes_from_the_mirror_where_there_is_one(
    mirror: str, chart: str, repository: dict[str, str] | None
) -> None:
    program = declare("dev", chartRepository=mirror)
    keda = program.one("helm.sh/v4:Chart", "keda").inputs
    assert (keda["chart"], keda.get("repositoryOpts")) == (chart, repository)
    charts = program.of_type("helm.sh/v4:Chart")
    assert len(charts) == 5
    assert all("example.com" in json.dumps(found.inputs) for found in charts)


def test_local_leaves_charts_and_image_builds_out() -> None:
    local = declare("local")
    assert not local.of_type("helm.sh/v4:Chart")
    assert not local.of_type("docker-build:index:Image")


def test_an_idle_gpu_node_is_removed_whatever_is_on_its_disk_and_found_again_from_zero(dev: Program) -> None:
    arguments = chart_values(dev, "cluster-autoscaler")["extraArgs"]
    assert arguments["skip-nodes-with-local-storage"] is False
    assert arguments["node-info-cache-expire-time"] == "10m"


def test_an_idle_gpu_node_is_kept_as_long_as_configured() -> None:
    unscaled = declare("dev", gpuIdleMinutes=25, scalingEnabled=False)
    arguments = chart_values(unscaled, "cluster-autoscaler")["extraArgs"]
    assert arguments["scale-down-unneeded-time"] == "25m"
    assert arguments["scale-down-delay-after-add"] == "25m"


def test_the_autoscaler_takes_its_role_without_the_webhook_that_may_come_too_late(dev: Program) -> None:
    values = chart_values(dev, "cluster-autoscaler")
    (volume,), (mount,) = values["extraVolumes"], values["extraVolumeMounts"]
    token = volume["projected"]["sources"][0]["serviceAccountToken"]
    assert (token["audience"], token["path"]) == ("sts.amazonaws.com", TOKEN_FILE)
    assert (mount["name"], mount["mountPath"]) == (volume["name"], TOKEN_DIR)
    assert values["extraEnv"]["AWS_WEB_IDENTITY_TOKEN_FILE"] == f"{TOKEN_DIR}/{TOKEN_FILE}"
    assert values["extraEnv"]["AWS_ROLE_ARN"].endswith("loraserve-dev-autoscaler")
    assert values["securityContext"]["fsGroup"] == values["securityContext"]["runAsUser"], "it reads the token"


def test_up_waits_until_the_autoscaler_keeps_running() -> None:
    deployment = {"spec": {"replicas": 1, "template": {}}}
    for kind, props, expected in (
        ("apps/v1:Deployment", deployment, {"replicas": 1, "template": {}, "minReadySeconds": 30}),
        ("core/v1:Service", {"spec": {"ports": []}}, None),
    ):
        asked = pulumi.ResourceTransformArgs(True, f"kubernetes:{kind}", "name", props, pulumi.ResourceOptions())
        changed = addons_module.awaited_while_it_works(asked)
        assert (changed.props["spec"] if changed else None) == expected


def test_keda_reads_no_secret_of_another_namespace(dev: Program) -> None:
    values = chart_values(dev, "keda")
    assert values["permissions"]["operator"]["restrict"]["secret"] is True
    assert values["rbac"]["enabledCustomScaledRefKinds"] is False


@pytest.mark.parametrize("chart", ["nvidia-device-plugin", "dcgm-exporter"])
def test_what_drives_gpus_runs_on_gpu_nodes_only(dev: Program, chart: str) -> None:
    values = chart_values(dev, chart)
    gpu_labels = dev.one("eks/nodeGroup:NodeGroup", names.GPU_NODE_GROUP).inputs["labels"]
    assert values["nodeSelector"].items() <= gpu_labels.items()
    assert values["nodeSelector"]
    assert values["tolerations"] == [names.GPU_TAINT.toleration()]
