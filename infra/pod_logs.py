"""Logs that outlive their node: Fluent Bit on every node sends those of the serving namespaces to CloudWatch.

It reads the files that the kubelet keeps, whose names say pod, namespace and container: it needs nothing of the Kubernetes API.
"""

from __future__ import annotations

import pulumi
import pulumi_aws as aws
import pulumi_kubernetes as k8s
import yaml

from infra.iam import PodIdentity, TokenIssuer, WorkloadRole, policy, token_mount, token_volume
from infra.isolation import PodLogsIsolation, create_namespace
from infra.names import POD_LOGS, SERVING_NAMESPACE
from infra.pinned_images import FLUENT_BIT, pinned
from infra.pods import environment, hardened, probe, run_as
from loraserve.planning import pod_resources

core = k8s.core.v1

_LABELS = {"app": POD_LOGS}
_USER_ID = 65532
_GROUP_OF_LOGS = 0
"""The container runtime writes them with mode 0640, as root."""
_PORT = 2020
_FOLDERS = {"containers": "/var/log/containers", "pods": "/var/log/pods"}
"""Of the node: links by name, and what they lead to."""
_CONFIG, _CONFIG_FILE = "/etc/pod-logs", "fluent-bit.yaml"
_STATE = "/state"
_STATE_MIB = 64
_FILES = f"{_FOLDERS['containers']}/*_{SERVING_NAMESPACE}*_*.log"
"""Of every stack that serves in the cluster: their namespaces begin alike."""
_NAMES = r"^.*/(?<pod>[^_]+)_(?<namespace>[^_]+)_(?<container>.+)-[0-9a-f]{64}\.log$"
_IN_MEMORY = "32MB"
"""Beyond it files wait; the kubelet keeps 50 MiB of each container's."""
_LOOK_SECONDS = 5
_ROTATED_SECONDS = 30


def log_group_name(cluster: str) -> str:
    """One for the cluster; its streams are called `pods/namespace/pod/container`."""
    return f"/{cluster}"


def shipping_policy(log_group_arn: str) -> str:
    """Add to this log group, and nothing else: neither read it, nor make another, nor say how long it is kept."""
    actions = ["logs:CreateLogStream", "logs:PutLogEvents"]
    return policy({"Sid": "AddLogs", "Effect": "Allow", "Action": actions, "Resource": f"{log_group_arn}:*"})


def shipping_config(log_group: str, region: str) -> str:
    """Fluent Bit's configuration. Lines are sent as they were written: a JSON log stays JSON."""
    followed = {
        "name": "tail",
        "path": _FILES,
        "refresh_interval": _LOOK_SECONDS,
        "tag_regex": _NAMES,
        "tag": "<namespace>/<pod>/<container>",
        "multiline.parser": "cri",
        "db": f"{_STATE}/read.db",
        "read_from_head": True,
        "rotate_wait": _ROTATED_SECONDS,
        "skip_long_lines": True,
        "mem_buf_limit": _IN_MEMORY,
    }
    sent = {
        "name": "cloudwatch_logs",
        "match": "*",
        "region": region,
        "log_group_name": log_group,
        "log_stream_prefix": "pods/",
        "log_key": "log",
        "retry_limit": "no_limits",
    }
    service = {"flush": 5, "log_level": "warn", "http_server": True, "http_port": _PORT, "health_check": True}
    return yaml.safe_dump({"service": service, "pipeline": {"inputs": [followed], "outputs": [sent]}})


class PodLogs(pulumi.ComponentResource):
    """A log group with its retention, and a DaemonSet that may add to it."""

    def __init__(
        self,
        name: str,
        *,
        cluster: str,
        tokens: TokenIssuer,
        region: str,
        days: int,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:PodLogs", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        group = aws.cloudwatch.LogGroup(
            f"{cluster}-pods", name=log_group_name(cluster), retention_in_days=days, opts=child
        )
        # Folders of a node are for the privileged level only.
        namespace = create_namespace(POD_LOGS, "privileged", child)
        PodLogsIsolation("pod-logs-isolation", namespace=namespace, selector=_LABELS, opts=child)
        role = WorkloadRole(
            f"{cluster}-{POD_LOGS}",
            tokens=tokens,
            namespace=POD_LOGS,
            service_account=POD_LOGS,
            inline_policy=group.arn.apply(shipping_policy),
            opts=child,
        )
        config = core.ConfigMap(
            POD_LOGS,
            metadata={"name": POD_LOGS, "namespace": namespace},
            data={_CONFIG_FILE: group.name.apply(lambda group: shipping_config(group, region))},
            opts=child,
        )
        identity = PodIdentity("", role.arn, region)
        account = identity.service_account(POD_LOGS, namespace, child)
        k8s.apps.v1.DaemonSet(
            POD_LOGS,
            metadata={"name": POD_LOGS, "namespace": namespace, "labels": _LABELS},
            spec={
                "selector": {"match_labels": _LABELS},
                "update_strategy": {"type": "RollingUpdate", "rolling_update": {"max_unavailable": "100%"}},
                "template": {
                    "metadata": {"labels": _LABELS},
                    "spec": _pod_spec(account.metadata.name, config.metadata.name, identity),
                },
            },
            opts=pulumi.ResourceOptions(parent=self, depends_on=[role]),
        )
        self.register_outputs({})


def _pod_spec(account: pulumi.Input[str], config: pulumi.Input[str], identity: PodIdentity) -> core.PodSpecArgsDict:
    return {
        "service_account_name": account,
        "automount_service_account_token": False,
        "enable_service_links": False,
        "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
        "security_context": {**run_as(_USER_ID), "supplemental_groups": [_GROUP_OF_LOGS]},
        "containers": [_container(identity)],
        "volumes": [
            *({"name": name, "host_path": {"path": path}} for name, path in _FOLDERS.items()),
            {"name": "config", "config_map": {"name": config}},
            {"name": "state", "empty_dir": {"size_limit": f"{_STATE_MIB}Mi"}},
            token_volume(),
        ],
    }


def _container(identity: PodIdentity) -> core.ContainerArgsDict:
    return {
        "name": POD_LOGS,
        "image": pinned(FLUENT_BIT),
        "command": ["/fluent-bit/bin/fluent-bit", f"--config={_CONFIG}/{_CONFIG_FILE}"],
        "env": environment(identity.variables(None)),
        "ports": [{"name": "http", "container_port": _PORT}],
        "readiness_probe": probe("/api/v1/health", _PORT, period=30),
        "liveness_probe": probe("/api/v1/uptime", _PORT, period=30),
        "resources": {
            "requests": pod_resources.POD_LOGS.quantities(),
            "limits": {"memory": f"{pod_resources.POD_LOGS_MEMORY_LIMIT_MIB}Mi"},
        },
        "security_context": hardened(),
        "volume_mounts": [
            *({"name": name, "mount_path": path, "read_only": True} for name, path in _FOLDERS.items()),
            {"name": "config", "mount_path": _CONFIG, "read_only": True},
            {"name": "state", "mount_path": _STATE},
            token_mount(),
        ],
    }
