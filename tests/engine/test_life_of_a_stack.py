"""The dev stack as shipped, from the first `up` to `destroy`, by the real engine."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import yaml
from botocore.exceptions import ClientError
from kubernetes import client

from infra import names
from infra.charts import CLUSTER_AUTOSCALER, KUBE_PROMETHEUS_STACK
from local.tools.toolchain import Tool, ensure
from tests.engine.chart_repository import CHARTS, RECEIPT
from tests.engine.deployed import Changes, Deployment, World, eventually
from tests.stack_values import adapter

GPU_GROUP = f"aws:eks/nodeGroup:NodeGroup {names.GPU_NODE_GROUP}"
DESIRED_STATE = "kubernetes:core/v1:ConfigMap desired-state"
VLLM = f"kubernetes:apps/v1:Deployment {names.VLLM}"
BUDGET = f"kubernetes:policy/v1:PodDisruptionBudget {names.VLLM}"
STACK = "pulumi:pulumi:Stack loraserve-dev"
_FINALIZER_S = 3
_REFUSED = r"AccessDenied|PreconditionFailed|\(403\)"

BASELINE: dict[str, Any] = {"inferenceReplicas": 1, "adapters": [adapter("one")]}


@pytest.fixture(scope="module")
def first_preview(world: World) -> Changes:
    """What is announced while nothing exists, the cluster included."""
    return Deployment(world, "dev", **BASELINE).preview()


@pytest.fixture(scope="module")
def dev(world: World, first_preview: Changes) -> Deployment:
    deployment = Deployment(world, "dev", **BASELINE)
    deployment.up()
    return deployment


@pytest.fixture(autouse=True)
def _baseline(dev: Deployment) -> Iterator[None]:
    """A test that changed the stack file finds it, and the stack, as before."""
    yield
    if dev.configure(**BASELINE):
        dev.up()


def serving_pods(world: World) -> list[Any]:
    return world.core.list_namespaced_pod(names.SERVING_NAMESPACE, label_selector="app=vllm").items


def untouched(changes: dict[str, str]) -> dict[str, str]:
    return {name: op for name, op in changes.items() if name != STACK}


def test_a_first_preview_asks_nothing_of_the_cluster_that_it_announces(first_preview: Changes) -> None:
    assert set(first_preview.operations.values()) <= {"create", "read"}
    assert first_preview.operations[VLLM] == "create"


def test_up_ends_with_vllm_scheduled_on_the_gpu_node(world: World, dev: Deployment) -> None:
    assert [(pod.spec.node_name, pod.status.phase) for pod in serving_pods(world)] == [("gpu-1", "Running")]


def test_up_tells_how_to_reach_what_it_made(world: World, dev: Deployment) -> None:
    assert names.GATEWAY in dev.output("model")["forward"]
    assert dev.output("kubeconfigCommand") == "aws eks update-kubeconfig --name loraserve-dev --region eu-central-1"
    world.cloud.client("s3").head_bucket(Bucket=dev.output("adapterBucket"))


def test_the_printed_commands_show_the_password_and_the_state_does_not(world: World, dev: Deployment) -> None:
    grafana = dev.output("grafana")
    assert grafana["user"] == "admin"
    password = printed(world, grafana["passwordCommand"])
    assert re.fullmatch(r"\w{24}", password)
    state = dev.run("stack", "export").stdout
    assert names.VLLM in state
    assert password not in state
    assert base64.b64encode(password.encode()).decode() not in state


def test_every_chart_is_installed_with_what_the_program_gives_it(world: World, dev: Deployment) -> None:
    receipts = {
        config_map["metadata"]["name"].removeprefix(RECEIPT): config_map["data"]
        for namespace in (names.SYSTEM_NAMESPACE, names.MONITORING_NAMESPACE)
        for config_map in config_maps(world, namespace)
        if config_map["metadata"]["name"].startswith(RECEIPT)
    }
    assert {name: receipt["version"] for name, receipt in receipts.items()} == {c.name: c.version for c in CHARTS}
    autoscaler = yaml.safe_load(receipts[CLUSTER_AUTOSCALER.name]["values"])
    assert autoscaler["autoDiscovery"] == {"clusterName": dev.output("cluster")}


def printed(world: World, command: str) -> str:
    """What a person sees who pastes the command into a shell."""
    kubectl = ensure(Tool.KUBECTL)[Tool.KUBECTL]
    environment = {
        "HOME": str(world.folder),
        "PATH": f"{kubectl.parent}:{os.environ['PATH']}",
        "KUBECONFIG": str(world.control_plane.kubeconfig),
    }
    return subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=True).stdout


def test_what_is_made_in_aws_names_its_stack(world: World, dev: Deployment) -> None:
    tag = {"Key": "loraserve/stack", "Value": "dev"}
    assert tag in world.cloud.client("s3").get_bucket_tagging(Bucket=dev.output("adapterBucket"))["TagSet"]
    (vpc,) = [vpc for vpc in world.cloud.client("ec2").describe_vpcs()["Vpcs"] if not vpc["IsDefault"]]
    assert tag in vpc["Tags"]


@pytest.fixture(scope="module")
def published(world: World, dev: Deployment) -> dict[str, str]:
    """An object of a published adapter, whose content is `{}`."""
    address = {"Bucket": dev.output("adapterBucket"), "Key": "llm-models/faq/v1/manifest.json"}
    world.cloud.client("s3").put_object(**address, Body=b"{}", IfNoneMatch="*")
    return address


@contextmanager
def enforced_iam(world: World) -> Iterator[None]:
    """Every call inside needs a policy that allows it."""
    world.cloud.enforce_iam()
    try:
        yield
    finally:
        world.cloud.enforce_iam(False)


def test_the_serving_role_reads_the_catalog_and_nothing_else(
    world: World, dev: Deployment, published: dict[str, str]
) -> None:
    private = published | {"Key": "private/notes.txt"}
    world.cloud.client("s3").put_object(**private, Body=b"{}")
    with enforced_iam(world):
        s3 = serving_s3(world, dev.output("servingRole"))
        assert s3.get_object(**published)["Body"].read() == b"{}"
        for refused in (
            lambda: s3.get_object(**private),
            lambda: s3.put_object(**published | {"Key": "llm-models/faq/v2/manifest.json"}, IfNoneMatch="*"),
            lambda: s3.delete_object(**published),
        ):
            with pytest.raises(ClientError, match=_REFUSED):
                refused()


def test_a_published_object_is_neither_overwritten_nor_deleted_even_by_an_administrator(
    world: World, published: dict[str, str]
) -> None:
    s3 = world.cloud.client("s3")
    with enforced_iam(world):
        for refused in (
            lambda: s3.put_object(**published, Body=b"other"),
            lambda: s3.put_object(**published, Body=b"other", IfNoneMatch="*"),
            lambda: s3.delete_object(**published),
        ):
            with pytest.raises(ClientError, match=_REFUSED):
                refused()
    assert s3.get_object(**published)["Body"].read() == b"{}"


def serving_s3(world: World, role: str) -> Any:
    """S3 as the pod sees it: with the role that its projected token stands for."""
    sts = world.cloud.client("sts")
    session = sts.assume_role_with_web_identity(RoleArn=role, RoleSessionName="pod", WebIdentityToken="projected")
    keys = session["Credentials"]
    return world.cloud.client(
        "s3",
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys["SessionToken"],
    )


def test_a_second_up_changes_nothing(dev: Deployment) -> None:
    assert dev.up().touched == {}


def test_an_object_that_a_killed_up_left_without_a_record_is_taken_over(world: World, dev: Deployment) -> None:
    policy = client.PolicyV1Api(world.api)
    before = world.plain(policy.list_namespaced_pod_disruption_budget(names.SERVING_NAMESPACE))["items"]
    resources = json.loads(dev.run("stack", "export").stdout)["deployment"]["resources"]
    (urn,) = [resource["urn"] for resource in resources if resource["urn"].endswith(BUDGET.replace(" ", "::"))]
    forgotten = dev.run("state", "delete", urn, "--yes")
    assert forgotten.returncode == 0, forgotten.stderr
    assert untouched(dev.up().touched) == {BUDGET: "create"}
    after = world.plain(policy.list_namespaced_pod_disruption_budget(names.SERVING_NAMESPACE))["items"]
    assert [budget["metadata"]["uid"] for budget in after] == [budget["metadata"]["uid"] for budget in before]


def test_an_added_adapter_restarts_nothing(world: World, dev: Deployment) -> None:
    before = [pod.metadata.uid for pod in serving_pods(world)]
    dev.configure(**BASELINE | {"adapters": [adapter("one"), adapter("two")]})
    changes = dev.up()
    assert untouched(changes.touched) == {DESIRED_STATE: "update"}
    assert "restarts vLLM" not in changes.output
    assert [pod.metadata.uid for pod in serving_pods(world)] == before
    document = next(
        config_map["data"]["desired.json"]
        for config_map in config_maps(world, names.SERVING_NAMESPACE)
        if config_map["metadata"]["name"].startswith("desired-state")
    )
    assert [entry["name"] for entry in json.loads(document)["adapters"]] == ["one", "two"]


def test_preview_announces_an_adapter_that_restarts_vllm(dev: Deployment) -> None:
    dev.configure(**BASELINE | {"adapters": [adapter("one", rank=64)]})
    changes = dev.preview()
    assert "this restarts vLLM: the declared adapters leave the envelope: rank 8 -> 64" in changes.output
    assert changes.operations[VLLM] == "update"


def test_a_config_change_touches_only_what_it_should(dev: Deployment) -> None:
    dev.configure(**BASELINE | {"gpuMaxSize": 3})
    assert untouched(dev.up().touched) == {GPU_GROUP: "update"}


def test_the_autoscalers_desired_size_is_left_alone(world: World, dev: Deployment) -> None:
    eks = world.cloud.client("eks")
    group = {"clusterName": "loraserve-dev", "nodegroupName": names.GPU_NODE_GROUP}
    eks.update_nodegroup_config(**group, scalingConfig={"minSize": 0, "maxSize": 2, "desiredSize": 1})
    dev.refresh()
    assert untouched(dev.up().touched) == {}
    assert eks.describe_nodegroup(**group)["nodegroup"]["scalingConfig"]["desiredSize"] == 1


def test_another_instance_type_replaces_the_gpu_group_and_keeps_the_rest(world: World, dev: Deployment) -> None:
    dev.configure(**BASELINE | {"gpuInstanceType": "g6.2xlarge"})
    changes = dev.up()
    assert changes.operations[GPU_GROUP] == "replace"
    assert changes.operations["eks:index:Cluster loraserve-dev"] == "same"
    assert changes.operations[VLLM] == "same"
    eks = world.cloud.client("eks")
    group = eks.describe_nodegroup(clusterName="loraserve-dev", nodegroupName=names.GPU_NODE_GROUP)["nodegroup"]
    assert group["instanceTypes"] == ["g6.2xlarge"]


@pytest.mark.parametrize("manager", ["kubectl-edit", "some-operator"])
def test_a_change_by_others_is_found_by_refresh_and_put_right_by_up(
    world: World, dev: Deployment, manager: str
) -> None:
    apps = client.AppsV1Api(world.api)
    patch: dict[str, Any] = {"spec": {"revisionHistoryLimit": 9}}
    apps.patch_namespaced_deployment(names.VLLM, names.SERVING_NAMESPACE, patch, field_manager=manager)
    bucket = dev.output("adapterBucket")
    s3 = world.cloud.client("s3")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    assert dev.refresh().operations[VLLM] == "refresh"
    touched = untouched(dev.up().touched)
    assert touched == {VLLM: "update", "aws:s3/bucketVersioning:BucketVersioning loraserve-dev-adapters": "update"}
    assert apps.read_namespaced_deployment(names.VLLM, names.SERVING_NAMESPACE).spec.revision_history_limit == 3
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"


def test_a_second_up_at_the_same_time_is_refused(dev: Deployment) -> None:
    first = dev.start("up", "--yes", "--skip-preview")
    assert first.stdout
    for line in first.stdout:
        if "Updating" in line:
            break
    second = dev.run("up", "--yes", "--skip-preview")
    first.communicate()
    assert second.returncode != 0
    assert "the stack is currently locked" in second.stderr + second.stdout
    assert first.returncode == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gpuMaxsize": 3}, "loraserve:gpuMaxsize is not a known key: did you mean gpuMaxSize?"),
        ({"gpuMinSize": 3}, "loraserve:gpuMaxSize 2 is below gpuMinSize 3"),
        (
            {"aws:allowedAccountIds": ["999999999999"]},
            "aws:allowedAccountIds says this stack is for account 999999999999",
        ),
        ({"gpuMaxSize": "two"}, "gpuMaxSize"),
    ],
    ids=["misspelt key", "max below min", "another account", "wrong type"],
)
def test_bad_configuration_is_refused_before_anything_changes(
    dev: Deployment, changes: dict[str, Any], told: str
) -> None:
    dev.configure(**BASELINE | changes)
    refusal = dev.refusal()
    assert told in refusal
    assert "Traceback" not in refusal


def test_destroy_waits_for_finalizers_and_leaves_nothing_behind(world: World, dev: Deployment) -> None:
    operator = KUBE_PROMETHEUS_STACK.name
    patch_monitor(world, {"metadata": {"finalizers": ["loraserve.test/held"]}})
    with ThreadPoolExecutor() as executor:
        operator_was_there = executor.submit(release_monitor, world)
        order = list(dev.destroy().operations)
    assert operator_was_there.result()
    assert len(order) > 90
    for earlier, later in (
        (
            "kubernetes:monitoring.coreos.com/v1:ServiceMonitor vllm",
            f"kubernetes:core/v1:ConfigMap {operator}:{names.MONITORING_NAMESPACE}/{RECEIPT}{operator}",
        ),
        (VLLM, GPU_GROUP),
        (GPU_GROUP, "aws:eks/cluster:Cluster loraserve-dev-eksCluster"),
        ("aws:eks/cluster:Cluster loraserve-dev-eksCluster", "aws:ec2/vpc:Vpc loraserve-dev"),
        ("aws:s3/bucketPolicy:BucketPolicy loraserve-dev-adapters", "aws:s3/bucket:Bucket loraserve-dev-adapters"),
    ):
        assert order.index(earlier) < order.index(later)
    assert world.left_behind("dev") == []


def release_monitor(world: World) -> bool:
    """Does an operator's work: takes the finalizer off a while after the deletion. Returns whether its chart was there."""
    eventually(lambda: "deletionTimestamp" in patch_monitor(world, {})["metadata"])
    time.sleep(_FINALIZER_S)
    charts = [config_map["metadata"]["name"] for config_map in config_maps(world, names.MONITORING_NAMESPACE)]
    patch_monitor(world, {"metadata": {"finalizers": None}})
    return f"{RECEIPT}{KUBE_PROMETHEUS_STACK.name}" in charts


def patch_monitor(world: World, patch: dict[str, Any]) -> dict[str, Any]:
    """Changes the ServiceMonitor of vLLM and returns it."""
    monitors = client.CustomObjectsApi(world.api)
    address = ("monitoring.coreos.com", "v1", names.SERVING_NAMESPACE, "servicemonitors", names.VLLM)
    monitor: Any = monitors.patch_namespaced_custom_object(*address, patch)
    return monitor


def config_maps(world: World, namespace: str) -> list[dict[str, Any]]:
    return world.plain(world.core.list_namespaced_config_map(namespace))["items"]
