"""What `pulumi up`, `refresh` and `destroy` ask of AWS, so what whoever runs them must be allowed: the least, by resource type.

Each type's actions are those of the code behind it, named beside it: a file below `internal/service` of hashicorp/terraform-provider-aws, which
pulumi-aws wraps, for making, reading, changing, tagging and deleting with the properties that this project sets. The large ones were read
(VPC, subnet, address, instance, role, bucket, repository, balancer, attachment, cluster, add-on; not all at the wrapped version), and every row
was held against two other tables: the handlers' permissions in CloudFormation's schema of the type, which also say what a service does with
its caller's rights (a role handed over, a service-linked role, a launch template's instances), and JamesWoolfenden/pike's. Not run against AWS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Needs:
    """`source`: where it can be read."""

    source: str
    actions: frozenset[str]


def _needs(source: str, **by_service: str) -> Needs:
    return Needs(
        source, frozenset(f"{service}:{name}" for service, names in by_service.items() for name in names.split())
    )


_EC2_TAGS = "CreateTags DeleteTags"
_ENIS = "DescribeNetworkInterfaces"
"""Before a subnet or security group goes, the provider looks for interfaces that services left in it (vpc_network_interface.go)."""

BY_TYPE: Mapping[str, Needs] = {
    "aws:autoscaling/attachment:Attachment": _needs(
        "autoscaling/attachment.go",
        autoscaling="AttachLoadBalancerTargetGroups DescribeAutoScalingGroups DetachLoadBalancerTargetGroups",
    ),
    "aws:autoscaling/tag:Tag": _needs(
        "autoscaling/group_tag.go", autoscaling="CreateOrUpdateTags DeleteTags DescribeTags"
    ),
    "aws:budgets/budget:Budget": _needs(
        "budgets/budget.go", budgets="ListTagsForResource ModifyBudget TagResource UntagResource ViewBudget"
    ),
    "aws:cloudwatch/logGroup:LogGroup": _needs(
        "logs/group.go",
        logs="CreateLogGroup DeleteLogGroup DeleteRetentionPolicy DescribeLogGroups ListTagsForResource PutRetentionPolicy "
        "TagResource UntagResource",
    ),
    "aws:ebs/volume:Volume": _needs(
        "ec2/ebs_volume.go", ec2=f"CreateVolume DeleteVolume DescribeVolumes ModifyVolume {_EC2_TAGS}"
    ),
    "aws:ec2/eip:Eip": _needs(
        "ec2/ec2_eip.go",
        ec2=f"AllocateAddress DescribeAddresses DescribeAddressesAttribute DisassociateAddress ReleaseAddress {_EC2_TAGS}",
    ),
    "aws:ec2/instance:Instance": _needs(
        "ec2/ec2_instance.go",
        ec2="DescribeImages DescribeInstanceAttribute DescribeInstanceCreditSpecifications DescribeInstanceTypes DescribeInstances "
        f"DescribeTags DescribeVolumes ModifyInstanceAttribute ModifyInstanceCreditSpecification {_ENIS} "
        "ModifyInstanceMetadataOptions ModifyNetworkInterfaceAttribute RunInstances StartInstances StopInstances "
        f"TerminateInstances {_EC2_TAGS}",
    ),
    "aws:ec2/internetGateway:InternetGateway": _needs(
        "ec2/vpc_internet_gateway.go",
        ec2="AttachInternetGateway CreateInternetGateway DeleteInternetGateway DescribeInternetGateways "
        f"DetachInternetGateway {_EC2_TAGS}",
    ),
    "aws:ec2/launchTemplate:LaunchTemplate": _needs(
        "ec2/ec2_launch_template.go",
        ec2="CreateLaunchTemplate CreateLaunchTemplateVersion DeleteLaunchTemplate DescribeLaunchTemplateVersions "
        f"DescribeLaunchTemplates ModifyLaunchTemplate {_EC2_TAGS}",
    ),
    "aws:ec2/natGateway:NatGateway": _needs(
        "ec2/vpc_nat_gateway.go", ec2=f"CreateNatGateway DeleteNatGateway DescribeNatGateways {_EC2_TAGS}"
    ),
    "aws:ec2/route:Route": _needs(
        "ec2/vpc_route.go", ec2="CreateRoute DeleteRoute DescribeRouteTables ReplaceRoute"
    ),
    "aws:ec2/routeTable:RouteTable": _needs(
        "ec2/vpc_route_table.go",
        ec2=f"CreateRouteTable DeleteRouteTable DescribeRouteTables DisassociateRouteTable {_EC2_TAGS}",
    ),
    "aws:ec2/routeTableAssociation:RouteTableAssociation": _needs(
        "ec2/vpc_route_table_association.go",
        ec2="AssociateRouteTable DescribeRouteTables DisassociateRouteTable ReplaceRouteTableAssociation",
    ),
    "aws:ec2/securityGroup:SecurityGroup": _needs(
        "ec2/vpc_security_group.go",
        ec2=f"CreateSecurityGroup DeleteSecurityGroup DescribeSecurityGroups RevokeSecurityGroupEgress {_ENIS} {_EC2_TAGS}",
    ),
    "aws:ec2/subnet:Subnet": _needs(
        "ec2/vpc_subnet.go", ec2=f"CreateSubnet DeleteSubnet DescribeSubnets ModifySubnetAttribute {_ENIS} {_EC2_TAGS}"
    ),
    "aws:ec2/vpc:Vpc": _needs(
        "ec2/vpc_.go",
        ec2="CreateVpc DeleteVpc DescribeNetworkAcls DescribeRouteTables DescribeSecurityGroups DescribeVpcAttribute "
        f"DescribeVpcs ModifyVpcAttribute {_EC2_TAGS}",
    ),
    "aws:ec2/vpcEndpoint:VpcEndpoint": _needs(
        "ec2/vpc_endpoint.go",
        ec2=f"CreateVpcEndpoint DeleteVpcEndpoints DescribePrefixLists DescribeVpcEndpoints ModifyVpcEndpoint {_EC2_TAGS}",
    ),
    "aws:ecr/lifecyclePolicy:LifecyclePolicy": _needs(
        "ecr/lifecycle_policy.go", ecr="DeleteLifecyclePolicy GetLifecyclePolicy PutLifecyclePolicy"
    ),
    "aws:ecr/repository:Repository": _needs(
        "ecr/repository.go",
        ecr="CreateRepository DeleteRepository DescribeRepositories ListTagsForResource PutImageScanningConfiguration "
        "TagResource UntagResource",
    ),
    "aws:eks/accessEntry:AccessEntry": _needs(
        "eks/access_entry.go",
        eks="CreateAccessEntry DeleteAccessEntry DescribeAccessEntry TagResource UntagResource UpdateAccessEntry",
    ),
    "aws:eks/accessPolicyAssociation:AccessPolicyAssociation": _needs(
        "eks/access_policy_association.go",
        eks="AssociateAccessPolicy DisassociateAccessPolicy ListAssociatedAccessPolicies",
    ),
    "aws:eks/addon:Addon": _needs(
        "eks/addon.go",
        eks="CreateAddon DeleteAddon DescribeAddon DescribeUpdate TagResource UntagResource UpdateAddon",
        iam="GetRole PassRole",
    ),
    "aws:eks/cluster:Cluster": _needs(
        "eks/cluster.go",
        eks="CreateAccessEntry CreateCluster DeleteCluster DescribeCluster DescribeUpdate TagResource UntagResource "
        "UpdateClusterConfig UpdateClusterVersion",
        ec2="DescribeSubnets DescribeVpcs",
        iam="CreateServiceLinkedRole GetRole ListAttachedRolePolicies PassRole",
    ),
    "aws:eks/nodeGroup:NodeGroup": _needs(
        "eks/node_group.go",
        eks="CreateNodegroup DeleteNodegroup DescribeNodegroup DescribeUpdate TagResource UntagResource UpdateNodegroupConfig "
        "UpdateNodegroupVersion",
        ec2="DescribeLaunchTemplateVersions DescribeLaunchTemplates DescribeRouteTables DescribeSecurityGroups DescribeSubnets "
        f"DescribeVpcs RunInstances {_EC2_TAGS}",
        iam="CreateServiceLinkedRole GetRole ListAttachedRolePolicies PassRole",
    ),
    "aws:iam/openIdConnectProvider:OpenIdConnectProvider": _needs(
        "iam/openid_connect_provider.go",
        iam="AddClientIDToOpenIDConnectProvider CreateOpenIDConnectProvider DeleteOpenIDConnectProvider "
        "GetOpenIDConnectProvider RemoveClientIDFromOpenIDConnectProvider TagOpenIDConnectProvider "
        "UntagOpenIDConnectProvider UpdateOpenIDConnectProviderThumbprint",
    ),
    "aws:iam/role:Role": _needs(
        "iam/role.go",
        iam="CreateRole DeleteRole GetRole GetRolePolicy ListAttachedRolePolicies ListInstanceProfilesForRole ListRolePolicies "
        "TagRole UntagRole UpdateAssumeRolePolicy UpdateRole UpdateRoleDescription",
    ),
    "aws:iam/rolePolicy:RolePolicy": _needs("iam/role_policy.go", iam="DeleteRolePolicy GetRolePolicy PutRolePolicy"),
    "aws:iam/rolePolicyAttachment:RolePolicyAttachment": _needs(
        "iam/role_policy_attachment.go", iam="AttachRolePolicy DetachRolePolicy ListAttachedRolePolicies"
    ),
    "aws:lb/listener:Listener": _needs(
        "elbv2/listener.go",
        elasticloadbalancing="AddTags CreateListener DeleteListener DescribeListenerAttributes DescribeListeners DescribeTags "
        "ModifyListener ModifyListenerAttributes RemoveTags",
    ),
    "aws:lb/loadBalancer:LoadBalancer": _needs(
        "elbv2/load_balancer.go",
        elasticloadbalancing="AddTags CreateLoadBalancer DeleteLoadBalancer DescribeCapacityReservation "
        "DescribeLoadBalancerAttributes DescribeLoadBalancers DescribeTags ModifyLoadBalancerAttributes RemoveTags "
        "SetSecurityGroups SetSubnets",
        ec2=f"DescribeSecurityGroups DescribeSubnets DescribeVpcs {_ENIS}",
        iam="CreateServiceLinkedRole",
    ),
    "aws:lb/targetGroup:TargetGroup": _needs(
        "elbv2/target_group.go",
        elasticloadbalancing="AddTags CreateTargetGroup DeleteTargetGroup DescribeTags DescribeTargetGroupAttributes "
        "DescribeTargetGroups ModifyTargetGroup ModifyTargetGroupAttributes RemoveTags",
    ),
    "aws:s3/bucket:Bucket": _needs(
        "s3/bucket.go",
        s3="CreateBucket DeleteBucket DeleteObject DeleteObjectVersion GetAccelerateConfiguration GetBucketAcl GetBucketCORS "
        "GetBucketLogging GetBucketObjectLockConfiguration GetBucketPolicy GetBucketRequestPayment "
        "GetBucketTagging GetBucketVersioning GetBucketWebsite GetEncryptionConfiguration GetLifecycleConfiguration "
        "GetReplicationConfiguration ListBucket ListBucketVersions ListTagsForResource PutBucketTagging TagResource "
        "UntagResource",
    ),
    "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration": _needs(
        "s3/bucket_lifecycle_configuration.go", s3="GetLifecycleConfiguration PutLifecycleConfiguration"
    ),
    "aws:s3/bucketOwnershipControls:BucketOwnershipControls": _needs(
        "s3/bucket_ownership_controls.go", s3="GetBucketOwnershipControls PutBucketOwnershipControls"
    ),
    "aws:s3/bucketPolicy:BucketPolicy": _needs(
        "s3/bucket_policy.go", s3="DeleteBucketPolicy GetBucketPolicy PutBucketPolicy"
    ),
    "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock": _needs(
        "s3/bucket_public_access_block.go", s3="GetBucketPublicAccessBlock PutBucketPublicAccessBlock"
    ),
    "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": _needs(
        "s3/bucket_server_side_encryption_configuration.go", s3="GetEncryptionConfiguration PutEncryptionConfiguration"
    ),
    "aws:s3/bucketVersioning:BucketVersioning": _needs(
        "s3/bucket_versioning.go", s3="GetBucketVersioning PutBucketVersioning"
    ),
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": _needs(
        "ec2/vpc_security_group_egress_rule.go",
        ec2="AuthorizeSecurityGroupEgress DescribeSecurityGroupRules ModifySecurityGroupRules RevokeSecurityGroupEgress "
        f"{_EC2_TAGS}",
    ),
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": _needs(
        "ec2/vpc_security_group_ingress_rule.go",
        ec2="AuthorizeSecurityGroupIngress DescribeSecurityGroupRules ModifySecurityGroupRules RevokeSecurityGroupIngress "
        f"{_EC2_TAGS}",
    ),
}  # fmt: skip

ASKED = _needs(
    "infra/preflight.py, infra/account.py, infra/deployed.py, infra/standing.py, infra/nat.py",
    ec2="DescribeAddresses DescribeAvailabilityZones DescribeInstanceTypeOfferings DescribeNatGateways "
    "DescribeNetworkInterfaces DescribeSubnets DescribeVpcs GetConsoleOutput",
    ecr="DescribeImages",
    eks="DescribeCluster DescribeClusterVersions DescribeNodegroup ListClusters ListNodegroups",
    iam="GetRole GetUser SimulatePrincipalPolicy",
    logs="DescribeLogGroups",
    s3="GetObject GetObjectTagging",
    servicequotas="GetServiceQuota",
    ssm="GetParameter",
    tag="GetResources",
)
"""Of the program itself: what it looks at before it declares anything, and the NAT instance's proof."""

