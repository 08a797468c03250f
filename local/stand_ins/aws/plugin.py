"""Which types and functions the `aws` plugin serves."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version

from local.stand_ins.aws import eks, iam, instances, load_balancing, network, s3, security_groups, services
from local.stand_ins.aws.account import Account
from local.stand_ins.aws.functions import FUNCTIONS
from local.stand_ins.aws.resource import AwsResource
from local.stand_ins.provider import Provider

TYPES: tuple[type[AwsResource], ...] = (
    network.Vpc,
    network.Subnet,
    network.InternetGateway,
    network.Eip,
    network.NatGateway,
    network.RouteTable,
    network.Route,
    network.RouteTableAssociation,
    network.VpcEndpoint,
    security_groups.SecurityGroup,
    security_groups.SecurityGroupIngressRule,
    security_groups.SecurityGroupEgressRule,
    instances.Instance,
    instances.LaunchTemplate,
    instances.Volume,
    iam.Role,
    iam.RolePolicy,
    iam.RolePolicyAttachment,
    iam.OpenIdConnectProvider,
    s3.Bucket,
    s3.BucketVersioning,
    s3.BucketServerSideEncryptionConfiguration,
    s3.BucketPublicAccessBlock,
    s3.BucketOwnershipControls,
    s3.BucketPolicy,
    s3.BucketLifecycleConfiguration,
    eks.Cluster,
    eks.NodeGroup,
    eks.Addon,
    eks.AccessEntry,
    eks.AccessPolicyAssociation,
    load_balancing.LoadBalancer,
    load_balancing.TargetGroup,
    load_balancing.Listener,
    load_balancing.AutoscalingAttachment,
    services.Repository,
    services.LifecyclePolicy,
    services.AutoscalingTag,
    services.LogGroup,
    services.Budget,
)


def provider() -> Provider:
    """The plugin, for one account that `configure` will name."""
    account = Account()
    return Provider(
        name="aws",
        version=version("pulumi-aws"),
        resources={kind.token: kind(account) for kind in TYPES},
        functions={token: partial(function, account) for token, function in FUNCTIONS.items()},
        configure=account.configure,
    )
