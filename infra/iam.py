"""IAM roles for Kubernetes service accounts (IRSA), and the policies they carry. The policy builders are pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws
import pulumi_kubernetes as k8s

from infra.names import EVALUATION_PREFIX, SAMPLE_PREFIX, USAGE_PREFIX

core = k8s.core.v1

Statement = dict[str, Any]
"""Of a policy document."""
AUDIENCE = "sts.amazonaws.com"
TOKEN_DIR = "/var/run/secrets/eks.amazonaws.com/serviceaccount"
TOKEN_FILE = "token"
TOKEN_VOLUME = "aws-iam-token"
"""Named and mounted as EKS's own webhook would do it, which then leaves the pod as it is."""
TOKEN_SECONDS = 86_400
ROLE_ANNOTATION = "eks.amazonaws.com/role-arn"


def policy(*statements: Statement) -> str:
    """An IAM policy document as JSON."""
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)}, sort_keys=True)


def service_trust(service: str) -> str:
    """Lets an AWS service (`ec2.amazonaws.com`) assume the role."""
    return policy({"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"})


def account_trust(account: str, partition: str) -> str:
    """Lets those of an account assume the role whose own policies allow it."""
    root = f"arn:{partition}:iam::{account}:root"
    return policy({"Effect": "Allow", "Principal": {"AWS": root}, "Action": "sts:AssumeRole"})


def account_role(
    name: str,
    account: str,
    arn: pulumi.Output[str],
    policy: pulumi.Input[str],
    opts: pulumi.ResourceOptions,
    others: pulumi.Input[str] | None = None,
) -> aws.iam.Role:
    """A role for those of the account that an administrator lets assume it; `arn`, of anything here, tells the partition.

    `others`: a trust policy of who may assume it besides.
    """
    trust = arn.apply(lambda arn: account_trust(account, arn.split(":")[1]))
    if others is not None:
        trust = pulumi.Output.all(trust, others).apply(lambda policies: either(*policies))
    role = aws.iam.Role(name, assume_role_policy=trust, opts=opts)
    aws.iam.RolePolicy(name, role=role.name, policy=policy, opts=opts)
    return role


def service_account_trust(provider_arn: str, issuer: str, namespace: str, service_account: str) -> str:
    """Lets exactly one service account of one cluster assume the role; `issuer` has no `https://`."""
    return policy(
        {
            "Effect": "Allow",
            "Principal": {"Federated": provider_arn},
            "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": {
                "StringEquals": {
                    f"{issuer}:sub": f"system:serviceaccount:{namespace}:{service_account}",
                    f"{issuer}:aud": AUDIENCE,
                }
            },
        }
    )


def either(*policies: str) -> str:
    """One document of the statements of all."""
    return policy(*(statement for each in policies for statement in json.loads(each)["Statement"]))


def read_prefixes(bucket_arn: str, prefixes: Sequence[str]) -> str:
    """List and read under the given prefixes of one bucket, and nothing else."""
    return policy(
        {
            "Sid": "ListCatalog",
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": bucket_arn,
            "Condition": {"StringLike": {"s3:prefix": [f"{prefix}/*" for prefix in prefixes]}},
        },
        {
            "Sid": "ReadCatalog",
            "Effect": "Allow",
            "Action": "s3:GetObject",
            "Resource": [f"{bucket_arn}/{prefix}/*" for prefix in prefixes],
        },
    )


def web_identity(role_arn: pulumi.Input[str]) -> dict[str, Any]:
    """What the AWS SDKs read, beside the region, to take a role with the token that is mounted."""
    return {
        "AWS_ROLE_ARN": role_arn,
        "AWS_WEB_IDENTITY_TOKEN_FILE": f"{TOKEN_DIR}/{TOKEN_FILE}",
        "AWS_STS_REGIONAL_ENDPOINTS": "regional",
    }


