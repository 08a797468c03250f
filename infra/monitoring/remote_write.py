"""Prometheus' second place for its samples: they outlive the stack there, and its disk."""

from __future__ import annotations

from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from loraserve.planning.remote_write import RemoteWrite

_LOGIN = "remote-write"


def create_login(
    target: RemoteWrite | None, namespace: pulumi.Input[str], opts: pulumi.ResourceOptions
) -> list[k8s.core.v1.Secret]:
    if not target or not target.password:
        return []
    password = pulumi.Output.secret(target.password.get_secret_value())
    return [
        k8s.core.v1.Secret(
            _LOGIN,
            metadata={"name": _LOGIN, "namespace": namespace},
            string_data={"username": target.username or "", "password": password},
            opts=opts,
        )
    ]


def remote_write_values(target: RemoteWrite | None) -> list[dict[str, Any]]:
    """As the operator's Prometheus takes them."""
    if not target:
        return []
    login = {key: {"name": _LOGIN, "key": key} for key in ("username", "password")}
    return [{"url": target.url, **({"basicAuth": login} if target.password else {})}]
