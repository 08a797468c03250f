"""The running local stack as benches see it."""

from __future__ import annotations

from collections.abc import Mapping

from kubernetes import client, config

from infra.names import GATEWAY, GATEWAY_PORT, SERVING_NAMESPACE
from local.cluster.kubectl import kubectl
from local.cluster.machine import Machine
from local.stack import LocalStack


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


def machine(stack: LocalStack) -> Machine:
    """Benches that reach into the node need one of this machine's own."""
    place = stack.place
    assert isinstance(place, Machine)
    return place
