"""The dev stack as shipped, from the first `up` to `destroy`, by the real engine.

It is deployed once: most tests only look. What a test applies stays, and the next one changes something else.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from botocore.exceptions import ClientError
from kubernetes import client

from infra import names
from infra.charts import CLUSTER_AUTOSCALER, KUBE_PROMETHEUS_STACK
from local.tools.toolchain import Tool, ensure
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES
from tests.engine import simulated_nodes
from tests.engine.chart_repository import CHARTS, RECEIPT
from tests.engine.cli import Changes, Refused
from tests.engine.deployed import Deployment, World, variables
from tests.stack_values import PRODUCTION_CHOICES, adapter
from tests.waiting import eventually

GPU_GROUP = f"aws:eks/nodeGroup:NodeGroup {names.GPU_NODE_GROUP}"
DESIRED_STATE = "kubernetes:core/v1:ConfigMap desired-state"
VLLM = f"kubernetes:apps/v1:Deployment {names.VLLM}"
BUDGET = f"kubernetes:policy/v1:PodDisruptionBudget {names.VLLM}"
BUCKET = "aws:s3/bucket:Bucket loraserve-dev-adapters"
GATEWAY = f"kubernetes:apps/v1:Deployment {names.GATEWAY}"
STACK = "pulumi:pulumi:Stack loraserve-dev"
_GPU_GROUP = {"clusterName": "loraserve-dev", "nodegroupName": names.GPU_NODE_GROUP}
STATE_BUCKET = "state-of-stacks"
_REFUSED = r"AccessDenied|PreconditionFailed|\(403\)"


@pytest.fixture(scope="module")
def stack(world: World) -> Deployment:
    return Deployment(world, "dev", inferenceReplicas=1, adapters=[adapter("one")], stateBucket=STATE_BUCKET)


@pytest.fixture(scope="module")
def first_preview(stack: Deployment) -> Changes:
    """What is announced while nothing exists, the cluster included."""
    return stack.preview()


@pytest.fixture(scope="module")
def dev(stack: Deployment, first_preview: Changes) -> Deployment:
    stack.up()
    return stack


@pytest.fixture(scope="module")
def outputs(dev: Deployment) -> dict[str, Any]:
    return dev.outputs()


def serving_pods(world: World) -> list[Any]:
    return world.core.list_namespaced_pod(names.SERVING_NAMESPACE, label_selector="app=vllm").items


def touched(changes: Changes) -> dict[str, str]:
    """All but the stack itself, whose outputs may change."""
    return {name: op for name, op in changes.touched.items() if name != STACK}


def test_a_first_preview_asks_nothing_of_the_cluster_that_it_announces(first_preview: Changes) -> None:
    assert set(first_preview.operations.values()) <= {"create", "read"}
    assert first_preview.operations[VLLM] == "create"


def test_up_ends_with_vllm_scheduled_on_the_gpu_node(world: World, dev: Deployment) -> None:
    assert [(pod.spec.node_name, pod.status.phase) for pod in serving_pods(world)] == [("gpu-1", "Running")]


def test_up_tells_how_to_reach_what_it_made(world: World, outputs: dict[str, Any]) -> None:
    assert names.GATEWAY in outputs["model"]["forward"]
    assert "loraserve-client=true" in outputs["model"]["podsThatMayCall"]
    assert outputs["kubeconfigCommand"] == "aws eks update-kubeconfig --name loraserve-dev --region eu-central-1"
    world.cloud.client("s3").head_bucket(Bucket=outputs["adapterBucket"])


def test_the_printed_commands_show_the_password_and_the_state_does_not(
    world: World, dev: Deployment, outputs: dict[str, Any]
) -> None:
    grafana = outputs["grafana"]
    assert grafana["user"] == "admin"
    password = printed(world, grafana["passwordCommand"])
    assert re.fullmatch(r"\w{24}", password)
    state = dev.run("stack", "export").stdout
    assert names.VLLM in state
    assert password not in state
    assert base64.b64encode(password.encode()).decode() not in state


def test_every_chart_is_installed_with_what_the_program_gives_it(world: World, outputs: dict[str, Any]) -> None:
    receipts = {
        config_map["metadata"]["name"].removeprefix(RECEIPT): config_map["data"]
        for namespace in (names.SYSTEM_NAMESPACE, names.MONITORING_NAMESPACE)
        for config_map in config_maps(world, namespace)
        if config_map["metadata"]["name"].startswith(RECEIPT)
    }
    assert {name: receipt["version"] for name, receipt in receipts.items()} == {c.name: c.version for c in CHARTS}
    autoscaler = yaml.safe_load(receipts[CLUSTER_AUTOSCALER.name]["values"])
    assert autoscaler["autoDiscovery"] == {"clusterName": outputs["cluster"]}


def printed(world: World, command: str) -> str:
    """What a person sees who pastes the command into a shell."""
    kubectl = ensure(Tool.KUBECTL)[Tool.KUBECTL]
    environment = {
        "HOME": str(world.folder),
        "PATH": f"{kubectl.parent}:{os.environ['PATH']}",
        "KUBECONFIG": str(world.control_plane.kubeconfig),
    }
    return subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=True).stdout


def test_what_is_made_in_aws_names_its_stack(world: World, outputs: dict[str, Any]) -> None:
    tag = {"Key": "loraserve/stack", "Value": "dev"}
    assert tag in world.cloud.client("s3").get_bucket_tagging(Bucket=outputs["adapterBucket"])["TagSet"]
    (vpc,) = [vpc for vpc in world.cloud.client("ec2").describe_vpcs()["Vpcs"] if not vpc["IsDefault"]]
    assert tag in vpc["Tags"]


@pytest.fixture(scope="module")
def published(world: World, outputs: dict[str, Any]) -> dict[str, str]:
    """An object of a published adapter, whose content is `{}`."""
    address = {"Bucket": outputs["adapterBucket"], "Key": "llm-models/faq/v1/manifest.json"}
    world.cloud.client("s3").put_object(**address, Body=b"{}", IfNoneMatch="*")
    return address


def test_the_serving_role_reads_the_catalog_and_nothing_else(
    world: World, outputs: dict[str, Any], published: dict[str, str]
) -> None:
    private = published | {"Key": "private/notes.txt"}
    world.cloud.client("s3").put_object(**private, Body=b"{}")
    with world.enforced_iam():
        s3 = s3_of(world, world.pod(outputs["servingRole"]))
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
    with world.enforced_iam():
        for refused in (
            lambda: s3.put_object(**published, Body=b"other"),
            lambda: s3.put_object(**published, Body=b"other", IfNoneMatch="*"),
            lambda: s3.delete_object(**published),
        ):
            with pytest.raises(ClientError, match=_REFUSED):
                refused()
    assert s3.get_object(**published)["Body"].read() == b"{}"


def test_a_second_up_changes_nothing_and_keeps_a_third_out_meanwhile(world: World, dev: Deployment) -> None:
    grow(world, names.SYSTEM_NODE_GROUP, 2)
    second = dev.start("up", "--yes", "--skip-preview")
    assert second.stdout
    next(line for line in second.stdout if "Updating" in line)
    third = dev.run("up", "--yes", "--skip-preview")
    printed, _ = second.communicate()
    assert third.returncode != 0
    assert "the stack is currently locked" in third.stderr + third.stdout
    assert second.returncode == 0
    assert re.search(r"Resources:\s+\d+ unchanged\s+Duration", printed)
    assert node_group(world, names.SYSTEM_NODE_GROUP)["scalingConfig"]["desiredSize"] == 2


def test_an_added_adapter_restarts_nothing(world: World, dev: Deployment) -> None:
    before = [pod.metadata.uid for pod in serving_pods(world)]
    changes = dev.change(adapters=[adapter("one"), adapter("two")])
    assert touched(changes) == {DESIRED_STATE: "update"}
    assert "restarts vLLM" not in changes.output
    assert [pod.metadata.uid for pod in serving_pods(world)] == before
    document = next(
        config_map["data"]["desired.json"]
        for config_map in config_maps(world, names.SERVING_NAMESPACE)
        if config_map["metadata"]["name"].startswith("desired-state")
    )
    assert [entry["name"] for entry in json.loads(document)["adapters"]] == ["one", "two"]


def test_preview_announces_an_adapter_that_restarts_vllm(dev: Deployment) -> None:
    with dev.proposed(adapters=[adapter("one", rank=64)]):
        changes = dev.preview()
    assert "this restarts vLLM: the declared adapters leave the envelope: rank 16 -> 64" in changes.output
    assert changes.operations[VLLM] == "update"


def loraserve(dev: Deployment, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """As an operator runs it in the project's folder; `given` is piped in."""
    cli = Path(dev.command()[0]).parent
    return subprocess.run(
        [sys.executable, "-m", "loraserve", *arguments, "--stack", dev.name],
        cwd=dev.project,
        env=dev.environment | {"PATH": f"{cli}:{dev.environment['PATH']}"},
        input=given,
        capture_output=True,
        text=True,
    )


