"""The aws and eks plugins under the real engine: one small program from its creation to its destruction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.nat import READY
from local.engine.cloud import ACCOUNT_ID, Cloud
from local.stand_ins.eks import check
from local.stand_ins.provider import InvalidInput, Properties
from tests.aws_objects import inventory
from tests.aws_types import EKS_COMPONENT
from tests.engine.cli import Refused
from tests.engine.throwaway import Throwaway
from tests.stack_values import CHECKOUT

REGION = "us-east-1"
KUBECONFIG = {"apiVersion": "v1", "kind": "Config", "clusters": []}
PROGRAM = """
import json

import pulumi
import pulumi_aws as aws
import pulumi_eks as eks

config = pulumi.Config()
vpc = aws.ec2.Vpc("vpc", cidr_block="10.0.0.0/16", tags={"Name": config.get("title") or "first"})
zones = [aws.get_region().region + letter for letter in "ab"]
subnets = [
    aws.ec2.Subnet(f"subnet-{i}", vpc_id=vpc.id, cidr_block=f"10.0.{i}.0/24", availability_zone=zones[i])
    for i in range(2)
]
trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
role = aws.iam.Role("role", assume_role_policy=json.dumps({"Version": "2012-10-17", "Statement": [trust]}))
template = aws.ec2.LaunchTemplate("template", user_data=config.get("userData") or "b25l")
admin = eks.AccessEntryArgs(
    principal_arn=role.arn,
    access_policies={
        "view": eks.AccessPolicyAssociationArgs(
            policy_arn="arn:aws:eks::aws:cluster-access-policy/AmazonEKSViewPolicy", access_scope={"type": "cluster"}
        )
    },
)
cluster = eks.Cluster(
    "cluster",
    version="1.35",
    vpc_id=vpc.id,
    private_subnet_ids=[subnet.id for subnet in subnets],
    authentication_mode=eks.AuthenticationMode.API,
    access_entries={"admin": admin},
    endpoint_private_access=True,
    skip_default_node_group=True,
    skip_default_security_groups=True,
    create_oidc_provider=False,
    upgrade_policy={"support_type": "STANDARD"},
    vpc_cni_options=eks.VpcCniOptionsArgs(
        addon_version="v1.21.1-eksbuild.3", enable_network_policy=True, enable_prefix_delegation=True
    ),
    kube_proxy_addon_options=eks.KubeProxyAddonOptionsArgs(version="v1.35.0-eksbuild.2"),
)
nodes = aws.eks.NodeGroup(
    "nodes",
    cluster_name=cluster.eks_cluster.name,
    node_role_arn=role.arn,
    subnet_ids=[subnet.id for subnet in subnets],
    scaling_config={"min_size": 0, "desired_size": 0, "max_size": 2},
    launch_template={"id": template.id, "version": template.latest_version.apply(str)},
    opts=pulumi.ResourceOptions(ignore_changes=["scalingConfig.desiredSize"]),
)
aws.autoscaling.Tag(
    "tag",
    autoscaling_group_name=nodes.resources[0].autoscaling_groups[0].name,
    tag={"key": "k8s.io/cluster-autoscaler/enabled", "value": "true", "propagate_at_launch": False},
)
balancer = aws.lb.LoadBalancer(
    "way-in",
    internal=True,
    load_balancer_type="network",
    subnets=[subnet.id for subnet in subnets],
    security_groups=[cluster.cluster_security_group_id],
)
targets = aws.lb.TargetGroup("way-in", port=30443, protocol="TCP", target_type="instance", vpc_id=vpc.id)
aws.lb.Listener(
    "way-in",
    load_balancer_arn=balancer.arn,
    port=443,
    protocol="TCP",
    default_actions=[{"type": "forward", "target_group_arn": targets.arn}],
)
aws.autoscaling.Attachment(
    "way-in",
    autoscaling_group_name=nodes.resources[0].autoscaling_groups[0].name,
    lb_target_group_arn=targets.arn,
)
bucket = aws.s3.Bucket(config.get("bucket") or "bucket", force_destroy=True)
aws.s3.BucketPublicAccessBlock("private", bucket=bucket.id, block_public_acls=True, block_public_policy=True)
pulumi.export("account", aws.get_caller_identity().account_id)
pulumi.export("bucket", bucket.id)
pulumi.export("cluster", cluster.eks_cluster.name)
pulumi.export("core", cluster.core.cluster.name)
pulumi.export("issuer", cluster.oidc_issuer)
pulumi.export("kubeconfig", cluster.kubeconfig_json)
pulumi.export("nodes", nodes.node_group_name)
pulumi.export("security_group", cluster.cluster_security_group_id)
pulumi.export("vpc", vpc.id)
"""
CREATED = 1 + 13 + sum(EKS_COMPONENT.values())
"""The stack, what the program makes itself, and the component."""


@pytest.fixture(autouse=True)
def environment(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(KUBECONFIG))
    for name, value in (cloud.environment | {"LORASERVE_KUBECONFIG": str(kubeconfig)}).items():
        monkeypatch.setenv(name, value)


def test_a_program_is_created_changed_refreshed_and_destroyed(cloud: Cloud, tmp_path: Path) -> None:
    before = inventory(cloud.client)
    project = Throwaway(tmp_path, PROGRAM, {"aws:region": {"value": REGION}})
    assert project.up().counts == {"create": CREATED}
    assert project.up().counts == {"same": CREATED}, "nothing changed"
    assert project.refresh().counts == {"same": CREATED}, "nothing drifted"

    outputs = project.outputs()
    assert outputs["account"] == ACCOUNT_ID
    assert outputs["security_group"].startswith("sg-")
    assert outputs["core"] == outputs["cluster"]
    assert outputs["issuer"].startswith(f"oidc.eks.{REGION}.amazonaws.com/id/")
    network_rules = {"env": {"ENABLE_PREFIX_DELEGATION": "true"}, "enableNetworkPolicy": "true"}
    cni = cloud.client("eks").describe_addon(clusterName=outputs["cluster"], addonName="vpc-cni")["addon"]
    assert json.loads(cni["configurationValues"]) == network_rules
    assert json.loads(outputs["kubeconfig"]) == KUBECONFIG
    assert registered(project, parent="eks:index:Cluster") == EKS_COMPONENT

    project.configure(userData="dHdv", title="second", bucket="other")
    changed = {"update": 3, "create": 1, "replace": 1, "delete": 1}
    assert project.up().counts == changed | {"same": CREATED - 5}, (
        "template, nodes and VPC; another bucket and its setting"
    )

    nodes = {"clusterName": outputs["cluster"], "nodegroupName": outputs["nodes"]}
    cloud.client("eks").update_nodegroup_config(**nodes, scalingConfig={"desiredSize": 1})
    cloud.client("ec2").create_tags(Resources=[outputs["vpc"]], Tags=[{"Key": "Name", "Value": "by hand"}])
    cloud.client("s3").delete_public_access_block(Bucket=project.outputs()["bucket"])
    project.refresh()
    assert project.up().counts == {"same": CREATED - 2, "update": 1, "create": 1}, (
        "the autoscaler's count is left alone"
    )
    assert cloud.client("eks").describe_nodegroup(**nodes)["nodegroup"]["scalingConfig"]["desiredSize"] == 1

    project.destroy()
    assert inventory(cloud.client) == before, "nothing is left behind"


NODES_BEHIND_NAT = """
import json

