"""One object of each AWS type, made in an emulated AWS as the real plugin would, and a list of all that is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from loraserve.operator.stack.aws_commands import Connect

REGION = "eu-central-1"
ACCOUNT = "123456789012"
TAGS = {"Name": "ours", "loraserve/stack": "dev"}
TRUST = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "*", "Resource": "*"}]})
ISSUER = "oidc.eks.eu-central-1.amazonaws.com/id/A1"

Json = dict[str, Any]
Made = tuple[str, Json]
"""The id of something made in AWS, and the inputs that the engine recorded of it."""


def tag_list(tags: Json) -> list[Json]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tagged(kind: str, tags: Json = TAGS) -> list[Json]:
    return [{"ResourceType": kind, "Tags": tag_list(tags)}]


def make_vpc(aws: Connect, cidr: str = "10.0.0.0/16", tags: Json = TAGS) -> Made:
    vpc = aws("ec2").create_vpc(CidrBlock=cidr, TagSpecifications=tagged("vpc", tags))["Vpc"]
    return vpc["VpcId"], {"cidrBlock": cidr, "enableDnsSupport": True, "tags": tags, "tagsAll": tags}


def make_subnet(aws: Connect) -> Made:
    vpc, _ = make_vpc(aws)
    given = {"VpcId": vpc, "CidrBlock": "10.0.1.0/24"}
    made = aws("ec2").create_subnet(**given, TagSpecifications=tagged("subnet"))["Subnet"]
    return made["SubnetId"], {"vpcId": vpc, "cidrBlock": "10.0.1.0/24", "tags": TAGS}


def make_internet_gateway(aws: Connect) -> Made:
    ec2, (vpc, _) = aws("ec2"), make_vpc(aws)
    gateway = ec2.create_internet_gateway(TagSpecifications=tagged("internet-gateway"))["InternetGateway"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway["InternetGatewayId"], VpcId=vpc)
    return gateway["InternetGatewayId"], {"vpcId": vpc, "tags": TAGS}


def make_address(aws: Connect) -> Made:
    made = aws("ec2").allocate_address(Domain="vpc", TagSpecifications=tagged("elastic-ip"))
    return made["AllocationId"], {"domain": "vpc", "tags": TAGS}


def make_nat_gateway(aws: Connect) -> Made:
    (subnet, _), (address, _) = make_subnet(aws), make_address(aws)
    ec2 = aws("ec2")
    made = ec2.create_nat_gateway(SubnetId=subnet, AllocationId=address, TagSpecifications=tagged("natgateway"))
    return made["NatGateway"]["NatGatewayId"], {"subnetId": subnet, "allocationId": address, "tags": TAGS}


def make_route_table(aws: Connect) -> Made:
    vpc, _ = make_vpc(aws)
    made = aws("ec2").create_route_table(VpcId=vpc, TagSpecifications=tagged("route-table"))
    return made["RouteTable"]["RouteTableId"], {"vpcId": vpc, "tags": TAGS}


def make_route(aws: Connect) -> Made:
    gateway, inside = make_internet_gateway(aws)
    ec2 = aws("ec2")
    table = ec2.create_route_table(VpcId=inside["vpcId"])["RouteTable"]["RouteTableId"]
    ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    inputs = {"routeTableId": table, "destinationCidrBlock": "0.0.0.0/0", "gatewayId": gateway}
    return f"r-{table}1080289494", inputs


def make_association(aws: Connect) -> Made:
    ec2, (subnet, inside) = aws("ec2"), make_subnet(aws)
    table = ec2.create_route_table(VpcId=inside["vpcId"])["RouteTable"]["RouteTableId"]
    made = ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)["AssociationId"]
    return made, {"routeTableId": table, "subnetId": subnet}


def make_endpoint(aws: Connect) -> Made:
    vpc, _ = make_vpc(aws)
    service = f"com.amazonaws.{REGION}.s3"
    given = {"VpcId": vpc, "ServiceName": service, "VpcEndpointType": "Gateway"}
    made = aws("ec2").create_vpc_endpoint(**given, TagSpecifications=tagged("vpc-endpoint"))["VpcEndpoint"]
    return made["VpcEndpointId"], {"vpcId": vpc, "serviceName": service, "tags": TAGS}


def make_security_group(aws: Connect) -> Made:
    vpc, _ = make_vpc(aws)
    given = {"GroupName": "nat-1f", "Description": "NAT", "VpcId": vpc}
    made = aws("ec2").create_security_group(**given, TagSpecifications=tagged("security-group"))
    return made["GroupId"], {"name": "nat-1f", "vpcId": vpc, "tags": TAGS}


def make_rule(aws: Connect) -> Made:
    group, _ = make_security_group(aws)
    permission = {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": [{"CidrIp": "10.0.0.0/16"}]}
    made = aws("ec2").authorize_security_group_ingress(
        GroupId=group, IpPermissions=[permission], TagSpecifications=tagged("security-group-rule")
    )
    ports = {"ipProtocol": "tcp", "fromPort": 443, "toPort": 443}
    rule = made["SecurityGroupRules"][0]["SecurityGroupRuleId"]
    return rule, {"securityGroupId": group, "cidrIpv4": "10.0.0.0/16", **ports}


def make_rule_for_everything(aws: Connect) -> Made:
    group, _ = make_security_group(aws)
    permission = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "10.9.0.0/16"}]}
    made = aws("ec2").authorize_security_group_egress(
        GroupId=group, IpPermissions=[permission], TagSpecifications=tagged("security-group-rule")
    )
    rule = made["SecurityGroupRules"][0]["SecurityGroupRuleId"]
    return rule, {"securityGroupId": group, "cidrIpv4": "10.9.0.0/16", "ipProtocol": "-1"}


def make_launch_template(aws: Connect) -> Made:
    given = {"LaunchTemplateName": "gpu-1f", "LaunchTemplateData": {"InstanceType": "g6.xlarge"}}
    made = aws("ec2").create_launch_template(**given, TagSpecifications=tagged("launch-template"))
    return made["LaunchTemplate"]["LaunchTemplateId"], {"name": "gpu-1f", "userData": "eA=="}


def make_instance(aws: Connect) -> Made:
    ec2, (subnet, _) = aws("ec2"), make_subnet(aws)
    image = ec2.register_image(Name="al2023")["ImageId"]
    given = {"ImageId": image, "InstanceType": "t4g.nano", "SubnetId": subnet, "MinCount": 1, "MaxCount": 1}
    made = ec2.run_instances(**given, TagSpecifications=tagged("instance"))["Instances"][0]
    return made["InstanceId"], {"ami": image, "instanceType": "t4g.nano", "subnetId": subnet, "tags": TAGS}


def make_volume(aws: Connect) -> Made:
    given = {"Size": 1, "VolumeType": "gp3", "AvailabilityZone": f"{REGION}a"}
    made = aws("ec2").create_volume(**given, TagSpecifications=tagged("volume"))["VolumeId"]
    return made, {"size": 1, "type": "gp3", "availabilityZone": f"{REGION}a", "tags": TAGS}


def make_role(aws: Connect) -> Made:
    aws("iam").create_role(RoleName="loraserve-dev-node-1f", AssumeRolePolicyDocument=TRUST, Tags=tag_list(TAGS))
    return "loraserve-dev-node-1f", {"name": "loraserve-dev-node-1f", "assumeRolePolicy": TRUST, "tagsAll": TAGS}


def make_role_policy(aws: Connect) -> Made:
    role, _ = make_role(aws)
    aws("iam").put_role_policy(RoleName=role, PolicyName="read-1f", PolicyDocument=TRUST)
    return f"{role}:read-1f", {"role": role, "name": "read-1f", "policy": TRUST}


def make_oidc_provider(aws: Connect) -> Made:
    given = {"Url": f"https://{ISSUER}", "ClientIDList": ["sts.amazonaws.com"], "Tags": tag_list(TAGS)}
    made = aws("iam").create_open_id_connect_provider(**given, ThumbprintList=[])
    return made["OpenIDConnectProviderArn"], {"url": f"https://{ISSUER}", "tagsAll": TAGS}


def make_bucket(aws: Connect) -> Made:
    """Not yet tagged: that is a second call."""
    here: Any = {"LocationConstraint": REGION}
    aws("s3").create_bucket(Bucket="adapters-1f", CreateBucketConfiguration=here)
    return "adapters-1f", {"bucket": "adapters-1f", "tagsAll": TAGS}


def make_repository(aws: Connect) -> Made:
    aws("ecr").create_repository(repositoryName="loraserve-1f", tags=tag_list(TAGS))
    return "loraserve-1f", {"name": "loraserve-1f", "forceDelete": True, "tagsAll": TAGS}


def make_log_group(aws: Connect) -> Made:
    aws("logs").create_log_group(logGroupName="/aws/eks/dev/cluster", tags=TAGS)
    return "/aws/eks/dev/cluster", {"name": "/aws/eks/dev/cluster", "retentionInDays": 30, "tagsAll": TAGS}


def make_cluster(aws: Connect) -> Made:
    inputs = {"name": "loraserve-dev", "roleArn": f"arn:aws:iam::{ACCOUNT}:role/control-plane"}
    aws("eks").create_cluster(**inputs, resourcesVpcConfig={"subnetIds": []}, tags=TAGS)
    return "loraserve-dev", inputs | {"tagsAll": TAGS}


def make_node_group(aws: Connect) -> Made:
    cluster, _ = make_cluster(aws)
    role = f"arn:aws:iam::{ACCOUNT}:role/node"
    given = {"clusterName": cluster, "nodegroupName": "gpu-vllm-nodes", "nodeRole": role}
    aws("eks").create_nodegroup(**given, subnets=[], tags=TAGS)
    return f"{cluster}:gpu-vllm-nodes", {"clusterName": cluster, "nodeGroupName": "gpu-vllm-nodes", "tagsAll": TAGS}


def make_balancer(aws: Connect) -> Made:
    subnet, inside = make_subnet(aws)
    given = {"Name": "gateway-1f", "Type": "network", "Scheme": "internal", "Subnets": [subnet]}
    made = aws("elbv2").create_load_balancer(**given, Tags=tag_list(TAGS))["LoadBalancers"][0]
    return made["LoadBalancerArn"], {"name": "gateway-1f", "subnets": [subnet], "vpcId": inside["vpcId"], "tags": TAGS}


def make_target_group(aws: Connect) -> Made:
    vpc, _ = make_vpc(aws)
    given = {"Name": "gateway-1f", "Protocol": "TLS", "Port": 30443, "VpcId": vpc}
    made = aws("elbv2").create_target_group(**given, Tags=tag_list(TAGS))["TargetGroups"][0]
    return made["TargetGroupArn"], {"name": "gateway-1f", "port": 30443, "vpcId": vpc, "tags": TAGS}


def make_listener(aws: Connect) -> Made:
    (balancer, _), (targets, _) = make_balancer(aws), make_target_group(aws)
    action = {"Type": "forward", "TargetGroupArn": targets}
    given = {"LoadBalancerArn": balancer, "Protocol": "TCP", "Port": 443, "DefaultActions": [action]}
    made = aws("elbv2").create_listener(**given, Tags=tag_list(TAGS))["Listeners"][0]
    return made["ListenerArn"], {"loadBalancerArn": balancer, "port": 443, "tags": TAGS}


MAKERS: dict[str, Callable[[Connect], Made]] = {
    "aws:ec2/vpc:Vpc": make_vpc,
    "aws:ec2/subnet:Subnet": make_subnet,
    "aws:ec2/internetGateway:InternetGateway": make_internet_gateway,
    "aws:ec2/eip:Eip": make_address,
    "aws:ec2/natGateway:NatGateway": make_nat_gateway,
    "aws:ec2/routeTable:RouteTable": make_route_table,
    "aws:ec2/route:Route": make_route,
    "aws:ec2/routeTableAssociation:RouteTableAssociation": make_association,
    "aws:ec2/vpcEndpoint:VpcEndpoint": make_endpoint,
    "aws:ec2/securityGroup:SecurityGroup": make_security_group,
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": make_rule,
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": make_rule_for_everything,
    "aws:ec2/launchTemplate:LaunchTemplate": make_launch_template,
    "aws:ec2/instance:Instance": make_instance,
    "aws:ebs/volume:Volume": make_volume,
    "aws:lb/loadBalancer:LoadBalancer": make_balancer,
    "aws:lb/targetGroup:TargetGroup": make_target_group,
    "aws:lb/listener:Listener": make_listener,
    "aws:iam/role:Role": make_role,
    "aws:iam/rolePolicy:RolePolicy": make_role_policy,
    "aws:iam/openIdConnectProvider:OpenIdConnectProvider": make_oidc_provider,
    "aws:s3/bucket:Bucket": make_bucket,
    "aws:ecr/repository:Repository": make_repository,
    "aws:cloudwatch/logGroup:LogGroup": make_log_group,
    "aws:eks/cluster:Cluster": make_cluster,
    "aws:eks/nodeGroup:NodeGroup": make_node_group,
}
VPC = "aws:ec2/vpc:Vpc"
GOES_ALONG = {VPC: ("sg-", "sgr-", "rtb-", "rtbassoc-"), "aws:ec2/securityGroup:SecurityGroup": ("sgr-",)}
GOES_ALONG |= {"aws:ec2/instance:Instance": ("eni-", "vol-"), "aws:ec2/natGateway:NatGateway": ("eni-",)}
"""Ids of what belongs to an object and goes with it."""


def inventory(aws: Connect) -> set[str]:
    """Everything in the account that a stack or a test may have made, directly or not."""
    ec2, iam, eks, elb = aws("ec2"), aws("iam"), aws("eks"), aws("elbv2")
    tables = ec2.describe_route_tables()["RouteTables"]
    roles, balancers = iam.list_roles()["Roles"], elb.describe_load_balancers()["LoadBalancers"]
    found = [
        *[vpc["VpcId"] for vpc in ec2.describe_vpcs()["Vpcs"]],
        *[subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]],
        *[gateway["InternetGatewayId"] for gateway in ec2.describe_internet_gateways()["InternetGateways"]],
        *[address["AllocationId"] for address in ec2.describe_addresses()["Addresses"]],
        *[gw["NatGatewayId"] for gw in ec2.describe_nat_gateways()["NatGateways"] if gw["State"] != "deleted"],
        *[table["RouteTableId"] for table in tables],
        *[f"r-{t['RouteTableId']}1080289494" for t in tables if "0.0.0.0/0" in str(t["Routes"])],
        *[link["RouteTableAssociationId"] for table in tables for link in table["Associations"]],
        *[end["VpcEndpointId"] for end in ec2.describe_vpc_endpoints()["VpcEndpoints"] if end["State"] != "deleted"],
        *[group["GroupId"] for group in ec2.describe_security_groups()["SecurityGroups"]],
        *[rule["SecurityGroupRuleId"] for rule in ec2.describe_security_group_rules()["SecurityGroupRules"]],
        *[template["LaunchTemplateId"] for template in ec2.describe_launch_templates()["LaunchTemplates"]],
        *[
            instance["InstanceId"]
            for reservation in ec2.describe_instances()["Reservations"]
            for instance in reservation["Instances"]
            if instance["State"]["Name"] != "terminated"
        ],
        *[role["RoleName"] for role in roles],
        *[
            f"{role['RoleName']}:{policy}"
            for role in roles
            for policy in iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]
        ],
        *[p["Arn"] for p in iam.list_open_id_connect_providers()["OpenIDConnectProviderList"]],
        *[bucket["Name"] for bucket in aws("s3").list_buckets()["Buckets"]],
        *[repository["repositoryName"] for repository in aws("ecr").describe_repositories()["repositories"]],
        *[group["logGroupName"] for group in aws("logs").describe_log_groups()["logGroups"]],
        *[balancer["LoadBalancerArn"] for balancer in balancers],
        *[group["TargetGroupArn"] for group in elb.describe_target_groups()["TargetGroups"]],
        *[
            listener["ListenerArn"]
            for balancer in balancers
            for listener in elb.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]
        ],
        *[
            group["AutoScalingGroupName"]
            for group in aws("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
        ],
        *[interface["NetworkInterfaceId"] for interface in ec2.describe_network_interfaces()["NetworkInterfaces"]],
        *[volume["VolumeId"] for volume in ec2.describe_volumes()["Volumes"]],
        *eks.list_clusters()["clusters"],
        *[
            f"{c}:{n}"
            for c in eks.list_clusters()["clusters"]
            for n in eks.list_nodegroups(clusterName=c)["nodegroups"]
        ],
    ]
    return set(found)
