"""Objects for the tests of the aws plugin, made by the handlers under test; and an example of every type."""

from __future__ import annotations

import json
from typing import Any

from local.stand_ins.aws.account import Account
from local.stand_ins.aws.plugin import TYPES
from local.stand_ins.aws.resource import AwsResource
from local.stand_ins.provider import Properties

REGION = "us-east-1"
ASSUMED_BY_EC2 = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
    }
)


def policy(action: str) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": action, "Resource": "*"}]})


class Handler:
    """A resource type as the engine would drive it, with its object's state."""

    def __init__(self, account: Account, token: str) -> None:
        self.kind: AwsResource = next(kind for kind in TYPES if kind.token == token)(account)
        self.id = ""
        self.inputs: Properties = {}
        self.outputs: Properties = {}

    def create(self, **inputs: Any) -> Handler:
        self.inputs = self.kind.check("thing", inputs, {}, b"")
        self.id, self.outputs = self.kind.create(self.inputs)
        return self

    def update(self, **inputs: Any) -> None:
        news = self.kind.check("thing", inputs, self.inputs, b"")
        assert not self.kind.diff(self.inputs, news).replaces, "the change must be possible in place"
        self.outputs = self.kind.update(self.id, self.inputs, news, self.outputs)
        self.inputs = news

    def drift(self) -> dict[str, Any]:
        """Inputs that AWS holds otherwise now."""
        found = self.kind.read(self.id, self.inputs, self.outputs)
        assert found is not None
        keys = self.kind.diff(self.inputs, found.inputs).changed
        return {key: found.inputs.get(key) for key in keys}

    def delete(self) -> None:
        self.kind.delete(self.id, self.inputs, self.outputs)

    @property
    def gone(self) -> bool:
        return self.kind.read(self.id, self.inputs, self.outputs) is None