def exported(dev: Deployment) -> str:
    return dev.run("stack", "export").stdout


def test_preflight_runs_the_programs_own_checks_and_changes_nothing(dev: Deployment) -> None:
    before = exported(dev)
    done = loraserve(dev, "preflight", "--json")
    found = {check["name"]: check["verdict"] for check in json.loads(done.stdout)}
    assert {name for name in found if found[name] == "pass"} >= {"state", "settings", "account", "zones", "cost"}, found
    assert found["catalog"] == "warn", "the declared adapter was never published"
    assert exported(dev) == before


def test_the_policy_pack_stops_a_stack_that_breaks_a_rule_and_finds_nothing_else(dev: Deployment) -> None:
    narrow = {"publicAccessCidrs": ["203.0.113.0/24"], "baseModelRevision": PRODUCTION_CHOICES["baseModelRevision"]}
    with dev.proposed(environment="production", **narrow), pytest.raises(Refused) as refusal:
        dev.preview("--policy-pack", "policy")
    broken = re.findall(r"\[mandatory\]\W+([\w-]+)", str(refusal.value))
    assert set(broken) == {"protection-off-in-production"}, str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"gpuMaxsize": 3, "gpuMinSize": 4},
            ["loraserve:gpuMaxsize is not a known key: did you mean gpuMaxSize?", "is below gpuMinSize 4"],
        ),
        (
            {"aws:allowedAccountIds": ["999999999999"]},
            ["aws:allowedAccountIds says this stack is for account 999999999999"],
        ),
        ({"gpuMaxSize": "two"}, ["gpuMaxSize"]),
    ],
    ids=["misspelt key, max below min", "another account", "wrong type"],
)
def test_bad_configuration_is_refused_before_anything_changes(
    dev: Deployment, settings: dict[str, Any], told: list[str]
) -> None:
    with dev.proposed(**settings), pytest.raises(Refused) as refused:
        dev.preview()
    refusal = str(refused.value)
    assert [sentence for sentence in told if sentence not in refusal] == []
    assert "Traceback" not in refusal


