"""What a destroyed stack left behind in the emulated AWS and in the cluster: should be nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubernetes import client, config

from infra import names
from infra.monitoring.stack import GP3_CLASS
from local.engine.cloud import Cloud
from local.engine.workspace import Cluster


def left_behind(cloud: Cloud, cluster: Cluster) -> list[str]:
    """Names of everything that this program could have made and that is still there, as `kind name`."""
    return [*_left_in_aws(cloud), *_left_in_the_cluster(cluster)]


def left_on_machine(state: Path) -> list[str]:
    """Processes, mounts and the folder of a stack that was stopped."""
    found = [f"folder {state}"] if state.exists() else []
    found += [f"process {pid}" for pid in _processes_naming(state)]
    mounts = Path("/proc/mounts").read_text().splitlines()
    return [*found, *(f"mount {line.split()[1]}" for line in mounts if str(state) in line)]


def _processes_naming(state: Path) -> list[int]:
    """Ids of processes whose command line has a path below the state folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{state}/".encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def _left_in_aws(cloud: Cloud) -> list[str]:
    ec2 = cloud.client("ec2")
    found: dict[str, Callable[[], list[Any]]] = {
        "vpc": lambda: [v["VpcId"] for v in ec2.describe_vpcs()["Vpcs"] if not v["IsDefault"]],
        "launch-template": lambda: [
            t["LaunchTemplateName"] for t in ec2.describe_launch_templates()["LaunchTemplates"]
        ],
        "address": lambda: [a["AllocationId"] for a in ec2.describe_addresses()["Addresses"]],
        "nat-gateway": lambda: [
            g["NatGatewayId"] for g in ec2.describe_nat_gateways()["NatGateways"] if g["State"] != "deleted"
        ],
        "instance": lambda: [
            instance["InstanceId"]
            for reservation in ec2.describe_instances()["Reservations"]
            for instance in reservation["Instances"]
            if instance["State"]["Name"] != "terminated"
        ],
        "cluster": lambda: cloud.client("eks").list_clusters()["clusters"],
        "bucket": lambda: [b["Name"] for b in cloud.client("s3").list_buckets()["Buckets"]],
        "role": lambda: [r["RoleName"] for r in cloud.client("iam").list_roles()["Roles"]],
        "oidc-provider": lambda: [
            p["Arn"] for p in cloud.client("iam").list_open_id_connect_providers()["OpenIDConnectProviderList"]
        ],
        "repository": lambda: [
            r["repositoryName"] for r in cloud.client("ecr").describe_repositories()["repositories"]
        ],
        "log-group": lambda: [g["logGroupName"] for g in cloud.client("logs").describe_log_groups()["logGroups"]],
        "auto-scaling-group": lambda: [
            g["AutoScalingGroupName"]
            for g in cloud.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
        ],
    }
    return [f"{kind} {name}" for kind, listed in found.items() for name in listed()]


def _left_in_the_cluster(cluster: Cluster) -> list[str]:
    api = config.new_client_from_config(str(cluster.kubeconfig))
    core = client.CoreV1Api(api)
    ours = (names.SERVING_NAMESPACE, names.MONITORING_NAMESPACE)

    def named(listing: Any) -> list[str]:
        plain: Any = api.sanitize_for_serialization(listing)
        return [item["metadata"]["name"] for item in plain["items"]]

    classes = named(client.StorageV1Api(api).list_storage_class())
    return [
        *(f"namespace {name}" for name in named(core.list_namespace()) if name in ours),
        *(f"storage-class {name}" for name in classes if name == GP3_CLASS),
    ]
