"""The running local stack as benches see it and reach into it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from kubernetes import client, config

from infra.names import DESIRED_STATE, DESIRED_STATE_FILE, GATEWAY, GATEWAY_PORT, SERVING_NAMESPACE
from local.cluster import containerd
from local.cluster.kubectl import kubectl
from local.cluster.machine import Machine
from local.cluster.node import Node
from local.stack import LocalStack
from loraserve.contract.desired_state import Adapter, DesiredState

_CGROUPS = Path("/sys/fs/cgroup")


def gateway_url(stack: LocalStack) -> str:
    """The gateway's Service by its cluster address, which is routed from this machine."""
    address = kubectl(
        stack.place.kubeconfig,
        *("--namespace", SERVING_NAMESPACE, "get", "service", GATEWAY, "--output", "jsonpath={.spec.clusterIP}"),
    )
    return f"http://{address}:{GATEWAY_PORT}"


def core(stack: LocalStack) -> client.CoreV1Api:
    return client.CoreV1Api(config.new_client_from_config(str(stack.place.kubeconfig)))


def pods(stack: LocalStack, labels: Mapping[str, str]) -> list[client.V1Pod]:
    """Those in the serving namespace that have these labels, those on their way out included."""
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    return core(stack).list_namespaced_pod(SERVING_NAMESPACE, label_selector=selector).items or []


def containers(pod: client.V1Pod) -> dict[str, str]:
    """Ids of its running containers by name."""
    assert pod.status
    statuses = [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]
    running = [one for one in statuses if one.state and one.state.running]
    return {str(one.name): str(one.container_id).removeprefix("containerd://") for one in running}


def kill_container(stack: LocalStack, labels: Mapping[str, str], name: str) -> None:
    """SIGKILL to a container of the first such pod in which it runs."""
    running = [found[name] for pod in pods(stack, labels) if name in (found := containers(pod))]
    node(stack).run(*containerd.kill_command(running[0]))


def cgroup(stack: LocalStack, container: str) -> Path:
    """The group that bounds a container's memory."""
    name = node(stack).network.name
    top = next(path for path in (_CGROUPS / "memory" / name, _CGROUPS / name) if path.exists())
    return next(top.rglob(container))


def machine(stack: LocalStack) -> Machine:
    """Benches that reach into the node need one of this machine's own."""
    place = stack.place
    assert isinstance(place, Machine)
    return place


def node(stack: LocalStack) -> Node:
    found = machine(stack).node
    assert found
    return found


def desired(stack: LocalStack) -> DesiredState:
    held = core(stack).read_namespaced_config_map(DESIRED_STATE, SERVING_NAMESPACE)
    assert held.data
    return DesiredState.parse(held.data[DESIRED_STATE_FILE])


def put_desired(stack: LocalStack, document: str) -> None:
    """As an `up` writes it, without the rest of an `up`."""
    core(stack).patch_namespaced_config_map(DESIRED_STATE, SERVING_NAMESPACE, {"data": {DESIRED_STATE_FILE: document}})


def swapped(state: DesiredState, adapter: Adapter) -> str:
    """The document with this version in the place of the one of its name."""
    others = [one for one in state.adapters if one.name != adapter.name]
    return state.model_copy(update={"adapters": (*others, adapter)}).to_json()


def publish_versions(stack: LocalStack, served_names: Sequence[str]) -> list[Adapter]:
    """Trains what is missing of them and uploads them."""
    bucket = stack.pulumi.output("adapterBucket")
    entries = [stack.publish(folder, name, bucket) for name, folder in stack.train(*served_names).items()]
    return [Adapter.model_validate(entry) for entry in entries]


def wait_until(
    true: Callable[[], object], what: str = "what was waited for", limit_s: float = 300, pause_s: float = 1
) -> float:
    """Returns the seconds that it took. Raises TimeoutError."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > limit_s:
            raise TimeoutError(f"not within {limit_s:g} s: {what}")
        time.sleep(pause_s)
    return time.monotonic() - began


@contextmanager
def own_stack() -> Iterator[LocalStack]:
    """A local stack of the bench's own that is up, and gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="loraserve-bench-") as folder:
        stack = LocalStack(Path(folder) / "state")
        try:
            stack.up()
            yield stack
        finally:
            stack.down()
