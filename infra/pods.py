"""What the pods of this program have in common."""

from __future__ import annotations

from collections.abc import Sequence

import pulumi
import pulumi_kubernetes as k8s

from infra.names import HTTP_PORT_NAME, METRICS_PORT_NAME

core = k8s.core.v1
rbac = k8s.rbac.v1


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
    role = rbac.Role(name, metadata=metadata, rules=rules, opts=opts)
    return rbac.RoleBinding(
        name,
        metadata=metadata,
        role_ref={"api_group": "rbac.authorization.k8s.io", "kind": "Role", "name": role.metadata.name},
        subjects=[{"kind": "ServiceAccount", "name": service_account, "namespace": metadata.get("namespace")}],
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
