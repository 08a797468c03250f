"""The aws plugin: every type keeps one contract with the emulated AWS; what the engine adds is tested through it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from local.engine.cloud import ACCOUNT_ID, Cloud
from local.stand_ins.aws.account import Account
from local.stand_ins.aws.plugin import TYPES
from local.stand_ins.aws.resource import AwsError
from local.stand_ins.provider import UNKNOWN, InvalidInput, Properties
from loraserve.planning.permissions import BY_TYPE
from tests.aws_actions import actions_of
from tests.engine.aws_world import ASSUMED_BY_EC2, REGION, Handler, World, in_place_changes, policy


@pytest.fixture(scope="module", autouse=True)
def environment(cloud: Cloud) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cloud.environment.items():
            patch.setenv(name, value)
        yield


STAND_INS_OWN = {
    "autoscaling:DescribeLoadBalancerTargetGroups",  # for the provider's DescribeAutoScalingGroups
    "iam:ListRoleTags",  # for its GetRole, which tells the tags in AWS, and not in moto
}


class Listening(Account):
    """Keeps what was asked of AWS, in IAM's words."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def _connect(self, service: str) -> Any:
        client = super()._connect(service)
        client.meta.events.register("before-call", self._hear)
        return client

    def _hear(self, model: Any, **_: object) -> None:
        self.asked |= actions_of(model.service_model.service_name, model.name)


@pytest.fixture(scope="module")
def account(environment: None) -> Listening:
    account = Listening()
    account.configure({"region": REGION, "defaultTags": json.dumps({"tags": {"Project": "loraserve"}})})
    return account


@pytest.fixture(scope="module")
def world(account: Account) -> World:
    return World(account)


@pytest.mark.parametrize("token", [kind.token for kind in TYPES])
def test_a_type_does_what_the_engine_relies_on_and_asks_no_more_than_whoever_runs_it_may(
    world: World, account: Listening, token: str
) -> None:
    inputs, change = in_place_changes(world)[token]
    account.asked.clear()
    thing = Handler(world.account, token).create(**inputs)
    assert thing.drift() == {}, "a new object is read as it was made"

    thing.update(**inputs | change)
    assert thing.drift() == {}, "an updated object is read as it was updated"

    thing.update(**inputs | {key: change[key] for key in ("version",) if key in change})  # no way back from a version
    if thing.kind.taggable:
        assert thing.outputs["tagsAll"] == {"Project": "loraserve"}, "default tags stay when others go"
    assert account.asked - BY_TYPE[token].actions <= STAND_INS_OWN

    if token.endswith(":BucketVersioning"):
        return  # it can only be suspended
    thing.delete()
    assert thing.gone
    thing.delete()
    assert account.asked - BY_TYPE[token].actions <= STAND_INS_OWN


@pytest.mark.parametrize(
    ("token", "inputs", "change"),
    [
        ("aws:ec2/vpc:Vpc", {"cidrBlock": "10.8.0.0/16"}, {"cidrBlock": "10.9.0.0/16"}),
        ("aws:s3/bucket:Bucket", {"bucket": "one"}, {"bucket": "two"}),
        ("aws:iam/role:Role", {"name": "one", "assumeRolePolicy": ASSUMED_BY_EC2}, {"name": "two"}),
        (
            "aws:autoscaling/tag:Tag",
            {"autoscalingGroupName": "g", "tag": {"key": "a", "value": "1"}},
            {"tag": {"key": "b", "value": "1"}},
        ),
    ],
)
def test_what_aws_cannot_change_is_replaced(
    account: Account, token: str, inputs: Properties, change: Properties
) -> None:
    kind = Handler(account, token).kind
    olds, news = (kind.check("thing", properties, {}, b"") for properties in (inputs, inputs | change))
    assert kind.diff(olds, news).replaces == change.keys()


