"""`loraserve recover`: what a killed `up` left in AWS is found by its pending creations, and nothing else is touched."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from loraserve.operator import recovery
from loraserve.operator.aws_objects import Connect
from loraserve.operator.cli import main
from tests.unit.recovery_support import (
    ACCOUNT,
    MAKERS,
    PARTS,
    REGION,
    TAGS,
    TRUST,
    VPC,
    Json,
    inventory,
    make_log_group,
    make_role,
    make_route_table,
    make_vpc,
)

PROVIDER = "urn:pulumi:dev::loraserve::pulumi:providers:aws::default"

SESSION = boto3.Session()
"""Shared, as are its clients: to read the services' models takes longer than everything else here."""
CLIENT = cache(partial(SESSION.client, region_name=REGION))


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """An empty account in memory. The caller's own region is another one than the stack's."""
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", SESSION)
        yield CLIENT


Recover = Callable[..., tuple[int, str]]


@pytest.fixture
def recover(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Recover:
    """Runs the command on an exported state; returns its exit code and what it printed."""

    def run(export: str, *options: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(export))
        code = main(["recover", *options])
        output = capsys.readouterr()
        return code, output.out + output.err

    return run


def resource(kind: str, inputs: Json, **more: Any) -> Json:
    urn = f"urn:pulumi:dev::loraserve::loraserve:infra:Part${kind}::ours"
    return {"urn": urn, "type": kind, "inputs": inputs, "provider": f"{PROVIDER}::4d5a", **more}


def state(*pending: Json, known: tuple[Json, ...] = (), operation: str = "creating", account: str = ACCOUNT) -> str:
    """What `pulumi stack export` prints."""
    settings = {"region": REGION, "allowedAccountIds": json.dumps([account])}
    provider = {"urn": PROVIDER, "type": "pulumi:providers:aws", "id": "4d5a", "inputs": settings}
    operations = [{"resource": item, "type": operation} for item in pending]
    return json.dumps({"version": 3, "deployment": {"resources": [provider, *known], "pending_operations": operations}})


@pytest.mark.parametrize("kind", MAKERS)
def test_only_what_the_state_does_not_know_is_deleted(aws: Connect, recover: Recover, kind: str) -> None:
    made, inputs = MAKERS[kind](aws)
    creation = resource(kind, inputs)
    before = inventory(aws)

    assert recover(state(creation, known=({**creation, "id": made},)), "--yes")[0] == 0
    assert inventory(aws) == before

    code, output = recover(state(creation), "--yes")
    gone = before - inventory(aws)
    assert (code, made in gone, "will be deleted" in output) == (0, True, True), output
    assert all(item.startswith(PARTS.get(kind, ("-",))) for item in gone - {made}), "only its own parts go with it"

    code, output = recover(state(creation), "--yes")
    assert (code, inventory(aws)) == (0, before - gone)
    assert "nothing in AWS that the state does not know" in output


def test_without_yes_it_only_shows(aws: Connect, recover: Recover) -> None:
    orphan, inputs = make_vpc(aws)
    before = inventory(aws)

    code, output = recover(state(resource(VPC, inputs)))

    assert inventory(aws) == before
    assert code == 2
    assert orphan in output
    assert "--yes" in output


def test_two_that_cannot_be_told_apart_are_both_left(aws: Connect, recover: Recover) -> None:
    (one, inputs), (other, _) = make_vpc(aws), make_vpc(aws)
    before = inventory(aws)

    code, output = recover(state(resource(VPC, inputs)), "--yes")

    assert inventory(aws) == before
    assert code == 2
    assert one in output
    assert other in output


def test_of_two_alike_the_one_that_the_state_does_not_know_goes(aws: Connect, recover: Recover) -> None:
    (known, inputs), (orphan, _) = make_vpc(aws), make_vpc(aws)
    creation = resource(VPC, inputs)

    code, output = recover(state(creation, creation, known=({**creation, "id": known},)), "--yes")

    assert (known in inventory(aws), orphan in inventory(aws), code) == (True, False, 0), output


@pytest.mark.parametrize("other", [{"tags": {**TAGS, "loraserve/stack": "prod"}}, {"cidr": "10.1.0.0/16"}])
def test_what_differs_in_its_inputs_is_not_ours(aws: Connect, recover: Recover, other: Json) -> None:
    make_vpc(aws, **other)
    before = inventory(aws)

    code, _ = recover(state(resource(VPC, {"cidrBlock": "10.0.0.0/16", "tags": TAGS})), "--yes")

    assert (inventory(aws), code) == (before, 0)


def test_what_has_no_name_and_no_tags_is_left_to_a_person(aws: Connect, recover: Recover) -> None:
    table, inputs = make_route_table(aws)

    code, output = recover(state(resource("aws:ec2/routeTable:RouteTable", {"vpcId": inputs["vpcId"]})), "--yes")

    assert (table in inventory(aws), code) == (True, 2)
    assert "no tags recorded" in output


def test_what_is_in_use_is_not_deleted_and_the_rest_still_is(aws: Connect, recover: Recover) -> None:
    (role, used), (_, logs) = make_role(aws), make_log_group(aws)
    aws("iam").put_role_policy(RoleName=role, PolicyName="in-use", PolicyDocument=TRUST)
    creations = resource("aws:iam/role:Role", used), resource("aws:cloudwatch/logGroup:LogGroup", logs)

    code, output = recover(state(*creations), "--yes")

    assert (role in inventory(aws), logs["name"] in inventory(aws), code) == (True, False, 2)
    assert "DeleteConflict" in output


@pytest.mark.parametrize("operation", ["deleting", "updating", "reading"])
def test_only_creations_are_looked_at(aws: Connect, recover: Recover, operation: str) -> None:
    _, inputs = make_vpc(aws)
    before = inventory(aws)

    code, _ = recover(state(resource(VPC, inputs), operation=operation), "--yes")

    assert (inventory(aws), code) == (before, 0)


@pytest.mark.parametrize(
    "kind", [*sorted(recovery.REPEATABLE), "kubernetes:core/v1:ConfigMap", "random:index/randomPassword:RandomPassword"]
)
def test_what_the_next_up_repeats_needs_nothing(recover: Recover, kind: str) -> None:
    code, output = recover(state(resource(kind, {})), "--yes")

    assert (code, "needs nothing" in output) == (0, True)


def test_an_unknown_type_is_left_to_a_person(recover: Recover) -> None:
    code, output = recover(state(resource("aws:sqs/queue:Queue", {"name": "q"})), "--yes")

    assert (code, "by hand" in output) == (2, True)


def test_another_account_is_refused(aws: Connect, recover: Recover) -> None:
    _, inputs = make_vpc(aws)
    before = inventory(aws)

    code, output = recover(state(resource(VPC, inputs), account="999999999999"), "--yes")

    assert (inventory(aws), code) == (before, 1)
    assert "999999999999" in output
    assert "AWS_PROFILE" in output


def test_a_refusal_of_aws_is_one_clear_error(aws: Connect, recover: Recover, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "DescribeVpcs")

    monkeypatch.setattr(recovery, "FINDERS", {VPC: refuse})

    code, output = recover(state(resource(VPC, {})))

    assert (code, "AccessDenied" in output) == (1, True)


@pytest.mark.parametrize("export", ["", "{}", "no state", "[]"])
def test_input_that_is_no_state_says_how_to_get_one(recover: Recover, export: str) -> None:
    code, output = recover(export)

    assert (code, "pulumi stack export" in output) == (1, True)


def test_a_state_without_pending_operations_needs_nothing(recover: Recover) -> None:
    assert recover(state())[0] == 0
