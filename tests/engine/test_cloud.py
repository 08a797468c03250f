"""The emulated AWS: its life as a process, its IAM, and what was added to moto."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local.engine.cloud import ACCOUNT_ID, Cloud, CloudLostError
from local.processes import Process

REGION = "us-east-1"
ROLE = f"arn:aws:iam::{ACCOUNT_ID}:role/nodes"
ISSUER = f"oidc.eks.{REGION}.amazonaws.com/id/A"


def refusal(call: Callable[[], Any]) -> str:
    """The code with which AWS refuses a call that it must refuse."""
    with pytest.raises(ClientError) as refused:
        call()
    return refused.value.response["Error"]["Code"]


def test_a_later_process_finds_it_again_and_a_dead_one_is_reported(tmp_path: Path) -> None:
    started = Cloud.start(tmp_path, REGION, die_with_parent=True)
    assert Cloud.load(tmp_path) == started
    assert Cloud.start(tmp_path, REGION) == started, "a second start returns the first"

    process = Process.load("aws", tmp_path)
    assert process is not None
    process.signal(signal.SIGKILL)
    while process.running:
        time.sleep(0.01)
    with pytest.raises(CloudLostError, match="make down"):
        Cloud.load(tmp_path)
    with pytest.raises(CloudLostError):
        Cloud.start(tmp_path, REGION)
    started.stop()
    with Cloud.start(tmp_path, REGION, die_with_parent=True) as fresh:
        assert fresh.client("s3").list_buckets()["Buckets"] == []
    assert Process.load("aws", tmp_path) is None


class Eks:
    """A cluster in a network of its own, by plain boto3."""

    def __init__(self, cloud: Cloud, name: str) -> None:
        self.name = name
        self.api, self.ec2 = cloud.client("eks"), cloud.client("ec2")
        self.vpc = self.ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        self.subnets = [self._subnet(number, zone) for number, zone in enumerate("ab")]
        self.api.create_cluster(
            name=name,
            roleArn=ROLE,
            version="1.34",
            resourcesVpcConfig={"subnetIds": self.subnets, "endpointPrivateAccess": True},
            accessConfig={"authenticationMode": "API"},
            upgradePolicy={"supportType": "STANDARD"},
        )

    def _subnet(self, number: int, zone: str) -> str:
        wanted = {"CidrBlock": f"10.0.{number}.0/24", "AvailabilityZone": f"{REGION}{zone}"}
        return self.ec2.create_subnet(VpcId=self.vpc, **wanted)["Subnet"]["SubnetId"]

    def describe(self) -> dict[str, Any]:
        return self.api.describe_cluster(name=self.name)["cluster"]

    def create_nodes(self, desired: int) -> dict[str, str]:
        group = {"clusterName": self.name, "nodegroupName": "nodes"}
        scaling = {"minSize": 0, "desiredSize": desired, "maxSize": 3}
        self.api.create_nodegroup(**group, subnets=self.subnets, nodeRole=ROLE, scalingConfig=scaling)
        return group


def test_a_cluster_says_how_it_was_configured(cloud: Cloud) -> None:
    eks = Eks(cloud, "configured")
    cluster = eks.describe()
    assert cluster["accessConfig"]["authenticationMode"] == "API"
    assert cluster["upgradePolicy"] == {"supportType": "STANDARD"}
    network = cluster["resourcesVpcConfig"]
    assert (network["endpointPrivateAccess"], network["publicAccessCidrs"]) == (True, ["0.0.0.0/0"])
    groups = eks.ec2.describe_security_groups(GroupIds=[network["clusterSecurityGroupId"]])["SecurityGroups"]
    assert groups[0]["VpcId"] == eks.vpc

    eks.api.update_cluster_config(name=eks.name, resourcesVpcConfig={"publicAccessCidrs": ["192.0.2.0/24"]})
    assert eks.describe()["resourcesVpcConfig"]["publicAccessCidrs"] == ["192.0.2.0/24"]
    assert eks.describe()["resourcesVpcConfig"]["subnetIds"] == eks.subnets, "what is not named stays"


def test_two_clusters_have_two_issuers(cloud: Cloud) -> None:
    issuers = {Eks(cloud, name).describe()["identity"]["oidc"]["issuer"] for name in ("one", "two")}
    assert len(issuers) == 2


def test_a_cluster_goes_up_one_minor_version_at_a_time(cloud: Cloud) -> None:
    eks = Eks(cloud, "versions")
    update = eks.api.update_cluster_version
    assert refusal(lambda: update(name=eks.name, version="1.36")) == "InvalidParameterException"
    update(name=eks.name, version="1.35")
    assert eks.describe()["version"] == "1.35"


def test_a_cluster_in_one_zone_is_refused(cloud: Cloud) -> None:
    eks = Eks(cloud, "zones")
    network = {"subnetIds": eks.subnets[:1]}
    create = eks.api.create_cluster
    code = refusal(lambda: create(name="one-zone", roleArn=ROLE, resourcesVpcConfig=network))
    assert code == "InvalidParameterException"


def test_a_node_group_is_a_real_auto_scaling_group(cloud: Cloud) -> None:
    eks, autoscaling = Eks(cloud, "scaling"), cloud.client("autoscaling")
    group = eks.create_nodes(desired=2)
    name = eks.api.describe_nodegroup(**group)["nodegroup"]["resources"]["autoScalingGroups"][0]["name"]

    def instances() -> int:
        groups = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
        return len(groups[0]["Instances"])

    assert instances() == 2
    eks.api.update_nodegroup_config(**group, scalingConfig={"desiredSize": 0})
    assert instances() == 0
    assert ROLE in eks.api.list_access_entries(clusterName=eks.name)["accessEntries"], "EKS lets its nodes in itself"
    eks.api.delete_nodegroup(**group)
    assert not autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]


def test_a_teardown_in_the_wrong_order_is_refused(cloud: Cloud) -> None:
    eks = Eks(cloud, "teardown")
    group = eks.create_nodes(desired=2)
    security_group = eks.describe()["resourcesVpcConfig"]["clusterSecurityGroupId"]

    assert refusal(lambda: eks.api.delete_cluster(name=eks.name)) == "ResourceInUseException"
    assert refusal(lambda: eks.ec2.delete_subnet(SubnetId=eks.subnets[0])) == "DependencyViolation"
    assert refusal(lambda: eks.ec2.delete_security_group(GroupId=security_group)) == "DependencyViolation"
    eks.api.delete_nodegroup(**group)
    for subnet in eks.subnets:
        eks.ec2.delete_subnet(SubnetId=subnet)
    assert refusal(lambda: eks.ec2.delete_vpc(VpcId=eks.vpc)) == "DependencyViolation", "the cluster's group is in it"
    eks.api.delete_cluster(name=eks.name)
    eks.ec2.delete_vpc(VpcId=eks.vpc)


def test_a_gateway_endpoint_routes_for_the_tables_it_has_now_and_can_go(cloud: Cloud) -> None:
    ec2 = cloud.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    first, second = (ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"] for _ in range(2))
    service = f"com.amazonaws.{REGION}.s3"
    wanted = {"VpcId": vpc, "ServiceName": service, "VpcEndpointType": "Gateway", "RouteTableIds": [first]}
    endpoint = ec2.create_vpc_endpoint(**wanted)["VpcEndpoint"]["VpcEndpointId"]
    ec2.modify_vpc_endpoint(VpcEndpointId=endpoint, AddRouteTableIds=[second], RemoveRouteTableIds=[first])
    through = {
        table["RouteTableId"]
        for table in ec2.describe_route_tables(RouteTableIds=[first, second])["RouteTables"]
        if any(route.get("GatewayId") == endpoint for route in table["Routes"])
    }
    assert through == {second}
    ec2.delete_vpc_endpoints(VpcEndpointIds=[endpoint])
    for table in (first, second):
        ec2.delete_route_table(RouteTableId=table)
    ec2.delete_vpc(VpcId=vpc)


def test_add_ons_have_a_life_of_their_own(cloud: Cloud) -> None:
    eks = Eks(cloud, "addons")
    addon = {"clusterName": eks.name, "addonName": "vpc-cni"}
    pinned = addon | {"addonVersion": "v1.20.4-eksbuild.1"}

    assert refusal(lambda: eks.api.create_addon(**addon, addonVersion="1.20")) == "InvalidParameterException"
    assert refusal(lambda: eks.api.create_addon(**pinned, configurationValues="{")) == "InvalidParameterException"
    eks.api.create_addon(**pinned)
    assert refusal(lambda: eks.api.create_addon(**pinned)) == "ResourceInUseException"
    eks.api.update_addon(**addon, configurationValues='{"enableNetworkPolicy": "true"}')
    assert pinned.items() <= eks.api.describe_addon(**addon)["addon"].items(), "what is not named stays"
    eks.api.delete_addon(**addon)
    assert eks.api.list_addons(clusterName=eks.name)["addons"] == []
    assert refusal(lambda: eks.api.describe_addon(**addon)) == "ResourceNotFoundException"


def test_access_entries_carry_policies(cloud: Cloud) -> None:
    eks = Eks(cloud, "access")
    entry = {"clusterName": eks.name, "principalArn": f"arn:aws:iam::{ACCOUNT_ID}:role/team/admin"}
    view = "arn:aws:eks::aws:cluster-access-policy/AmazonEKSViewPolicy"
    eks.api.create_access_entry(**entry)
    assert refusal(lambda: eks.api.create_access_entry(**entry)) == "ResourceInUseException"
    eks.api.associate_access_policy(**entry, policyArn=view, accessScope={"type": "namespace", "namespaces": ["a"]})
    associated = eks.api.list_associated_access_policies(**entry)["associatedAccessPolicies"]
    assert [policy["policyArn"] for policy in associated] == [view]
    eks.api.disassociate_access_policy(**entry, policyArn=view)
    eks.api.delete_access_entry(**entry)
    assert eks.api.list_access_entries(clusterName=eks.name)["accessEntries"] == []


def test_a_bucket_policy_denies_only_where_its_condition_holds(cloud: Cloud) -> None:
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="catalog")
    everything = {"Effect": "Deny", "Principal": "*", "Resource": "arn:aws:s3:::catalog/*"}
    statements = [
        everything | {"Action": "s3:*", "Condition": {"Bool": {"aws:SecureTransport": "false"}}},
        everything | {"Action": "s3:PutObject", "Condition": {"Null": {"s3:if-none-match": "true"}}},
        everything | {"Action": "s3:DeleteObject*"},
    ]
    s3.put_bucket_policy(Bucket="catalog", Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
    key = {"Bucket": "catalog", "Key": "v1/adapter"}

    assert refusal(lambda: s3.put_object(**key, Body=b"one")) in ("403", "AccessDenied")
    s3.put_object(**key, Body=b"one", IfNoneMatch="*")
    assert refusal(lambda: s3.put_object(**key, Body=b"two", IfNoneMatch="*")) == "PreconditionFailed"
    assert refusal(lambda: s3.delete_object(**key)) in ("403", "AccessDenied")
    assert s3.get_object(**key)["Body"].read() == b"one"


def test_enforced_iam_keeps_a_role_to_its_prefix(cloud: Cloud) -> None:
    s3, iam = cloud.client("s3"), cloud.client("iam")
    s3.create_bucket(Bucket="models")
    for prefix in ("allowed", "forbidden"):
        s3.put_object(Bucket="models", Key=f"{prefix}/file", Body=b"x")
    trust = {"Effect": "Allow", "Principal": {"Federated": ISSUER}, "Action": "sts:AssumeRoleWithWebIdentity"}
    role = iam.create_role(RoleName="reader", AssumeRolePolicyDocument=json.dumps(_document(trust)))["Role"]
    read = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::models/allowed/*"}
    iam.put_role_policy(RoleName="reader", PolicyName="read", PolicyDocument=json.dumps(_document(read)))

    cloud.enforce_iam()
    try:
        assert s3.get_object(Bucket="models", Key="forbidden/file"), "the administrator may do everything"
        keys = cloud.client("sts").assume_role_with_web_identity(
            RoleArn=role["Arn"], RoleSessionName="pod", WebIdentityToken="token"
        )["Credentials"]
        pod = cloud.client(
            "s3",
            aws_access_key_id=keys["AccessKeyId"],
            aws_secret_access_key=keys["SecretAccessKey"],
            aws_session_token=keys["SessionToken"],
        )
        assert pod.get_object(Bucket="models", Key="allowed/file")["Body"].read() == b"x"
        assert refusal(lambda: pod.get_object(Bucket="models", Key="forbidden/file")) == "AccessDenied"
        assert refusal(lambda: pod.put_object(Bucket="models", Key="allowed/new", Body=b"x")) == "AccessDenied"
    finally:
        cloud.enforce_iam(False)


def test_enforced_iam_takes_an_accounts_root_for_all_of_it_that_may_assume_the_role(cloud: Cloud) -> None:
    iam = cloud.client("iam")
    roles: list[str] = []
    for account in (ACCOUNT_ID, "111111111111"):
        trust = {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{account}:root"}, "Action": "sts:AssumeRole"}
        document = json.dumps(_document(trust))
        roles.append(iam.create_role(RoleName=f"of-{account}", AssumeRolePolicyDocument=document)["Role"]["Arn"])
    iam.create_user(UserName="nobody")
    key = iam.create_access_key(UserName="nobody")["AccessKey"]
    nobody = cloud.client("sts", aws_access_key_id=key["AccessKeyId"], aws_secret_access_key=key["SecretAccessKey"])
    administrator, (ours, theirs) = cloud.client("sts"), roles
    cloud.enforce_iam()
    try:
        assert administrator.assume_role(RoleArn=ours, RoleSessionName="ci")["AssumedRoleUser"]
        assert refusal(lambda: administrator.assume_role(RoleArn=theirs, RoleSessionName="ci")) == "AccessDenied"
        assert refusal(lambda: nobody.assume_role(RoleArn=ours, RoleSessionName="ci")) == "AccessDenied"
    finally:
        cloud.enforce_iam(False)


def _document(statement: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": [statement]}