@pytest.fixture(scope="module")
def budgets(world: World, dev: Deployment) -> list[str]:
    """Ids of the disruption budgets that `up` made; the state then knows nothing of vLLM's, as after a kill."""
    made = budget_ids(world)
    resources = json.loads(dev.run("stack", "export").stdout)["deployment"]["resources"]
    (urn,) = [resource["urn"] for resource in resources if resource["urn"].endswith(BUDGET.replace(" ", "::"))]
    forgotten = dev.run("state", "delete", urn, "--yes")
    assert forgotten.returncode == 0, forgotten.stderr
    return made


@pytest.fixture(scope="module")
def edited(world: World, dev: Deployment, outputs: dict[str, Any], budgets: list[str]) -> tuple[Changes, Changes]:
    """What `refresh` and `up` did after a person, an operator and the autoscaler had been there."""
    apps = client.AppsV1Api(world.api)
    history: Any = {"spec": {"revisionHistoryLimit": 9}}
    for deployment, manager in ((names.VLLM, "kubectl-edit"), (names.GATEWAY, "some-operator")):
        apps.patch_namespaced_deployment(deployment, names.SERVING_NAMESPACE, history, field_manager=manager)
    suspended = {"Status": "Suspended"}
    world.cloud.client("s3").put_bucket_versioning(Bucket=outputs["adapterBucket"], VersioningConfiguration=suspended)
    grow(world, names.GPU_NODE_GROUP, 1)
    return dev.refresh(), dev.up()


def test_a_change_by_others_is_found_by_refresh_and_put_right_by_up(
    world: World, outputs: dict[str, Any], edited: tuple[Changes, Changes]
) -> None:
    found, repaired = edited
    assert [found.operations[changed] for changed in (VLLM, GATEWAY)] == ["refresh", "refresh"]
    versioning = "aws:s3/bucketVersioning:BucketVersioning loraserve-dev-adapters"
    assert touched(repaired) == dict.fromkeys((VLLM, GATEWAY, versioning), "update") | {BUDGET: "create"}
    apps = client.AppsV1Api(world.api)
    for deployment in (names.VLLM, names.GATEWAY):
        spec = apps.read_namespaced_deployment(deployment, names.SERVING_NAMESPACE).spec
        assert spec.revision_history_limit == 3
    s3 = world.cloud.client("s3")
    assert s3.get_bucket_versioning(Bucket=outputs["adapterBucket"])["Status"] == "Enabled"


