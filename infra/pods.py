"""What the pods of this program have in common."""

from __future__ import annotations

import pulumi_kubernetes as k8s

from infra.names import HTTP_PORT_NAME, METRICS_PORT_NAME

core = k8s.core.v1


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


def service_ports(http: int, metrics: int) -> list[core.ServicePortArgsDict]:
    """A Service's two ports, the same as its pods'."""
    ports = {HTTP_PORT_NAME: http, METRICS_PORT_NAME: metrics}
    return [{"name": name, "port": port, "target_port": port} for name, port in ports.items()]
