"""Another base model beside the first: a second stack in its cluster has its own group, bucket, namespace and roles, and no more."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra import names, versions
from infra.errors import ConfigError
from loraserve.planning.settings_parser import InvalidSettings, parse
from tests.stack_values import stack_values
from tests.unit.declared import ISSUER, Program, declare, run
from tests.unit.standing import node_group, standing

HOST = {
    "place": {
        "providerArn": "arn:aws:iam::123456789012:oidc-provider/x",
        "issuer": ISSUER,
        "privateSubnets": {"eu-central-1a": "subnet-a", "eu-central-1b": "subnet-b"},
        "vpcCidr": "10.7.0.0/16",
    },
    "kubeconfig": '{"clusters": []}',
    "image": "registry.example.com/loraserve@sha256:" + "1" * 64,
}
SECOND: dict[str, Any] = {
    "named": "chat",
    "host": HOST,
    "standing": standing(),
    "clusterStack": "dev",
    "publicAccessCidrs": [],
}


@pytest.fixture(scope="module")
def second() -> Program:
    return declare("dev", **SECOND, baseModel="Qwen/Qwen2.5-3B-Instruct", gpuSpot=True)


def kinds(program: Program) -> set[str]:
    return {resource.type for resource in program.resources}


def test_what_a_cluster_has_once_is_not_declared_again(second: Program) -> None:
    once = (
        "ec2/vpc:Vpc",
        "eks:index:Cluster",
        "helm.sh/v4:Chart",
        "NatGateway",
        "ecr/repository:Repository",
        "OpenIdConnectProvider",
    )
    assert not [kind for kind in kinds(second) for one in once if one in kind]
    assert {group.name for group in second.of_type("eks/nodeGroup:NodeGroup")} == {
        "gpu-vllm-nodes-of-chat",
        "gpu-vllm-nodes-spot-of-chat",
    }


def test_it_takes_cluster_and_network_from_the_first_ones_outputs(second: Program) -> None:
    group = second.one("eks/nodeGroup:NodeGroup", "gpu-vllm-nodes-of-chat").inputs
    assert group["clusterName"] == "loraserve-dev"
    assert group["subnetIds"] == ["subnet-a", "subnet-b"]
    provider = second.one("pulumi:providers:kubernetes").inputs
    assert provider["kubeconfig"] == HOST["kubeconfig"]
    trust = second.policies()
    serving = next(
        json.dumps(document)
        for where, document in trust.items()
        if where.endswith("loraserve-chat-serving assumeRolePolicy")
    )
    assert "system:serviceaccount:ml-models-of-chat:workflow-sa" in serving
    assert HOST["place"]["providerArn"] in serving
    assert "10.7.0.0/16" in json.dumps(second.one("NetworkPolicy", "gateway-out").inputs)


def test_its_pods_run_on_its_own_nodes_and_in_its_own_namespace(second: Program) -> None:
    spec = second.one("apps/v1:Deployment", names.VLLM).inputs["spec"]["template"]["spec"]
    labels = second.one("eks/nodeGroup:NodeGroup", "gpu-vllm-nodes-of-chat").inputs["labels"]
    assert spec["nodeSelector"] == {"workload": "gpu-vllm-of-chat"}
    assert spec["nodeSelector"].items() <= labels.items()
    assert spec["initContainers"][0]["image"] == HOST["image"]
    assert names.GPU_NODE.items() <= labels.items(), "the device plugin of the first stack runs there too"
    namespaces = {
        r.inputs["metadata"].get("namespace")
        for r in second.resources
        if "kubernetes:" in r.type and "metadata" in r.inputs
    }
    assert namespaces <= {"ml-models-of-chat", None}
    assert "gateway.ml-models-of-chat.svc" in json.dumps(second.one("ScaledObject").inputs)


def test_prometheus_of_the_first_asks_it_too(second: Program) -> None:
    monitors = second.of_type(":ServiceMonitor")
    assert {monitor.name for monitor in monitors} == {"vllm", "gateway"}


def test_names_of_both_stacks_differ_where_the_account_or_the_cluster_has_them_once(second: Program) -> None:
    first = declare("dev")

    def once(program: Program) -> set[str]:
        found = {f"{r.type} {r.name}" for r in program.of_type("iam/role:Role")}
        found |= {
            f"group {r.inputs['nodeGroupName']}"
            for r in program.of_type("eks/nodeGroup:NodeGroup")
            if "nodeGroupName" in r.inputs
        }
        found |= {f"access {group}" for r in program.of_type("AccessEntry") for group in r.inputs["kubernetesGroups"]}
        return found

    assert not once(first) & once(second)


def test_the_first_tells_what_a_second_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr("pulumi.export", told.__setitem__)
    run("dev")
    assert HOST.keys() <= told.keys()
    assert HOST["place"].keys() == told["place"].keys()


def test_a_cluster_that_is_not_there_or_is_another_one_is_told_so() -> None:
    with pytest.raises(ConfigError, match=r"there is no cluster loraserve-dev.*`pulumi up --stack dev` first"):
        declare("dev", **SECOND | {"standing": None})
    with pytest.raises(ConfigError, match=r"its cluster runs Kubernetes 1\.33, and .* that one first"):
        declare("dev", **SECOND | {"standing": standing(version="1.33")})


def test_a_stack_does_not_leave_its_cluster_for_another() -> None:
    with pytest.raises(
        ConfigError, match=r"serves in the cluster loraserve-dev, and would leave it for loraserve-prod"
    ):
        run("dev", last_outputs={"cluster": "loraserve-dev", "vpcCidr": "10.0.0.0/16"}, clusterStack="prod")
    last = {"cluster": "loraserve-dev", "region": "eu-central-1", "vpcCidr": "10.7.0.0/16"}
    assert declare("dev", **SECOND, last_outputs=last).resources, "the network is the first stack's business"


def test_each_stack_looks_after_its_own_groups() -> None:
    old = node_group(0, 1, 2, releaseVersion="1.33.0-20250101")
    groups = {"gpu-vllm-nodes": node_group(0, 0, 2), "gpu-vllm-nodes-of-chat": old}
    both = standing() | {"groups": groups}
    assert not [told for told in declare("dev", standing=both).messages if "replaces the nodes" in told]
    told = declare("dev", **SECOND | {"standing": both}).messages
    assert (
        f"this replaces the nodes of gpu-vllm-nodes-of-chat one by one: AMI 1.33.0-20250101 -> {versions.NODE_RELEASE}"
        in told
    )


def test_what_belongs_to_the_cluster_is_refused_beside_another_ones() -> None:
    with pytest.raises(InvalidSettings) as caught:
        parse(
            stack_values(
                "dev",
                clusterStack="prod",
                gatewayCertificateArn="arn:aws:acm:eu-central-1:1:certificate/x".replace(":1:", ":123456789012:"),
                objectives={"x": {"availability": 0.9}},
            )
        )
    assert "clusterStack prod: gatewayCertificateArn, objectives belong to the stack whose cluster it is" in "\n".join(
        caught.value.problems
    )
    with pytest.raises(InvalidSettings, match=r"clusterStack: the stack's name 'No\.Name'"):
        parse(stack_values("dev", clusterStack="No.Name"))