import pulumi
import pulumi_aws as aws

from infra import nat, standing
from infra.node_groups import never_worked

nat.LIMIT_S = 1
config = pulumi.Config()
vpc = aws.ec2.Vpc("vpc", cidr_block="10.0.0.0/16")
zones = [aws.get_region().region + letter for letter in "ab"]
subnets = [
    aws.ec2.Subnet(f"subnet-{i}", vpc_id=vpc.id, cidr_block=f"10.0.{i}.0/24", availability_zone=zones[i])
    for i in range(2)
]
table = aws.ec2.RouteTable("table", vpc_id=vpc.id)
for i, subnet in enumerate(subnets):
    aws.ec2.RouteTableAssociation(f"table-{i}", route_table_id=table.id, subnet_id=subnet.id)
routes = []
if says := config.get("says"):
    way_out = aws.ec2.Instance(
        "way-out",
        ami=aws.ssm.get_parameter(name=nat.image_parameter()).value,
        instance_type="t4g.nano",
        subnet_id=subnets[0].id,
        user_data=says,
        user_data_replace_on_change=True,
    )
    routes = [
        aws.ec2.Route(
            "out",
            route_table_id=table.id,
            destination_cidr_block="0.0.0.0/0",
            network_interface_id=way_out.primary_network_interface_id,
            opts=pulumi.ResourceOptions(hooks=nat.proof("nat", aws.get_region().region)),
        )
    ]
trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
role = aws.iam.Role("role", assume_role_policy=json.dumps({"Version": "2012-10-17", "Statement": [trust]}))
cluster = aws.eks.Cluster(
    "cluster", name="cluster", role_arn=role.arn, vpc_config={"subnet_ids": [subnet.id for subnet in subnets]}
)
before = standing.look("cluster")
nodes = aws.eks.NodeGroup(
    "nodes",
    cluster_name=cluster.name,
    node_role_arn=role.arn,
    subnet_ids=[subnet.id for subnet in subnets],
    scaling_config={"min_size": 1, "desired_size": 1, "max_size": 2},
    opts=pulumi.ResourceOptions(
        depends_on=routes, replace_on_changes=never_worked(before.group("nodes") if before else None)
    ),
)
aws.eks.Addon(
    "dns",
    cluster_name=cluster.name,
    addon_name="coredns",  # without nodes it never becomes healthy
    addon_version="v1.13.2-eksbuild.1",
    opts=pulumi.ResourceOptions(
        depends_on=[nodes] if config.get_bool("patient") else [],
        replace_on_changes=["#initerror"],
        delete_before_replace=True,
    ),
)
"""


def test_nodes_wait_for_a_way_out_that_works_and_what_never_worked_is_made_anew(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    before = inventory(cloud.client)
    project = Throwaway(tmp_path, NODES_BEHIND_NAT, {"aws:region": {"value": REGION}})
    with pytest.raises(Refused, match="NodeCreationFailure: Instances failed to join"):
        project.up()
    (failed,) = node_groups(cloud)

    project.configure(says="nothing of a way out")
    with pytest.raises(Refused, match=r"let no request out(.|\n)*console ends with:\s+login:"):
        project.up()
    assert node_groups(cloud) == [failed], "nodes wait for the route, and the route for its proof"

    project.configure(says=f"echo {READY}", patient="true")
    changes = project.up()
    assert changes.operations["aws:eks/nodeGroup:NodeGroup nodes"] == "replace"
    assert changes.operations["aws:eks/addon:Addon dns"] == "replace"
    assert changes.operations["aws:ec2/instance:Instance way-out"] == "replace"
    (working,) = node_groups(cloud)
    assert working != failed
    assert project.up().touched == {}

    project.destroy()
    assert inventory(cloud.client) == before


def node_groups(cloud: Cloud) -> list[str]:
    return cloud.client("eks").list_nodegroups(clusterName="cluster")["nodegroups"]


def registered(project: Throwaway, parent: str) -> dict[str, int]:
    """How many resources of each type stand under a component of the given type, itself included."""
    counts: dict[str, int] = {}
    for resource in json.loads(project.state())["checkpoint"]["latest"]["resources"]:
        if parent in resource["urn"].split("::")[2].split("$"):
            counts[resource["type"]] = counts.get(resource["type"], 0) + 1
    return counts


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"instanceRoles": ["role"]}, "instanceRoles: .*accessEntries"),
        ({"roleMappings": []}, "roleMappings: .*accessEntries"),
        ({"authenticationMode": "CONFIG_MAP", "accessEntries": {}}, "accessEntries: need authenticationMode"),
        ({"skipDefaultNodeGroup": False}, "skipDefaultNodeGroup"),
        ({"privateSubnetIds": []}, "privateSubnetIds"),
        ({"createOidcProvider": True}, "createOidcProvider: .*set it to false"),
        ({"endpointPrivateAccess": False, "endpointPublicAccess": False}, "endpointPrivateAccess"),
        ({"vpcCniOptions": {"enableNetworkPolicies": True}}, "vpcCniOptions.enableNetworkPolicies"),
        ({"vpcCniOptions": {"enableNetworkPolicy": True}}, "vpcCniOptions.addonVersion: is needed"),
        ({"accessEntries": {"admin": {"principalArn": "a", "kubernetesGroups": []}}}, "admin.kubernetesGroups"),
        ({"autoMode": {"enabled": True}}, "autoMode"),
    ],
)
def test_a_cluster_that_cannot_work_is_refused(change: Properties, complaint: str) -> None:
    inputs = {
        "authenticationMode": "API",
        "createOidcProvider": False,
        "kubeProxyAddonOptions": {"version": "v1.35.0-eksbuild.2"},
        "privateSubnetIds": ["subnet-1", "subnet-2"],
        "skipDefaultNodeGroup": True,
        "skipDefaultSecurityGroups": True,
        "vpcCniOptions": {"addonVersion": "v1.21.1-eksbuild.3"},
    }
    check(inputs)
    with pytest.raises(InvalidInput, match=complaint):
        check(inputs | change)