class World:
    """What other objects need to exist: made once, by the handlers under test."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.vpc = self.make("aws:ec2/vpc:Vpc", cidrBlock="10.0.0.0/16").id
        self.subnets = [
            self.make(
                "aws:ec2/subnet:Subnet",
                vpcId=self.vpc,
                cidrBlock=f"10.0.{number}.0/24",
                availabilityZone=f"{REGION}{zone}",
            ).id
            for number, zone in enumerate("ab")
        ]
        self.gateway = self.make("aws:ec2/internetGateway:InternetGateway", vpcId=self.vpc).id
        self.tables = [self.make("aws:ec2/routeTable:RouteTable", vpcId=self.vpc).id for _ in range(2)]
        self.groups = [
            self.make("aws:ec2/securityGroup:SecurityGroup", vpcId=self.vpc, name=f"group-{number}").id
            for number in range(2)
        ]
        self.roles = [
            self.make("aws:iam/role:Role", name=f"role-{number}", assumeRolePolicy=ASSUMED_BY_EC2)
            for number in range(2)
        ]
        self.bucket = self.make("aws:s3/bucket:Bucket", bucket="world").id
        self.repository = self.make("aws:ecr/repository:Repository", name="world").id
        balancer = {"internal": True, "loadBalancerType": "application", "subnets": self.subnets}
        balancer["securityGroups"] = self.groups[:1]
        self.balancer = self.make("aws:lb/loadBalancer:LoadBalancer", **balancer, name="world").id
        self.targets = [
            self.make("aws:lb/targetGroup:TargetGroup", **self.target_group_inputs(), name=f"world-{number}").id
            for number in range(2)
        ]
        certificate = self.account.client("acm").request_certificate(DomainName="llm.example.com")
        self.certificate = certificate["CertificateArn"]
        self.template = self.make("aws:ec2/launchTemplate:LaunchTemplate", name="world").id
        self.cluster = self.make("aws:eks/cluster:Cluster", **self.cluster_inputs(), name="world").id
        group = self.make("aws:eks/nodeGroup:NodeGroup", **self.node_group_inputs(), nodeGroupName="world")
        self.scaling_group = group.outputs["resources"][0]["autoscalingGroups"][0]["name"]
        image = self.account.client("ec2").describe_images(Owners=["amazon"])["Images"][0]
        self.image = image["ImageId"]

    def make(self, token: str, **inputs: Any) -> Handler:
        return Handler(self.account, token).create(**inputs)

    def cluster_inputs(self) -> Properties:
        return {
            "roleArn": self.roles[0].outputs["arn"],
            "version": "1.34",
            "vpcConfig": {"subnetIds": self.subnets, "endpointPrivateAccess": True},
            "accessConfig": {"authenticationMode": "API"},
        }

    def target_group_inputs(self) -> Properties:
        return {"port": 30443, "protocol": "HTTPS", "targetType": "instance", "vpcId": self.vpc}

    def node_group_inputs(self) -> Properties:
        return {
            "clusterName": self.cluster,
            "nodeRoleArn": self.roles[1].outputs["arn"],
            "scalingConfig": {"minSize": 0, "desiredSize": 0, "maxSize": 2},
            "subnetIds": self.subnets,
        }


def in_place_changes(world: World) -> dict[str, tuple[Properties, Properties]]:
    """Per type: the inputs of a new object, and what an update in place then sets."""
    cluster, bucket = {"clusterName": world.cluster}, {"bucket": world.bucket}
    principal = {"principalArn": world.roles[0].outputs["arn"]}
    rule = {"securityGroupId": world.groups[0], "ipProtocol": "tcp", "fromPort": 443, "toPort": 443}
    disk = {"deviceName": "/dev/xvda", "ebs": {"volumeSize": 20, "volumeType": "gp3", "encrypted": "true"}}
    expire = {"rulePriority": 1, "action": {"type": "expire"}}
    expire["selection"] = {"tagStatus": "untagged", "countType": "imageCountMoreThan", "countNumber": 5}
    lifecycle = {"id": "tidy", "status": "Enabled", "filter": {"prefix": "a/"}}
    return {
        "aws:ec2/vpc:Vpc": ({"cidrBlock": "10.1.0.0/16"}, {"enableDnsHostnames": True, "tags": {"Name": "v"}}),
        "aws:ec2/subnet:Subnet": (
            {"vpcId": world.vpc, "cidrBlock": "10.0.9.0/24", "availabilityZone": f"{REGION}a"},
            {"mapPublicIpOnLaunch": True, "tags": {"kubernetes.io/role/elb": "1"}},
        ),
        "aws:ec2/internetGateway:InternetGateway": ({}, {"tags": {"a": "b"}}),
        "aws:ec2/eip:Eip": ({"domain": "vpc"}, {"tags": {"a": "b"}}),
        "aws:ec2/natGateway:NatGateway": (
            {"subnetId": world.subnets[0], "allocationId": world.make("aws:ec2/eip:Eip", domain="vpc").id},
            {"tags": {"a": "b"}},
        ),
        "aws:ec2/routeTable:RouteTable": ({"vpcId": world.vpc}, {"tags": {"a": "b"}}),
        "aws:ec2/route:Route": (
            {
                "routeTableId": world.tables[0],
                "destinationCidrBlock": "0.0.0.0/0",
                "gatewayId": world.gateway,
            },
            {},
        ),
        "aws:ec2/routeTableAssociation:RouteTableAssociation": (
            {"routeTableId": world.tables[0], "subnetId": world.subnets[0]},
            {},
        ),
        "aws:ec2/vpcEndpoint:VpcEndpoint": (
            {
                "vpcId": world.vpc,
                "serviceName": f"com.amazonaws.{REGION}.s3",
                "vpcEndpointType": "Gateway",
                "routeTableIds": world.tables[:1],
            },
            {"routeTableIds": world.tables[1:]},
        ),
        "aws:ec2/securityGroup:SecurityGroup": ({"vpcId": world.vpc}, {"tags": {"a": "b"}}),
        "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": (
            rule | {"cidrIpv4": "10.0.0.0/16"},
            {"tags": {"a": "b"}},
        ),
        "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": (
            rule | {"referencedSecurityGroupId": world.groups[1]},
            {},
        ),
        "aws:ec2/instance:Instance": (
            {
                "ami": world.image,
                "instanceType": "t4g.nano",
                "subnetId": world.subnets[0],
                "vpcSecurityGroupIds": world.groups[:1],
                "sourceDestCheck": False,
                "userData": "#!/bin/sh\n",
                "metadataOptions": {"httpTokens": "required"},
                "rootBlockDevice": {"volumeSize": 8, "volumeType": "gp3", "tags": {"a": "b"}},
            },
            {"sourceDestCheck": True, "vpcSecurityGroupIds": world.groups[1:], "tags": {"Name": "nat"}},
        ),
        "aws:ec2/launchTemplate:LaunchTemplate": (
            {
                "blockDeviceMappings": [disk],
                "metadataOptions": {"httpTokens": "required", "httpPutResponseHopLimit": 1},
                "tagSpecifications": [{"resourceType": "instance", "tags": {"on": "true"}}],
                "updateDefaultVersion": True,
            },
            {"blockDeviceMappings": [disk | {"ebs": disk["ebs"] | {"volumeSize": 30}}], "userData": "aGVsbG8="},
        ),
        "aws:ebs/volume:Volume": (
            {"availabilityZone": f"{REGION}a", "size": 1, "type": "gp3", "encrypted": True},
            {"tags": {"Name": "prometheus"}},
        ),
        "aws:iam/role:Role": (
            {"assumeRolePolicy": ASSUMED_BY_EC2},
            {
                "assumeRolePolicy": ASSUMED_BY_EC2.replace("ec2", "eks"),
                "description": "cluster",
                "tags": {"a": "b"},
            },
        ),
        "aws:iam/rolePolicy:RolePolicy": (
            {"role": world.roles[0].id, "policy": policy("s3:GetObject")},
            {"policy": policy("s3:ListBucket")},
        ),
        "aws:iam/rolePolicyAttachment:RolePolicyAttachment": (
            {"role": world.roles[0].id, "policyArn": "arn:aws:iam::aws:policy/AmazonEKSClusterPolicy"},
            {},
        ),
        "aws:iam/openIdConnectProvider:OpenIdConnectProvider": (
            {"url": "https://oidc.example.com/id/A", "clientIdLists": ["sts.amazonaws.com"]},
            {"tags": {"a": "b"}},
        ),
        "aws:s3/bucket:Bucket": ({"forceDestroy": True}, {"forceDestroy": False, "tags": {"a": "b"}}),
        "aws:s3/bucketVersioning:BucketVersioning": (bucket | {"versioningConfiguration": {"status": "Enabled"}}, {}),
        "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": (
            bucket | {"rules": [{"applyServerSideEncryptionByDefault": {"sseAlgorithm": "AES256"}}]},
            {"rules": [{"applyServerSideEncryptionByDefault": {"sseAlgorithm": "aws:kms"}, "bucketKeyEnabled": True}]},
        ),
        "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock": (
            bucket | {"blockPublicAcls": True, "blockPublicPolicy": False},
            {"blockPublicPolicy": True, "ignorePublicAcls": True, "restrictPublicBuckets": True},
        ),
        "aws:s3/bucketOwnershipControls:BucketOwnershipControls": (
            bucket | {"rule": {"objectOwnership": "BucketOwnerPreferred"}},
            {"rule": {"objectOwnership": "BucketOwnerEnforced"}},
        ),
        "aws:s3/bucketPolicy:BucketPolicy": (
            bucket | {"policy": policy("s3:GetObject")},
            {"policy": policy("s3:ListBucket")},
        ),
        "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration": (
            bucket | {"rules": [lifecycle | {"noncurrentVersionExpiration": {"noncurrentDays": 30}}]},
            {"rules": [lifecycle | {"abortIncompleteMultipartUpload": {"daysAfterInitiation": 7}}]},
        ),
        "aws:eks/cluster:Cluster": (
            world.cluster_inputs(),
            {
                "version": "1.35",
                "vpcConfig": {"subnetIds": world.subnets, "publicAccessCidrs": ["192.0.2.0/24"]},
                "enabledClusterLogTypes": ["audit", "authenticator"],
                "upgradePolicy": {"supportType": "STANDARD"},
                "tags": {"a": "b"},
            },
        ),
        "aws:eks/nodeGroup:NodeGroup": (
            world.node_group_inputs()
            | {
                "amiType": "AL2023_x86_64_NVIDIA",
                "instanceTypes": ["g6.xlarge"],
                "labels": {"workload": "gpu", "old": "true"},
                "taints": [{"key": "nvidia.com/gpu", "value": "true", "effect": "NO_SCHEDULE"}],
                "launchTemplate": {"id": world.template, "version": "1"},
                "releaseVersion": "1.34.7-20260610",
                "nodeRepairConfig": {"enabled": True},
            },
            {
                "labels": {"workload": "gpu-vllm"},
                "scalingConfig": {"minSize": 0, "desiredSize": 1, "maxSize": 3},
                "taints": [{"key": "nvidia.com/gpu", "value": "true", "effect": "NO_EXECUTE"}],
                "updateConfig": {"maxUnavailable": 2},
                "releaseVersion": "1.34.8-20260714",
                "nodeRepairConfig": {"enabled": False},
                "warmPoolConfig": {"maxGroupPreparedCapacity": 1},
                "tags": {"Purpose": "LLM Inference"},
            },
        ),
        "aws:eks/addon:Addon": (
            cluster | {"addonName": "vpc-cni", "addonVersion": "v1.20.3-eksbuild.1"},
            {"addonVersion": "v1.20.4-eksbuild.1", "configurationValues": '{"enableNetworkPolicy": "true"}'},
        ),
        "aws:eks/accessEntry:AccessEntry": (
            cluster | principal | {"kubernetesGroups": ["a"]},
            {"kubernetesGroups": ["b"], "tags": {"a": "b"}},
        ),
        "aws:eks/accessPolicyAssociation:AccessPolicyAssociation": (
            cluster
            | {"principalArn": world.roles[1].outputs["arn"], "accessScope": {"type": "cluster"}}
            | {"policyArn": "arn:aws:eks::aws:cluster-access-policy/AmazonEKSViewPolicy"},
            {},
        ),
        "aws:ecr/repository:Repository": (
            {"imageScanningConfiguration": {"scanOnPush": False}},
            {
                "imageScanningConfiguration": {"scanOnPush": True},
                "tags": {"a": "b"},
            },
        ),
        "aws:ecr/lifecyclePolicy:LifecyclePolicy": (
            {"repository": world.repository, "policy": json.dumps({"rules": [expire]})},
            {"policy": json.dumps({"rules": [expire | {"description": "tidy"}]})},
        ),
        "aws:autoscaling/tag:Tag": (
            {
                "autoscalingGroupName": world.scaling_group,
                "tag": {"key": "k8s.io/a", "value": "1", "propagateAtLaunch": False},
            },
            {"tag": {"key": "k8s.io/a", "value": "2", "propagateAtLaunch": True}},
        ),
        "aws:lb/loadBalancer:LoadBalancer": (
            {"internal": True, "loadBalancerType": "application", "subnets": world.subnets}
            | {"securityGroups": world.groups[:1], "idleTimeout": 60, "dropInvalidHeaderFields": True},
            {"idleTimeout": 730, "securityGroups": world.groups, "tags": {"a": "b"}},
        ),
        "aws:lb/targetGroup:TargetGroup": (
            world.target_group_inputs()
            | {"healthCheck": {"protocol": "HTTPS", "path": "/v1/models", "matcher": "401", "interval": 10}},
            {
                "healthCheck": {"protocol": "HTTPS", "path": "/v1/models", "matcher": "200", "interval": 30},
                "tags": {"a": "b"},
            },
        ),
        "aws:lb/listener:Listener": (
            {"loadBalancerArn": world.balancer, "port": 443, "protocol": "HTTPS", "certificateArn": world.certificate}
            | {"sslPolicy": "ELBSecurityPolicy-TLS13-1-2-2021-06"}
            | {"defaultActions": [{"type": "forward", "targetGroupArn": world.targets[0]}]},
            {"defaultActions": [{"type": "forward", "targetGroupArn": world.targets[1]}], "tags": {"a": "b"}},
        ),
        "aws:autoscaling/attachment:Attachment": (
            {"autoscalingGroupName": world.scaling_group, "lbTargetGroupArn": world.targets[0]},
            {},
        ),
        "aws:budgets/budget:Budget": (
            {"budgetType": "COST", "limitAmount": "300.00", "limitUnit": "USD", "timeUnit": "MONTHLY"},
            {"limitAmount": "400.00"},
        ),
        "aws:cloudwatch/logGroup:LogGroup": ({"retentionInDays": 7}, {"retentionInDays": 14, "tags": {"a": "b"}}),
    }
