"""Logs that outlive their node: off unless asked for, and who sends them may do nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from infra import names
from infra.pod_logs import shipping_config
from loraserve.planning import pod_resources
from loraserve.planning.cost import idle_cost
from loraserve.planning.settings_parser import InvalidSettings, parse
from tests.stack_values import stack_values
from tests.unit.declared import ISSUER, Program, declare, environment_in_pod

DAYS = 30


@pytest.fixture(scope="module")
def shipped() -> Program:
    return declare("dev", podLogDays=DAYS)


def pod(program: Program) -> dict[str, Any]:
    return program.one("apps/v1:DaemonSet", names.POD_LOGS).inputs["spec"]["template"]["spec"]


def container(program: Program) -> dict[str, Any]:
    (only,) = pod(program)["containers"]
    return only


def test_by_itself_logs_stay_on_their_node() -> None:
    program = declare("dev")
    assert not program.of_type("apps/v1:DaemonSet")
    assert not [each.name for each in program.resources if names.POD_LOGS in each.name]


def test_they_are_kept_as_long_as_is_said(shipped: Program) -> None:
    assert shipped.one("cloudwatch/logGroup:LogGroup", "loraserve-dev-pods").inputs["retentionInDays"] == DAYS


def test_who_sends_them_may_add_to_that_log_group_and_do_nothing_else(shipped: Program) -> None:
    group = shipped.one("cloudwatch/logGroup:LogGroup", "loraserve-dev-pods")
    role = shipped.one("iam/role:Role", "loraserve-dev-pod-logs")
    (may,) = json.loads(shipped.one("iam/rolePolicy:RolePolicy", role.name).inputs["policy"])["Statement"]
    assert may["Action"] == ["logs:CreateLogStream", "logs:PutLogEvents"]
    assert may["Resource"].endswith(f"{group.name}:*")
    (trust,) = json.loads(role.inputs["assumeRolePolicy"])["Statement"]
    assert trust["Condition"]["StringEquals"][f"{ISSUER}:sub"] == "system:serviceaccount:pod-logs:pod-logs"
    assert environment_in_pod(container(shipped))["AWS_ROLE_ARN"]


def test_every_node_has_one_the_gpus_too(shipped: Program) -> None:
    assert pod(shipped)["tolerations"] == [{"operator": "Exists", "effect": names.GPU_TAINT.effect}]
    assert not pod(shipped).get("nodeSelector")
    asked = container(shipped)["resources"]["requests"]
    assert asked == pod_resources.GPU_NODE_DAEMONSETS[names.POD_LOGS].quantities(), "vLLM leaves room for it"


def test_it_reads_two_folders_of_its_node_and_is_not_root(shipped: Program) -> None:
    of_node = {volume["hostPath"]["path"] for volume in pod(shipped)["volumes"] if "hostPath" in volume}
    assert of_node == {"/var/log/containers", "/var/log/pods"}
    mounts = {mount["mountPath"]: mount.get("readOnly") for mount in container(shipped)["volumeMounts"]}
    assert all(mounts[path] for path in of_node)
    context = pod(shipped)["securityContext"]
    assert context["runAsNonRoot"]
    assert context["supplementalGroups"] == [0]
    assert not pod(shipped)["automountServiceAccountToken"]


def test_files_are_told_by_their_names() -> None:
    config = yaml.safe_load(shipping_config("/loraserve-dev", "eu-central-1"))
    (followed,) = config["pipeline"]["inputs"]
    file = f"/var/log/containers/vllm-7d9f-x2x_{names.SERVING_NAMESPACE}_vllm-agent-{'0f' * 32}.log"
    found = re.fullmatch(followed["tag_regex"].replace("?<", "?P<"), file)
    assert found
    assert found.groupdict() == {
        "pod": "vllm-7d9f-x2x",
        "namespace": names.SERVING_NAMESPACE,
        "container": "vllm-agent",
    }
    (sent,) = config["pipeline"]["outputs"]
    assert (sent["log_group_name"], sent["region"]) == ("/loraserve-dev", "eu-central-1")


@pytest.mark.parametrize(
    ("namespace", "is_sent"), [("ml-models", True), ("ml-models-of-two", True), ("default", False)]
)
def test_pods_of_every_stack_in_the_cluster_are_sent_and_no_others(namespace: str, is_sent: bool) -> None:
    (followed,) = yaml.safe_load(shipping_config("/loraserve-dev", "eu-central-1"))["pipeline"]["inputs"]
    folder, _, pattern = followed["path"].rpartition("/")
    assert folder == "/var/log/containers"
    assert bool(re.fullmatch(pattern.replace("*", ".*"), f"gateway-1_{namespace}_gateway-{'0' * 64}.log")) is is_sent


def test_a_time_that_cloudwatch_does_not_know_is_refused_with_those_that_it_does() -> None:
    with pytest.raises(InvalidSettings, match=r"podLogDays: CloudWatch keeps logs for 1, 3, 5, .* days"):
        parse(stack_values("dev", podLogDays=10))


def test_a_stack_in_another_ones_cluster_leaves_it_to_that_one() -> None:
    with pytest.raises(InvalidSettings, match="podLogDays belong to the stack whose cluster it is"):
        parse(stack_values("dev", podLogDays=30, clusterStack="prod"))


def test_the_sum_names_its_price() -> None:
    parts = idle_cost(parse(stack_values("dev", podLogDays=30)), "us-east-1", zones=2) or {}
    assert parts["pod logs (1 GB a month, kept 30 days)"] == pytest.approx(0.50 + 0.15 * 0.03, rel=0.01)
