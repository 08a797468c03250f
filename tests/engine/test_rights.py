"""What people's groups may do in the cluster, as the real API server's authorizer judges the program's own Roles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml
from kubernetes import client

from infra.names import DESIRED_STATE, SERVING_NAMESPACE, VLLM
from infra.roles import OPERATORS, RELEASERS
from local.cluster.kubectl import kubectl
from loraserve.contract.addresses import GATEWAY_KEYS
from tests.engine.deployed import World
from tests.manifests import manifests
from tests.unit.declared import declare

MAY = {
    OPERATORS: [
        "list pods",
        "watch events",
        "list services",
        "list apps:deployments",
        "get pods/log",
        "create pods/portforward",
        f"get configmaps {DESIRED_STATE}",
        f"get secrets {GATEWAY_KEYS}",
    ],
    RELEASERS: [f"{verb} configmaps {DESIRED_STATE}" for verb in ("get", "patch", "update")],
}
MAY_NOT = {
    OPERATORS: [
        "create pods/exec",
        "create pods/attach",
        "create pods/ephemeralcontainers",
        "delete pods",
        "list secrets",
        f"get secrets {VLLM}",
        "get configmaps another",
        f"patch configmaps {DESIRED_STATE}",
        "patch apps:deployments gateway",
        "update apps:deployments/scale vllm",
    ],
    RELEASERS: [
        "list pods",
        "create pods/portforward",
        f"get secrets {GATEWAY_KEYS}",
        "create configmaps",
        "patch configmaps another",
        f"delete configmaps {DESIRED_STATE}",
        "patch apps:deployments gateway",
        "create rbac.authorization.k8s.io:rolebindings",
    ],
}


@pytest.fixture(scope="module")
def authorizer(world: World) -> Iterator[client.AuthorizationV1Api]:
    """With the Roles of a stack, and nothing else of it."""
    kubeconfig = world.control_plane.kubeconfig
    roles = [one for one in manifests(declare("dev")) if one["kind"] in ("Role", "RoleBinding")]
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SERVING_NAMESPACE}}
    text = yaml.safe_dump_all(
        [namespace, *(one for one in roles if one["metadata"].get("namespace") == SERVING_NAMESPACE)]
    )
    kubectl(kubeconfig, "apply", "--server-side", "--filename", "-", stdin=text)
    yield client.AuthorizationV1Api(world.control_plane.client())
    kubectl(kubeconfig, "delete", "namespace", SERVING_NAMESPACE)


def allowed(authorizer: client.AuthorizationV1Api, group: str, action: str, namespace: str = SERVING_NAMESPACE) -> bool:
    """`action` is a verb, a resource with its group before a colon and a part after a slash, and perhaps a name."""
    verb, kind, *name = action.split()
    group_and_resource, _, part = kind.partition("/")
    api, _, resource = group_and_resource.rpartition(":")
    asked = client.V1ResourceAttributes(
        verb=verb, group=api, resource=resource, subresource=part, name="".join(name), namespace=namespace
    )
    spec = client.V1SubjectAccessReviewSpec(user="somebody", groups=[group], resource_attributes=asked)
    answer = authorizer.create_subject_access_review(client.V1SubjectAccessReview(spec=spec))
    assert answer.status
    return bool(answer.status.allowed)


@pytest.mark.parametrize("group", [OPERATORS, RELEASERS])
def test_a_group_may_what_its_work_needs_and_nothing_else_and_nowhere_else(
    authorizer: client.AuthorizationV1Api, group: str
) -> None:
    assert [action for action in MAY[group] if not allowed(authorizer, group, action)] == []
    assert [action for action in MAY_NOT[group] if allowed(authorizer, group, action)] == []
    assert [action for action in MAY[group] if allowed(authorizer, group, action, "kube-system")] == []
