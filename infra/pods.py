"""What the pods of this program have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pulumi
import pulumi_kubernetes as k8s

from infra.names import GPU_TAINT, HTTP_PORT_NAME, METRICS_PORT_NAME
from loraserve.planning.stack_settings import Settings

core = k8s.core.v1
rbac = k8s.rbac.v1

_API_TOKEN_SECONDS = 3600
_RBAC = "rbac.authorization.k8s.io"


def run_as(user_id: int) -> core.PodSecurityContextArgsDict:
    """What the restricted level asks of a pod; its volumes belong to this user too."""
    return {
        "run_as_non_root": True,
        "run_as_user": user_id,
        "run_as_group": user_id,
        "fs_group": user_id,
        "seccomp_profile": {"type": "RuntimeDefault"},
    }


def hardened() -> core.SecurityContextArgsDict:
    """What the restricted level asks of a container, and a root file system that nobody writes to."""
    return {
        "allow_privilege_escalation": False,
        "read_only_root_filesystem": True,
        "run_as_non_root": True,
        "capabilities": {"drop": ["ALL"]},
    }


def tolerations(settings: Settings) -> list[core.TolerationArgsDict]:
    """What pods that need no GPU bear: where one node has to take all of them, its taint."""
    return [cast(core.TolerationArgsDict, GPU_TAINT.toleration())] if settings.local.single_node else []


def environment(variables: Mapping[str, Any]) -> list[core.EnvVarArgsDict]:
    """A container's variables by name: text, an output of it, or what `of_pod` or `of_secret` returns."""
    return [_variable(name, value) for name, value in variables.items()]


def _variable(name: str, value: Any) -> core.EnvVarArgsDict:
    if isinstance(value, dict):
        return {"name": name, "value_from": cast(core.EnvVarSourceArgsDict, value)}
    return {"name": name, "value": value}


def of_pod(field_path: str) -> core.EnvVarSourceArgsDict:
    """What the pod says of itself, such as `metadata.name`."""
    return {"field_ref": {"field_path": field_path}}


def of_secret(name: pulumi.Input[str], key: str) -> core.EnvVarSourceArgsDict:
    return {"secret_key_ref": {"name": name, "key": key}}


def api_credentials() -> list[core.VolumeProjectionArgsDict]:
    """What Kubernetes would mount into every container of a pod, for those that have it switched off."""
    return [
        {"service_account_token": {"expiration_seconds": _API_TOKEN_SECONDS, "path": "token"}},
        {"config_map": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    ]


def probe(
    path: str, port: int, *, period: int, delay: int = 0, failures: int = 3, timeout: int = 5
) -> core.ProbeArgsDict:
    """A GET that must succeed; times in seconds."""
    return {
        "http_get": {"path": path, "port": port},
        "initial_delay_seconds": delay,
        "period_seconds": period,
        "timeout_seconds": timeout,
        "failure_threshold": failures,
    }


def grant(
    name: str,
    metadata: k8s.meta.v1.ObjectMetaArgsDict,
    service_account: pulumi.Input[str],
    rules: Sequence[rbac.PolicyRuleArgsDict],
    opts: pulumi.ResourceOptions,
) -> rbac.RoleBinding:
    """Lets a service account do this in its namespace, and nothing else: a Role and its binding, both with this metadata."""
    account: rbac.SubjectArgsDict = {
        "kind": "ServiceAccount",
        "name": service_account,
        "namespace": metadata.get("namespace"),
    }
    return _bind(name, metadata, account, rules, opts)


def grant_to_group(
    name: str,
    metadata: k8s.meta.v1.ObjectMetaArgsDict,
    group: str,
    rules: Sequence[rbac.PolicyRuleArgsDict],
    opts: pulumi.ResourceOptions,
) -> rbac.RoleBinding:
    """The same for the people of a group."""
    return _bind(name, metadata, {"kind": "Group", "name": group, "api_group": _RBAC}, rules, opts)


def _bind(
    name: str,
    metadata: k8s.meta.v1.ObjectMetaArgsDict,
    subject: rbac.SubjectArgsDict,
    rules: Sequence[rbac.PolicyRuleArgsDict],
    opts: pulumi.ResourceOptions,
) -> rbac.RoleBinding:
    role = rbac.Role(name, metadata=metadata, rules=rules, opts=opts)
    return rbac.RoleBinding(
        name,
        metadata=metadata,
        role_ref={"api_group": _RBAC, "kind": "Role", "name": role.metadata.name},
        subjects=[subject],
        opts=opts,
    )


def may_watch(api_group: str, resources: str, name: str | None = None) -> rbac.PolicyRuleArgsDict:
    """All of a kind, or the one of this name."""
    rule: rbac.PolicyRuleArgsDict = {
        "api_groups": [api_group],
        "resources": [resources],
        "verbs": ["get", "list", "watch"],
    }
    if name:
        rule["resource_names"] = [name]
    return rule


def service_ports(http: int, metrics: int) -> list[core.ServicePortArgsDict]:
    """A Service's two ports, the same as its pods'."""
    ports = {HTTP_PORT_NAME: http, METRICS_PORT_NAME: metrics}
    return [{"name": name, "port": port, "target_port": port} for name, port in ports.items()]
