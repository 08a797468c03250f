"""Least privilege: each role can be assumed by one service account, and does one thing."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from infra.addons import autoscaler_policy
from infra.roles import publisher_policy, release_policy
from loraserve.contract.keys import create_key
from tests.stack_values import adapter
from tests.unit.declared import ISSUER, Program, declare

CHANGE = ["get", "patch", "update"]


@pytest.fixture(scope="module")
def prod() -> Program:
    return declare("prod")


def statements(text: str) -> dict[str, dict[str, Any]]:
    return {statement["Sid"]: statement for statement in json.loads(text)["Statement"]}


@pytest.mark.parametrize(
    ("role", "subject"),
    [
        ("loraserve-prod-serving", "system:serviceaccount:ml-models:workflow-sa"),
        ("loraserve-prod-gateway", "system:serviceaccount:ml-models:gateway"),
        ("loraserve-prod-autoscaler", "system:serviceaccount:kube-system:cluster-autoscaler"),
        ("loraserve-prod-ebs-csi", "system:serviceaccount:kube-system:ebs-csi-controller-sa"),
    ],
)
def test_a_role_trusts_one_service_account_and_one_audience(prod: Program, role: str, subject: str) -> None:
    trust = json.loads(prod.one("iam/role:Role", role).inputs["assumeRolePolicy"])["Statement"]
    assert len(trust) == 1
    assert trust[0]["Action"] == "sts:AssumeRoleWithWebIdentity"
    assert trust[0]["Condition"] == {"StringEquals": {f"{ISSUER}:sub": subject, f"{ISSUER}:aud": "sts.amazonaws.com"}}


def test_the_serving_role_lists_and_reads_the_catalog_and_nothing_else(prod: Program) -> None:
    policy = json.loads(prod.one("iam/rolePolicy:RolePolicy", "loraserve-prod-serving").inputs["policy"])
    actions = [statement["Action"] for statement in policy["Statement"]]
    assert actions == ["s3:ListBucket", "s3:GetObject"]
    listing, reading = policy["Statement"]
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["llm-models/*", "base-models/*", "start-caches/*"]}}
    assert all(
        resource.endswith(("/llm-models/*", "/base-models/*", "/start-caches/*")) for resource in reading["Resource"]
    )


def gateway_grants(**changes: Any) -> dict[str, tuple[Any, Any]]:
    text = declare("dev", **changes).one("iam/rolePolicy:RolePolicy", "loraserve-dev-gateway").inputs["policy"]
    return {name: (each["Action"], each["Resource"]) for name, each in statements(text).items()}


def test_the_gateway_adds_to_the_usage_ledger_and_reads_it_only_where_there_are_budgets() -> None:
    bucket = "arn:aws:s3:::loraserve-dev-adapters"
    adding = {"AddUsage": ("s3:PutObject", f"{bucket}/usage/*")}
    assert gateway_grants() == adding
    _, key = create_key("team-a", ("*",), None, tokens_per_month=1000)
    budget = [key.model_dump(mode="json", by_alias=True, exclude_none=True)]
    assert gateway_grants(gatewayKeys=budget) == adding | {
        "ListUsage": ("s3:ListBucket", bucket),
        "ReadUsage": ("s3:GetObject", f"{bucket}/usage/*"),
    }
    _, agreeing = create_key("team-a", ("*",), None, sample_percent=10)
    samples = [agreeing.model_dump(mode="json", by_alias=True, exclude_none=True)]
    assert gateway_grants(gatewayKeys=samples) == adding | {"AddSamples": ("s3:PutObject", f"{bucket}/samples/*")}
    text = declare("dev", gatewayKeys=budget).one("iam/rolePolicy:RolePolicy", "loraserve-dev-gateway").inputs["policy"]
    assert statements(text)["ListUsage"]["Condition"] == {"StringLike": {"s3:prefix": "usage/*"}}


def test_a_new_adapter_needs_no_iam_change() -> None:
    one, two = adapter("one"), adapter("two")
    assert declare("dev", adapters=[one]).policies() == declare("dev", adapters=[one, two]).policies()


def test_the_autoscaler_resizes_groups_of_its_own_cluster_only() -> None:
    resize = statements(autoscaler_policy("loraserve-dev"))["ResizeOwnGroups"]
    assert resize["Condition"]["StringEquals"] == {
        "aws:ResourceTag/k8s.io/cluster-autoscaler/enabled": "true",
        "aws:ResourceTag/k8s.io/cluster-autoscaler/loraserve-dev": "owned",
    }


def test_whatever_is_allowed_everywhere_only_looks() -> None:
    observe = statements(autoscaler_policy("loraserve-dev"))["Observe"]
    assert all(action.split(":")[1].startswith(("Describe", "Get")) for action in observe["Action"])


def test_a_publisher_writes_adapters_and_nothing_else() -> None:
    policy = statements(publisher_policy("arn:aws:s3:::bucket"))
    writing = {action for s in policy.values() for action in s["Action"] if "Put" in action or "Delete" in action}
    assert writing == {"s3:PutObject"}
    assert policy["Publish"]["Resource"] == ["arn:aws:s3:::bucket/llm-models/*", "arn:aws:s3:::bucket/lineage/*"]
    assert policy.keys() == {"List", "Read", "Publish"}


def test_a_release_asks_questions_and_writes_the_state_of_its_own_stack() -> None:
    with_cloud = statements(release_policy("arn:aws:s3:::bucket", "dev", None, None))
    assert with_cloud.keys() == {"Read", "Look", "NatImage"}
    assert all(re.match(r"\w+:(Describe|Get|List)", action) for action in with_cloud["Look"]["Action"])

    policy = statements(
        release_policy("arn:aws:s3:::bucket", "dev", "state/team", "arn:aws:kms:eu-central-1:123456789012:key/k")
    )
    home = "arn:aws:s3:::state/team/.pulumi"
    assert policy["List"] == {
        "Sid": "List",
        "Effect": "Allow",
        "Action": ["s3:ListBucket"],
        "Resource": "arn:aws:s3:::state",
    }
    assert policy["State"]["Resource"] == [
        f"{home}/stacks/loraserve/dev.*",
        f"{home}/history/loraserve/dev/*",
        f"{home}/backups/loraserve/dev/*",
        f"{home}/locks/organization/loraserve/dev/*",
    ]
    assert policy["Secrets"]["Action"] == ["kms:Decrypt", "kms:Encrypt"]


def test_in_the_cluster_an_operator_looks_and_forwards_and_a_release_changes_one_config_map() -> None:
    program = declare("dev")
    rules = {role.name: role.inputs["rules"] for role in program.of_type("rbac.authorization.k8s.io/v1:Role")}
    assert rules["loraserve-releasers"] == [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["desired-state"], "verbs": CHANGE}
    ]
    operating = {
        (resource, verb)
        for rule in rules["loraserve-operators"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if verb not in ("get", "list", "watch")
    }
    assert operating == {("pods/portforward", "create")}
    assert not any("pods/exec" in rule["resources"] for rule in rules["loraserve-operators"])
    secrets = [rule["resourceNames"] for rule in rules["loraserve-operators"] if "secrets" in rule["resources"]]
    assert secrets == [["gateway-keys"]], "digests"
    for who in ("operator", "release"):
        entry = program.one("eks/accessEntry:AccessEntry", f"loraserve-dev-{who}").inputs
        [group] = entry["kubernetesGroups"]
        binding = program.one("rbac.authorization.k8s.io/v1:RoleBinding", group).inputs
        assert [subject["name"] for subject in binding["subjects"]] == [group]
        assert entry["principalArn"] == f"arn:aws:mock:::loraserve-dev-{who}"
    assert not [e for e in program.of_type("eks/accessEntry:AccessEntry") if e.name.endswith("publisher")]


@pytest.mark.parametrize("who", ["publisher", "operator", "release"])
def test_a_role_for_people_is_assumed_by_whom_the_account_lets(who: str) -> None:
    program = declare("dev", publisherRole=True)
    trust = json.loads(program.one("iam/role:Role", f"loraserve-dev-{who}").inputs["assumeRolePolicy"])["Statement"]
    assert [(s["Action"], s["Principal"]) for s in trust] == [
        ("sts:AssumeRole", {"AWS": "arn:aws:iam::123456789012:root"})
    ]