def gateway_policy(bucket_arn: str, *, reads_usage: bool, reads_verdicts: bool, samples: bool) -> str:
    """Add to the usage ledger, and samples where tenants let them be kept; read the ledger where budgets are measured by it, and read verdicts where there are evaluations."""
    read = {"Usage": USAGE_PREFIX} if reads_usage else {}
    read |= {"Verdicts": EVALUATION_PREFIX} if reads_verdicts else {}
    reading: list[Statement] = []
    for what, prefix in read.items():
        listed = {"StringLike": {"s3:prefix": f"{prefix}/*"}}
        reading += [
            {
                "Sid": f"List{what}",
                "Effect": "Allow",
                "Action": "s3:ListBucket",
                "Resource": bucket_arn,
                "Condition": listed,
            },
            {"Sid": f"Read{what}", "Effect": "Allow", "Action": "s3:GetObject", "Resource": f"{bucket_arn}/{prefix}/*"},
        ]
    added = {"AddUsage": USAGE_PREFIX} | ({"AddSamples": SAMPLE_PREFIX} if samples else {})
    adding: list[Statement] = [
        {"Sid": what, "Effect": "Allow", "Action": "s3:PutObject", "Resource": f"{bucket_arn}/{prefix}/*"}
        for what, prefix in added.items()
    ]
    return policy(*adding, *reading)


@dataclass(frozen=True)
class PodIdentity:
    """How a pod of ours uses the bucket: its name, role and region, written into the pod explicitly."""

    bucket: pulumi.Input[str]
    role_arn: pulumi.Input[str]
    region: str

    def variables(self, endpoint: str | None) -> dict[str, Any]:
        """What the AWS SDK reads; `endpoint` is of an emulated AWS."""
        return {
            **web_identity(self.role_arn),
            "AWS_REGION": self.region,
            # boto3 reads only this one.
            "AWS_DEFAULT_REGION": self.region,
            **({"AWS_ENDPOINT_URL": endpoint} if endpoint else {}),
        }

    def service_account(
        self, name: str, namespace: pulumi.Input[str], opts: pulumi.ResourceOptions
    ) -> core.ServiceAccount:
        """Of its pods; the Kubernetes API knows them by nothing more than its name."""
        return core.ServiceAccount(
            name,
            metadata={"name": name, "namespace": namespace, "annotations": {ROLE_ANNOTATION: self.role_arn}},
            automount_service_account_token=False,
            opts=opts,
        )


def token_volume() -> core.VolumeArgsDict:
    token: core.ServiceAccountTokenProjectionArgsDict = {
        "audience": AUDIENCE,
        "expiration_seconds": TOKEN_SECONDS,
        "path": TOKEN_FILE,
    }
    return {"name": TOKEN_VOLUME, "projected": {"sources": [{"service_account_token": token}]}}


def token_mount() -> core.VolumeMountArgsDict:
    return {"name": TOKEN_VOLUME, "mount_path": TOKEN_DIR, "read_only": True}


@dataclass(frozen=True)
class TokenIssuer:
    """Who signs the tokens of a cluster's service accounts, as IAM knows it: the provider's ARN, and the issuer without its scheme."""

    provider_arn: pulumi.Input[str]
    issuer: pulumi.Input[str]


def workload_trust(tokens: TokenIssuer, namespace: str, service_account: str) -> pulumi.Output[str]:
    """Lets the pods of one service account assume a role."""
    return pulumi.Output.all(tokens.provider_arn, tokens.issuer).apply(
        lambda values: service_account_trust(values[0], values[1], namespace, service_account)
    )


class WorkloadRole(pulumi.ComponentResource):
    """A role that one Kubernetes service account assumes with its projected token."""

    def __init__(
        self,
        name: str,
        *,
        tokens: TokenIssuer,
        namespace: str,
        service_account: str,
        inline_policy: pulumi.Input[str] | None = None,
        managed_policy_arn: str | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:WorkloadRole", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        trust = workload_trust(tokens, namespace, service_account)
        role = aws.iam.Role(name, assume_role_policy=trust, opts=child)
        if inline_policy is not None:
            aws.iam.RolePolicy(name, role=role.name, policy=inline_policy, opts=child)
        if managed_policy_arn:
            aws.iam.RolePolicyAttachment(name, role=role.name, policy_arn=managed_policy_arn, opts=child)
        self.arn = role.arn
        self.register_outputs({"arn": self.arn})
