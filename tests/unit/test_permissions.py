"""What whoever runs `up` must be allowed: a table that knows every type, in AWS' own words, and the policy made of it."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import Any

import botocore.session
import pytest

from local.stand_ins.aws.plugin import TYPES
from loraserve.contract.addresses import cluster_name
from loraserve.operator.cli import main
from loraserve.planning import permissions
from tests.aws_actions import actions_of
from tests.aws_types import EKS_COMPONENT
from tests.unit.declared import declare
from tests.unit.test_aws_types import EVERYTHING
from tests.unit.test_place import SECOND

SERVICES = (
    *("autoscaling", "budgets", "ec2", "ecr", "eks", "elbv2", "iam", "logs", "resourcegroupstaggingapi"),
    *("s3", "s3control", "service-quotas", "ssm"),
)
NO_OPERATION = {"iam:PassRole"}


def test_every_type_that_a_stack_emits_has_its_actions_and_their_source() -> None:
    assert permissions.BY_TYPE.keys() == {kind.token for kind in TYPES}
    assert permissions.BY_TYPE.keys() >= {kind for kind in EKS_COMPONENT if kind.startswith("aws:")}
    for needs in permissions.BY_TYPE.values():
        assert needs.source.endswith(".go")
        assert needs.actions


def test_every_action_is_one_that_aws_knows() -> None:
    session: Any = botocore.session.get_session()
    known = {
        action
        for service in SERVICES
        for operation in session.get_service_model(service).operation_names
        for action in actions_of(service, operation)
    }
    assert permissions.ACTIONS - known == NO_OPERATION


def test_what_is_made_can_also_be_read_and_unmade() -> None:
    verbs = {action.partition(":")[2] for needs in permissions.BY_TYPE.values() for action in needs.actions}
    for made in [
        verb for verb in verbs if verb.startswith("Create") and not verb.endswith(("Tags", "LinkedRole", "Version"))
    ]:
        thing = made.removeprefix("Create")
        assert {f"Delete{thing}", f"Delete{thing}s"} & verbs, made


@pytest.mark.parametrize(("stack", "options"), [("dev", EVERYTHING), ("chat", SECOND)])
def test_the_named_resources_are_those_of_the_policy(stack: str, options: dict[str, Any]) -> None:
    scopes = {scope.sid: scope for scope in permissions.scopes(cluster_name(stack))}
    program = declare("dev", **options)
    made = {"Roles": ("aws:iam/role:Role", "role/"), "Bucket": ("aws:s3/bucket:Bucket", ":::")}
    for sid, (kind, before) in made.items():
        pattern = scopes[sid].resource.rpartition(before)[2]
        names = [resource.name for resource in program.resources if resource.type == kind]
        assert names
        assert [name for name in names if not fnmatchcase(f"{name}-0123456", pattern)] == []
    assert fnmatchcase("loraserve-prod-adapters", scopes["Bucket"].resource) is False


def test_the_command_prints_the_policy_which_fits_a_roles_inline_policies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", "--stack", "dev", "--policy"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == permissions.policy_document("loraserve-dev")
    assert len(json.dumps(printed, separators=(",", ":"))) < permissions.INLINE_LIMIT
    allowed = [action for statement in printed["Statement"] for action in statement["Action"]]
    assert sorted(allowed) == sorted(permissions.ACTIONS)
    assert not any("*" in action for action in allowed)


def test_preflight_asks_the_simulator_for_exactly_the_policys_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    from infra import account

    asked: dict[str, str] = {}

    class Answer:
        issuer_arn, results = "arn:aws:iam::123456789012:role/deployer", None

    def simulate(*, action_names: list[str], resource_arns: list[str], **_: str) -> type[Answer]:
        asked.update(dict.fromkeys(action_names, resource_arns[0]))
        return Answer

    monkeypatch.setattr(account.aws.iam, "get_session_context", lambda **_: Answer)
    monkeypatch.setattr(account.aws.iam, "get_principal_policy_simulation", simulate)
    assert not list(account.check_permissions("arn:aws:sts::123456789012:assumed-role/deployer/me", "loraserve-dev"))
    for statement in permissions.policy_document("loraserve-dev")["Statement"]:
        for action in statement["Action"]:
            assert fnmatchcase(asked[action], statement["Resource"])
    assert asked.keys() == permissions.ACTIONS