def test_a_hand_edit_is_seen_and_put_back(world: World) -> None:
    role = world.make("aws:iam/role:Role", assumeRolePolicy=ASSUMED_BY_EC2, tags={"Name": "one"})
    role.kind.api.update_assume_role_policy(RoleName=role.id, PolicyDocument=ASSUMED_BY_EC2.replace("ec2", "evil"))
    role.kind.api.tag_role(RoleName=role.id, Tags=[{"Key": "Name", "Value": "two"}, {"Key": "Extra", "Value": "x"}])

    assert role.drift().keys() == {"assumeRolePolicy", "tags", "tagsAll"}
    found = role.kind.read(role.id, role.inputs, role.outputs)
    assert found is not None
    role.outputs = role.kind.update(role.id, found.inputs, role.inputs, found.outputs)
    assert role.drift() == {}


def test_a_policy_written_with_other_spacing_is_no_drift(world: World) -> None:
    spaced = json.dumps(json.loads(ASSUMED_BY_EC2), indent=4)
    role = world.make("aws:iam/role:Role", assumeRolePolicy=spaced)
    assert role.drift() == {}


def test_a_new_launch_template_version_is_unknown_in_a_preview(world: World) -> None:
    template = world.make("aws:ec2/launchTemplate:LaunchTemplate", metadataOptions={"httpTokens": "required"})
    same = template.kind.preview(template.inputs, template.outputs)
    changed = template.kind.preview(template.inputs | {"userData": "aGVsbG8="}, template.outputs)
    assert same["latestVersion"] == 1
    assert changed["latestVersion"] == UNKNOWN


def test_a_protected_bucket_keeps_its_objects(world: World) -> None:
    bucket = world.make("aws:s3/bucket:Bucket", forceDestroy=False)
    versioned = {"bucket": bucket.id, "versioningConfiguration": {"status": "Enabled"}}
    world.make("aws:s3/bucketVersioning:BucketVersioning", **versioned)
    for content in ("one", "two"):
        bucket.kind.api.put_object(Bucket=bucket.id, Key="a", Body=content)
    with pytest.raises(AwsError, match="BucketNotEmpty"):
        bucket.delete()

    bucket.update(bucket=bucket.id, forceDestroy=True)
    bucket.delete()
    assert bucket.gone


def test_a_role_in_use_is_not_deleted(world: World) -> None:
    role = world.make("aws:iam/role:Role", assumeRolePolicy=ASSUMED_BY_EC2)
    world.make("aws:iam/rolePolicy:RolePolicy", role=role.id, policy=policy("s3:GetObject"))
    with pytest.raises(AwsError, match="DeleteConflict"):
        role.delete()


def test_an_error_names_the_type_and_what_aws_said(account: Account) -> None:
    with pytest.raises(AwsError, match=r"create aws:ec2/subnet:Subnet: AWS answered InvalidVpcID.NotFound"):
        Handler(account, "aws:ec2/subnet:Subnet").create(vpcId="vpc-1", cidrBlock="10.0.0.0/24")


@pytest.mark.parametrize(
    ("token", "inputs", "complaint"),
    [
        ("aws:ec2/vpc:Vpc", {"cidrBlok": "10.0.0.0/16"}, "cidrBlok"),
        ("aws:ec2/vpc:Vpc", {}, "cidrBlock"),
        ("aws:iam/role:Role", {"assumeRolePolicy": "{}", "managedPolicyArns": []}, "managedPolicyArns"),
        ("aws:iam/rolePolicy:RolePolicy", {"role": "r", "policy": "not json"}, "JSON"),
        ("aws:iam/rolePolicy:RolePolicy", {"role": "r", "policy": policy("s3:" + "x" * 10_240)}, "10240"),
    ],
)
def test_input_that_the_real_provider_would_refuse_is_refused(
    account: Account, token: str, inputs: Properties, complaint: str
) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        Handler(account, token).create(**inputs)


def test_a_stack_for_another_account_is_refused() -> None:
    with pytest.raises(InvalidInput, match=rf"allowedAccountIds: .*111111111111.*{ACCOUNT_ID}"):
        Account().configure({"region": REGION, "allowedAccountIds": '["111111111111"]'})


def test_without_an_emulated_aws_nothing_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with pytest.raises(InvalidInput, match="make up"):
        Account().configure({"region": REGION})


def test_an_unknown_provider_setting_is_refused() -> None:
    with pytest.raises(InvalidInput, match="aws:regoin"):
        Account().configure({"regoin": REGION})