def test_an_object_that_a_killed_up_left_without_a_record_is_taken_over(
    world: World, budgets: list[str], edited: tuple[Changes, Changes]
) -> None:
    assert edited[1].operations[BUDGET] == "create"
    assert budget_ids(world) == budgets


def test_the_autoscalers_desired_size_is_left_alone(world: World, edited: tuple[Changes, Changes]) -> None:
    assert GPU_GROUP not in edited[1].touched
    assert node_group(world, names.GPU_NODE_GROUP)["scalingConfig"]["desiredSize"] == 1


def test_other_bounds_leave_running_nodes_and_a_third_zone_only_adds(world: World, dev: Deployment) -> None:
    grow(world, names.GPU_NODE_GROUP, 2)  # nobody refreshes
    changed = touched(dev.change(gpuMinSize=1, gpuMaxSize=3, availabilityZoneCount=3))
    endpoint = "aws:ec2/vpcEndpoint:VpcEndpoint loraserve-dev-s3"
    assert {name for name, op in changed.items() if op != "create"} == {GPU_GROUP, endpoint}
    assert (changed[GPU_GROUP], changed[endpoint]) == ("update", "update")
    assert changed["aws:ec2/subnet:Subnet loraserve-dev-private-eu-central-1c"] == "create"
    sizes = {"minSize": 1, "desiredSize": 2, "maxSize": 3}
    assert node_group(world, names.GPU_NODE_GROUP)["scalingConfig"] == sizes
    assert dev.up().touched == {}


@pytest.fixture(scope="module")
def larger_node(world: World) -> Iterator[None]:
    """What a GPU group of that type gives; other modules have their own."""
    simulated_nodes.register(world.core, GPU_INSTANCE_TYPES["g6.2xlarge"], "gpu-2")
    yield
    world.core.delete_node("gpu-2")


@pytest.mark.usefixtures("larger_node")
def test_another_instance_type_replaces_the_gpu_group_and_keeps_the_rest(world: World, dev: Deployment) -> None:
    changes = dev.change(gpuInstanceType="g6.2xlarge")
    assert changes.operations[GPU_GROUP] == "replace"
    assert changes.operations[BUCKET] == "same"
    assert "this replaces the GPU nodes that run: gpuInstanceType g6.xlarge -> g6.2xlarge" in changes.output
    assert changes.operations["eks:index:Cluster loraserve-dev"] == "same"
    assert changes.operations[VLLM] == "update", "its pod takes what the larger node gives"
    assert node_group(world, names.GPU_NODE_GROUP)["instanceTypes"] == ["g6.2xlarge"]


def budget_ids(world: World) -> list[str]:
    budgets: Any = client.PolicyV1Api(world.api).list_namespaced_pod_disruption_budget(names.SERVING_NAMESPACE)
    return sorted(budget.metadata.uid for budget in budgets.items)


def node_group(world: World, name: str) -> dict[str, Any]:
    """As EKS holds it; the system nodes' group has a name of Pulumi's making."""
    eks, cluster = world.cloud.client("eks"), {"clusterName": "loraserve-dev"}
    found = eks.list_nodegroups(**cluster)["nodegroups"]
    [full] = [full for full in found if re.fullmatch(rf"{name}(-[0-9a-f]{{7}})?", full)]
    return eks.describe_nodegroup(**cluster, nodegroupName=full)["nodegroup"]


def grow(world: World, name: str, size: int) -> None:
    """The autoscaler adds nodes."""
    group = {"clusterName": "loraserve-dev", "nodegroupName": node_group(world, name)["nodegroupName"]}
    world.cloud.client("eks").update_nodegroup_config(**group, scalingConfig={"desiredSize": size})


@pytest.fixture
def releaser(world: World, dev: Deployment, outputs: dict[str, Any], tmp_path: Path) -> Iterator[Deployment]:
    """The same stack as a pipeline has it: with the release role, in the cluster too, and its state in S3."""
    bucket = {"Bucket": STATE_BUCKET, "CreateBucketConfiguration": {"LocationConstraint": world.cloud.region}}
    world.cloud.client("s3").create_bucket(**bucket)
    exported = tmp_path / "state.json"
    assert dev.run("stack", "export", "--file", str(exported)).returncode == 0
    address = urlsplit(world.cloud.endpoint).netloc
    backend = (
        f"s3://{STATE_BUCKET}?endpoint={address}&disableSSL=true&s3ForcePathStyle=true&region={world.cloud.region}"
    )
    pipeline = dev.elsewhere({"PULUMI_BACKEND_URL": backend})
    imported = pipeline.run("stack", "import", "--file", str(exported))
    assert imported.returncode == 0, imported.stderr
    role = world.cloud.client("sts").assume_role(RoleArn=outputs["roles"]["release"], RoleSessionName="pipeline")
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(as_group(world, "loraserve-releasers")))
    with world.enforced_iam():
        yield dev.elsewhere(
            {
                **variables(role["Credentials"]),
                "KUBECONFIG": str(kubeconfig),
                "LORASERVE_KUBECONFIG": str(kubeconfig),
                "PULUMI_BACKEND_URL": backend,
            }
        )


