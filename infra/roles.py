"""What people and pipelines may do, as IAM roles: whoever an administrator of the account lets assume them.

docs/access.md has them in one table. In the cluster a role is a group of Kubernetes', by an EKS access entry.
"""

from __future__ import annotations

from collections.abc import Sequence

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.names import ADAPTER_PREFIX, CATALOG_PREFIXES, DESIRED_STATE, PROJECT
from infra.place import Place
from infra.pods import grant_to_group, may_watch, rbac
from loraserve.contract.addresses import EVALUATION_PREFIX, GATEWAY_KEYS, LINEAGE_PREFIX

OPERATORS = "loraserve-operators"
RELEASERS = "loraserve-releasers"
_LOOK_BEFORE_UP = (
    "ec2:DescribeAvailabilityZones",
    "ec2:DescribeInstanceTypeOfferings",
    "ec2:DescribeSubnets",
    "ecr:GetAuthorizationToken",
    "eks:DescribeCluster",
    "eks:DescribeNodegroup",
    "eks:ListClusters",
    "eks:ListNodegroups",
    "logs:DescribeLogGroups",
    "servicequotas:GetServiceQuota",
)
"""What the program asks AWS before it declares anything."""


def publisher_policy(bucket_arn: str) -> str:
    """What `loraserve publish` does, and `list`, `show`, `verify`, `diff`; the bucket itself refuses to overwrite."""
    return iam.policy(
        _listing(bucket_arn, "s3:ListBucket", "s3:ListBucketMultipartUploads"),
        _reading(bucket_arn),
        {
            "Sid": "Publish",
            "Effect": "Allow",
            "Action": ["s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"],
            "Resource": [f"{bucket_arn}/{prefix}/*" for prefix in (ADAPTER_PREFIX, LINEAGE_PREFIX)],
        },
    )


def operator_policy(bucket_arn: str, account: str, cluster: str) -> str:
    """A kubeconfig, and whether what is declared lies in the bucket; the rest an operator does in the cluster."""
    cluster_arn = f"arn:{bucket_arn.split(':')[1]}:eks:*:{account}:cluster/{cluster}"
    return iam.policy(
        {"Sid": "Kubeconfig", "Effect": "Allow", "Action": "eks:DescribeCluster", "Resource": cluster_arn},
        _listing(bucket_arn, "s3:ListBucket"),
        _reading(bucket_arn),
    )


def release_policy(bucket_arn: str, stack: str, state: str | None, state_key_arn: str | None) -> str:
    """An `up` that changes nothing in AWS: questions, whether what is declared is published (the provider reads an
    object's tags too), and this stack's state, in `state` (a bucket, or bucket/folder)."""
    partition = bucket_arn.split(":")[1]
    image = f"arn:{partition}:ssm:*::parameter/aws/service/*"
    statements = [
        _reading(bucket_arn, "s3:GetObjectTagging"),
        {"Sid": "Look", "Effect": "Allow", "Action": list(_LOOK_BEFORE_UP), "Resource": "*"},
        {"Sid": "NatImage", "Effect": "Allow", "Action": "ssm:GetParameter", "Resource": image},
    ]
    if state:
        bucket, _, folder = f"arn:{partition}:s3:::{state}".partition("/")
        home = f"{bucket}/{folder + '/' if folder else ''}.pulumi"
        statements += [
            _listing(bucket, "s3:ListBucket"),
            {"Sid": "Layout", "Effect": "Allow", "Action": "s3:GetObject", "Resource": f"{home}/meta.yaml"},
            {
                "Sid": "State",
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
                "Resource": [
                    f"{home}/stacks/{PROJECT}/{stack}.*",
                    *(f"{home}/{kind}/{PROJECT}/{stack}/*" for kind in ("history", "backups", "locks/organization")),
                ],
            },
        ]
    if state_key_arn:
        use = ["kms:Decrypt", "kms:Encrypt"]
        statements.append({"Sid": "Secrets", "Effect": "Allow", "Action": use, "Resource": state_key_arn})
    return iam.policy(*statements)


def _listing(bucket_arn: str, *actions: str) -> iam.Statement:
    """All of it: S3 tells 'not there' from 'not allowed' only to who may list, without a condition on the prefix."""
    return {"Sid": "List", "Effect": "Allow", "Action": list(actions), "Resource": bucket_arn}


def _reading(bucket_arn: str, *more: str) -> iam.Statement:
    objects = [f"{bucket_arn}/{prefix}/*" for prefix in (*CATALOG_PREFIXES, LINEAGE_PREFIX, EVALUATION_PREFIX)]
    return {"Sid": "Read", "Effect": "Allow", "Action": ["s3:GetObject", *more], "Resource": objects}


class Roles(pulumi.ComponentResource):
    """Publisher, operator and release pipeline; a caller has a key of the gateway and needs none."""

    def __init__(
        self,
        name: str,
        *,
        account: str,
        place: Place,
        bucket_arn: pulumi.Input[str],
        namespace: pulumi.Input[str],
        publisher: bool,
        state: str | None,
        state_key_arn: str | None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:Roles", name, None, opts)
        self._name = name
        self._account = account
        self._place = place
        self._namespace = namespace
        self._child = pulumi.ResourceOptions(parent=self)
        bucket = pulumi.Output.from_input(bucket_arn)
        self._bucket, stack = bucket, pulumi.get_stack()
        publishing = bucket.apply(publisher_policy)
        self.arns = {
            **({"publisher": self._create("publisher", publishing)} if publisher else {}),
            "operator": self._create(
                "operator",
                bucket.apply(lambda arn: operator_policy(arn, account, place.cluster)),
                OPERATORS,
                _operating(),
            ),
            "release": self._create(
                "release",
                bucket.apply(lambda arn: release_policy(arn, stack, state, state_key_arn)),
                RELEASERS,
                _releasing(),
            ),
        }
        self.register_outputs(self.arns)

    def _create(
        self,
        who: str,
        policy: pulumi.Output[str],
        group: str | None = None,
        rules: Sequence[rbac.PolicyRuleArgsDict] = (),
    ) -> pulumi.Output[str]:
        """The role's ARN."""
        name = f"{self._name}-{who}"
        role = iam.account_role(name, self._account, self._bucket, policy, self._child)
        if group:
            group += self._place.suffix
            aws.eks.AccessEntry(
                name,
                cluster_name=self._place.cluster,
                principal_arn=role.arn,
                kubernetes_groups=[group],
                opts=pulumi.ResourceOptions(parent=self, depends_on=list(self._place.needs)),
            )
            grant_to_group(group, {"name": group, "namespace": self._namespace}, group, rules, self._child)
        return role.arn


def _operating() -> list[rbac.PolicyRuleArgsDict]:
    """`status`, logs and port-forward, which enters a pod at any port: no shell, no change, no Secret but keys' digests."""
    return [
        *(may_watch("", kind) for kind in ("pods", "services", "events")),
        may_watch("apps", "deployments"),
        {"api_groups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        {"api_groups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]},
        {"api_groups": [""], "resources": ["configmaps"], "resource_names": [DESIRED_STATE], "verbs": ["get"]},
        {"api_groups": [""], "resources": ["secrets"], "resource_names": [GATEWAY_KEYS], "verbs": ["get"]},
    ]


def _releasing() -> list[rbac.PolicyRuleArgsDict]:
    change = ["get", "patch", "update"]
    return [{"api_groups": [""], "resources": ["configmaps"], "resource_names": [DESIRED_STATE], "verbs": change}]