PUSHED = _needs(
    "Docker's push to ECR",
    ecr="BatchCheckLayerAvailability BatchGetImage CompleteLayerUpload GetAuthorizationToken GetDownloadUrlForLayer "
    "InitiateLayerUpload PutImage UploadLayerPart",
)  # fmt: skip
"""Of the build of our image, where `loraserveImage` names none."""

_ALL = (*BY_TYPE.values(), ASKED, PUSHED)
ACTIONS = frozenset(action for needs in _ALL for action in needs.actions)
_LOOKS_AT_THE_CALLER = frozenset({"iam:GetUser", "iam:SimulatePrincipalPolicy"})
INLINE_LIMIT = 10_240
"""Characters of a role's inline policies; a managed policy takes 6,144 (IAM and STS quotas)."""


@dataclass(frozen=True)
class Scope:
    """Actions, and what they may be done to: the stack's own by name, where AWS knows a name before it exists."""

    sid: str
    resource: str
    actions: Sequence[str]

    @property
    def example(self) -> str:
        """One such resource, for IAM's simulator, which takes no patterns."""
        return self.resource if self.resource == "*" else self.resource.replace("*", "preflight")


def scopes(cluster: str, account: str = "*") -> list[Scope]:
    """What a stack needs whose cluster has this name."""
    iam = f"arn:aws:iam::{account}"
    resources = {
        "Bucket": f"arn:aws:s3:::{cluster}-*",
        "ServiceLinkedRoles": f"{iam}:role/aws-service-role/*",
        "ServiceAccountsIssuer": f"{iam}:oidc-provider/*",
        "Roles": f"{iam}:role/{cluster}-*",
        "Everything": "*",
    }
    found: dict[str, list[str]] = {sid: [] for sid in resources}
    for action in sorted(ACTIONS):
        found[_sid(action)].append(action)
    return [Scope(sid, resources[sid], actions) for sid, actions in found.items()]


def _sid(action: str) -> str:
    if action.startswith("s3:"):
        return "Bucket"
    if action == "iam:CreateServiceLinkedRole":
        return "ServiceLinkedRoles"
    if "OpenIDConnect" in action:
        return "ServiceAccountsIssuer"
    if action.startswith("iam:") and action not in _LOOKS_AT_THE_CALLER:
        return "Roles"
    return "Everything"


def policy_document(cluster: str) -> dict[str, Any]:
    """The same as an IAM policy."""
    statements = [
        {"Sid": scope.sid, "Effect": "Allow", "Action": list(scope.actions), "Resource": scope.resource}
        for scope in scopes(cluster)
    ]
    return {"Version": "2012-10-17", "Statement": statements}