def as_group(world: World, group: str) -> dict[str, Any]:
    """A kubeconfig of somebody whom EKS would put into this group, for the group's sake alone."""
    config = yaml.safe_load(world.control_plane.kubeconfig.read_text())
    config["users"][0]["user"] |= {"as": "somebody", "as-groups": [group]}
    return config


def test_a_pipelines_role_releases_an_adapter_and_is_refused_everything_else(
    world: World, releaser: Deployment
) -> None:
    released = releaser.change(adapters=[adapter("one"), adapter("three")])  # within the envelope
    in_cloud = {name: op for name, op in touched(released).items() if not name.startswith("pulumi:providers:")}
    assert in_cloud == {DESIRED_STATE: "update"}
    documents = [each["data"] for each in config_maps(world, names.SERVING_NAMESPACE) if "desired.json" in each["data"]]
    assert "three" in documents[0]["desired.json"]

    before = node_group(world, names.GPU_NODE_GROUP)["scalingConfig"]
    with releaser.proposed(gpuMaxSize=9), pytest.raises(Refused, match=r"not authorized.*UpdateNodegroupConfig"):
        releaser.up()
    assert node_group(world, names.GPU_NODE_GROUP)["scalingConfig"] == before
    with releaser.proposed(gatewayReplicas=3), pytest.raises(Refused, match=r'deployments.apps "gateway" is forbidden'):
        releaser.up()
    other = s3_of(world, releaser.environment)
    for refused in (
        lambda: other.put_object(Bucket=STATE_BUCKET, Key=".pulumi/stacks/loraserve/prod.json", Body=b"{}"),
        lambda: other.get_object(Bucket=STATE_BUCKET, Key="other/file"),
        lambda: other.create_bucket(Bucket="another"),
    ):
        with pytest.raises(ClientError, match=_REFUSED):
            refused()


def s3_of(world: World, environment: Mapping[str, str]) -> Any:
    """An S3 client with the credentials of an environment."""
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    return world.cloud.client("s3", **{key.lower(): environment[key] for key in keys})


def test_destroy_waits_for_finalizers_and_leaves_nothing_behind(world: World, dev: Deployment) -> None:
    operator = KUBE_PROMETHEUS_STACK.name
    assert "at list price" in loraserve(dev, "receipt", given=exported(dev)).stdout
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
    receipt = loraserve(dev, "receipt", given=exported(dev))
    assert (receipt.returncode, "Nothing is left that costs." in receipt.stdout) == (0, True), receipt.stderr


def release_monitor(world: World) -> bool:
    """Does an operator's work, late: takes the finalizer off. Returns whether its chart was there until then."""
    try:
        eventually(lambda: "deletionTimestamp" in patch_monitor(world, {})["metadata"])
        eventually(lambda: names.GATEWAY not in services(world))  # by then the rest of the destroy has gone on
        charts = [config_map["metadata"]["name"] for config_map in config_maps(world, names.MONITORING_NAMESPACE)]
    finally:
        patch_monitor(world, {"metadata": {"finalizers": None}})
    return f"{RECEIPT}{KUBE_PROMETHEUS_STACK.name}" in charts


def services(world: World) -> list[str]:
    found = world.plain(world.core.list_namespaced_service(names.SERVING_NAMESPACE))["items"]
    return [service["metadata"]["name"] for service in found]


def patch_monitor(world: World, patch: dict[str, Any]) -> dict[str, Any]:
    """Changes the ServiceMonitor of vLLM and returns it."""
    monitors = client.CustomObjectsApi(world.api)
    address = ("monitoring.coreos.com", "v1", names.SERVING_NAMESPACE, "servicemonitors", names.VLLM)
    monitor: Any = monitors.patch_namespaced_custom_object(*address, patch)
    return monitor


def config_maps(world: World, namespace: str) -> list[dict[str, Any]]:
    return world.plain(world.core.list_namespaced_config_map(namespace))["items"]
