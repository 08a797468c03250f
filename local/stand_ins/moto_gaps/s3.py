"""S3: bucket policies with conditions. moto would apply a conditional Deny to every request."""

from __future__ import annotations

import fnmatch
import json
from typing import Any

from flask import request
from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.s3.models import FakeBucket
from moto.sts.models import sts_backends


def install() -> None:
    """Makes a bucket's policy look at the conditions this program's policies use."""
    FakeBucket.get_permission = _permission


def _permission(self: FakeBucket, action: str, resource: str) -> Any:
    if self.policy is None:
        return PermissionResult.NEUTRAL
    statements = [
        {key: value for key, value in statement.items() if key != "Condition"}
        for statement in json.loads(self.policy)["Statement"]
        if _holds(statement.get("Condition", {}))
    ]
    policy = IAMPolicy(json.dumps({"Statement": statements}))
    return policy.is_action_permitted(_iam_action(action), resource)


def _iam_action(action: str) -> str:
    """The permission that a request needs; moto names it after the HTTP method."""
    if action == "s3:DeleteObject" and "versionId" in request.args:
        return "s3:DeleteObjectVersion"
    return {"s3:HeadObject": "s3:GetObject", "s3:PostObject": "s3:PutObject"}.get(action, action)


def _principal_arn() -> str | None:
    """The role that signs the request; None where it is somebody else."""
    signed_by = request.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]
    assumed = [role for backends in sts_backends.values() for role in backends["aws"].assumed_roles]
    return next((role.role_arn for role in assumed if role.access_key_id == signed_by), None)


def _holds(condition: dict[str, dict[str, str]]) -> bool:
    values = {
        "aws:SecureTransport": "true",  # the emulator is plain HTTP on the loopback interface; that counts as TLS
        "s3:if-none-match": request.headers.get("If-None-Match"),
        "aws:PrincipalArn": _principal_arn(),
        "s3:ObjectCreationOperation": str("partNumber" not in request.args and "uploads" not in request.args).lower(),
    }
    tests = {
        "Bool": lambda key, wanted: values[key] == wanted,
        "ArnNotEquals": lambda key, wanted: values[key] != wanted,
        "ArnNotLike": lambda key, wanted: not fnmatch.fnmatchcase(str(values[key]), wanted),
        "Null": lambda key, wanted: str(values[key] is None).lower() == wanted,
    }
    return all(tests[operator](key, wanted) for operator, pairs in condition.items() for key, wanted in pairs.items())
