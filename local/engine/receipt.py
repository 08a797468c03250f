"""What a destroyed stack left behind in the emulated AWS and in the cluster: should be nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError, WaiterError
from kubernetes import client, config

from infra import names
from local.engine.cloud import Cloud
from local.engine.workspace import Cluster
from loraserve.operator.stack.aws_commands import Command, Connect
from loraserve.operator.stack.leftovers import Leftover, StackState, find


def left_behind(stack: str, cloud: Cloud, cluster: Cluster) -> list[str]:
    """Names of everything that a destroyed stack had and that is still there, as `kind name`."""
    return left_in_aws(stack, cloud) + _left_in_the_cluster(cluster)


def left_in_aws(stack: str, cloud: Cloud) -> list[str]:
    """The same of the emulated AWS alone."""
    return [f"{left.kind} {left.name}" for left in find(stack, StackState(), cloud.client)]


def delete(found: Iterable[Leftover], connect: Connect) -> None:
    """Does what a person would who has read `loraserve leftovers`: in an emulated AWS there is nothing but the stack."""
    for left in found:
        print(f"deleting {left.kind} {left.name}", flush=True)
        try:
            for command in left.commands:
                _carry_out(command, connect(command.service))
        except ClientError as error:
            print(f"not deleted: {error}", flush=True)


def _carry_out(command: Command, api: Any) -> None:
    if not command.waits:
        getattr(api, command.operation)(**command.parameters)
        return
    with contextlib.suppress(WaiterError):  # a creation that failed can be deleted as well
        api.get_waiter(command.operation).wait(**command.parameters)


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


def _left_in_the_cluster(cluster: Cluster) -> list[str]:
    api = config.new_client_from_config(str(cluster.kubeconfig))
    core = client.CoreV1Api(api)
    ours = (names.SERVING_NAMESPACE, names.MONITORING_NAMESPACE)

    def named(listing: Any) -> list[str]:
        plain: Any = api.sanitize_for_serialization(listing)
        return [item["metadata"]["name"] for item in plain["items"]]

    volumes = named(core.list_persistent_volume())
    return [
        *(f"namespace {name}" for name in named(core.list_namespace()) if name in ours),
        *(f"persistent-volume {name}" for name in volumes if name == names.PROMETHEUS_VOLUME),
    ]
