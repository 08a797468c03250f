"""The production pod and the real scheduler, on nodes that offer what EKS really leaves of a g6.xlarge; beside it a second stack's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kubernetes import client

from infra import names
from infra.standing import OF
from local.paths import CHECKOUT
from loraserve.planning.pod_resources import Requests
from tests.aws_objects import inventory
from tests.engine import simulated_nodes
from tests.engine.deployed import Deployment, World
from tests.waiting import eventually


@pytest.fixture(scope="module")
def before(world: World) -> set[str]:
    """What the emulated AWS holds by itself."""
    return inventory(world.cloud.client)


@pytest.fixture(scope="module")
def certificate(world: World) -> str:
    return world.cloud.client("acm").request_certificate(DomainName="llm.example.com")["CertificateArn"]


@pytest.fixture(scope="module")
def prod(world: World, before: set[str], certificate: str) -> Deployment:
    """Production with a load balancer in front."""
    deployment = Deployment(world, "prod", gatewayCertificateArn=certificate)
    deployment.up()
    return deployment


def test_the_load_balancer_hands_connections_to_the_system_nodes(
    world: World, prod: Deployment, certificate: str
) -> None:
    elb, eks, cluster = world.cloud.client("elbv2"), world.cloud.client("eks"), "loraserve-prod"
    [balancer] = elb.describe_load_balancers()["LoadBalancers"]
    [listener] = elb.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]
    (system,) = (
        name for name in eks.list_nodegroups(clusterName=cluster)["nodegroups"] if name != names.GPU_NODE_GROUP
    )
    nodes = eks.describe_nodegroup(clusterName=cluster, nodegroupName=system)["nodegroup"]
    groups = nodes["resources"]["autoScalingGroups"]
    behind = world.cloud.client("autoscaling").describe_load_balancer_target_groups(
        AutoScalingGroupName=groups[0]["name"]
    )["LoadBalancerTargetGroups"]

    assert balancer["Scheme"] == "internal"
    assert prod.outputs()["gatewayHostName"] == balancer["DNSName"]
    assert (listener["Port"], listener["Certificates"][0]["CertificateArn"]) == (443, certificate)
    assert [item["LoadBalancerTargetGroupARN"] for item in behind] == [listener["DefaultActions"][0]["TargetGroupArn"]]
    assert prod.up().touched == {}


def test_the_production_pod_fits_a_g6_xlarge_beside_its_daemonsets(world: World, prod: Deployment) -> None:
    (pod,) = vllm_pods(world)
    assert (pod["spec"]["nodeName"], pod["status"]["phase"]) == ("gpu-1", "Running")


def test_the_same_pod_without_its_toleration_lands_nowhere(world: World, prod: Deployment) -> None:
    (pod,) = vllm_pods(world)
    spec = {key: value for key, value in pod["spec"].items() if key not in ("tolerations", "nodeName")}
    body: Any = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "without-toleration"}, "spec": spec}
    world.core.create_namespaced_pod(names.SERVING_NAMESPACE, body)
    try:
        assert "untolerated taint" in eventually(lambda: why_unscheduled(world, "without-toleration"))
    finally:
        world.core.delete_namespaced_pod("without-toleration", names.SERVING_NAMESPACE)


def test_a_daemonset_that_leaves_too_little_room_is_noticed(world: World, prod: Deployment) -> None:
    """It outranks the model and takes its place; the scheduler then says what the model lacks."""
    greedy: Any = simulated_nodes.daemon_set_manifest("greedy", Requests(100, 3 * 1024))
    apps = client.AppsV1Api(world.api)
    apps.create_namespaced_daemon_set(names.SYSTEM_NAMESPACE, greedy)
    try:
        (waiting,) = eventually(lambda: vllm_pods(world, "Pending"))
        assert "Insufficient memory" in eventually(lambda: why_unscheduled(world, waiting["metadata"]["name"]))
    finally:
        apps.delete_namespaced_daemon_set("greedy", names.SYSTEM_NAMESPACE)
    eventually(lambda: vllm_pods(world, "Running"))


@pytest.fixture
def chats_node(world: World) -> Iterator[str]:
    """What the second stack's GPU group gives."""
    labels = names.with_suffix(names.GPU_SELECTOR, f"{OF}chat")
    simulated_nodes.register(world.core, simulated_nodes.GPU, "gpu-of-chat", labels)
    yield "gpu-of-chat"
    world.core.delete_node("gpu-of-chat")


def test_a_second_base_model_comes_and_goes_beside_the_first(world: World, prod: Deployment, chats_node: str) -> None:
    (first,), alone = vllm_pods(world), inventory(world.cloud.client)
    awake = {"clusterStack": "prod", "inferenceReplicas": 1, "deletionProtection": False}
    chat = Deployment(world, "chat", **documented_second_stack() | awake)
    chat.up()
    second = chat.outputs()["namespace"]

    (pod,) = vllm_pods(world, "Running", second)
    assert (second, pod["spec"]["nodeName"]) == ("ml-models-of-chat", chats_node)
    assert prod.up().touched == {}, "nothing of the first is the second one's"

    chat.destroy()
    namespaces = world.plain(world.core.list_namespace())["items"]
    assert second not in {namespace["metadata"]["name"] for namespace in namespaces}
    assert inventory(world.cloud.client) == alone
    assert [pod["metadata"]["uid"] for pod in vllm_pods(world, "Running")] == [first["metadata"]["uid"]]


def documented_second_stack() -> dict[str, Any]:
    """The stack file that docs/operations.md shows."""
    [shown] = re.findall(
        r"```yaml\n(config: # Pulumi\.chat\.yaml\n.*?)```", (CHECKOUT / "docs/operations.md").read_text(), re.DOTALL
    )
    return {key.removeprefix(f"{names.PROJECT}:"): value for key, value in yaml.safe_load(shown)["config"].items()}


def test_a_protected_stack_is_not_destroyed_by_accident(world: World, prod: Deployment) -> None:
    refused = prod.run("destroy", "--yes")
    assert refused.returncode != 0
    assert "protected" in refused.stdout + refused.stderr
    assert world.cloud.client("eks").list_clusters()["clusters"] == ["loraserve-prod"]
    assert vllm_pods(world)


def test_production_ends_well_once_its_protection_is_lifted(world: World, prod: Deployment, before: set[str]) -> None:
    prod.change(deletionProtection=False)
    prod.destroy()
    assert inventory(world.cloud.client) == before
    assert world.left_behind("prod") == []


def vllm_pods(world: World, phase: str | None = None, namespace: str = names.SERVING_NAMESPACE) -> list[dict[str, Any]]:
    """Pods that are not on their way out, in any phase or in this one."""
    pods = world.plain(world.core.list_namespaced_pod(namespace, label_selector="app=vllm"))["items"]
    staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return [pod for pod in staying if phase in (None, pod["status"]["phase"])]


def why_unscheduled(world: World, pod: str) -> str:
    events = world.core.list_namespaced_event(
        names.SERVING_NAMESPACE, field_selector=f"involvedObject.name={pod},reason=FailedScheduling"
    )
    return " ".join(event["message"] for event in world.plain(events)["items"])
