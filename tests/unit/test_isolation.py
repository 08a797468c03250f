"""Who reaches whom, by reasoning over the rendered NetworkPolicies as Kubernetes would."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from infra import names
from tests.unit.declared import Program, declare, declared

SERVING, MONITORING, SYSTEM = names.SERVING_NAMESPACE, names.MONITORING_NAMESPACE, names.SYSTEM_NAMESPACE


@dataclass(frozen=True)
class Pod:
    namespace: str
    labels: dict[str, str] = field(default_factory=dict)


VLLM = Pod(SERVING, names.VLLM_LABELS)
CLIENT = Pod(SERVING, names.VLLM_CLIENT_LABELS)
STRANGER = Pod(SERVING, {"app": "notebook"})
ELSEWHERE = Pod("default", names.VLLM_CLIENT_LABELS)
PROMETHEUS = Pod(MONITORING, {"app.kubernetes.io/name": "prometheus"})
GRAFANA = Pod(MONITORING, {"app.kubernetes.io/name": "grafana"})
DNS = Pod(SYSTEM, {"k8s-app": "kube-dns"})


@pytest.fixture(scope="module")
def policies() -> list[dict[str, Any]]:
    program: Program = declared("dev")
    return [resource.inputs for resource in program.of_type("networking.k8s.io/v1:NetworkPolicy")]


def selected(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return (selector.get("matchLabels") or {}).items() <= labels.items()


def peer_matches(peer: dict[str, Any], other: Pod | str) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        if not isinstance(other, str) or ip_address(other) not in ip_network(block["cidr"]):
            return False
        return not any(ip_address(other) in ip_network(cidr) for cidr in block.get("except", []))
    if isinstance(other, str):
        return False
    namespace_ok = (
        selected(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace})
        if "namespaceSelector" in peer
        else other.namespace == SERVING
    )
    return namespace_ok and selected(peer.get("podSelector") or {}, other.labels)


def allowed(
    policies: list[dict[str, Any]], direction: str, pod: Pod, other: Pod | str, port: int, protocol: str = "TCP"
) -> bool:
    if pod.namespace != SERVING:
        return True  # our policies say nothing about other namespaces' pods
    applying = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"]["policyTypes"] and selected(policy["spec"]["podSelector"], pod.labels)
    ]
    peers = "from" if direction == "Ingress" else "to"
    rules = [rule for spec in applying for rule in spec.get(direction.lower()) or []]
    return not applying or any(
        any(peer_matches(peer, other) for peer in rule[peers])
        and any(entry["port"] == port and entry["protocol"] == protocol for entry in rule["ports"])
        for rule in rules
    )


@pytest.mark.parametrize(
    ("source", "port", "reached"),
    [
        (CLIENT, names.VLLM_PORT, True),
        (STRANGER, names.VLLM_PORT, False),
        (ELSEWHERE, names.VLLM_PORT, False),
        (PROMETHEUS, names.VLLM_PORT, False),
        (PROMETHEUS, names.AGENT_PORT, True),
        (GRAFANA, names.AGENT_PORT, False),
        (CLIENT, names.AGENT_PORT, False),
        (DNS, names.VLLM_PORT, False),
    ],
)
def test_who_reaches_vllm(policies: list[dict[str, Any]], source: Pod, port: int, reached: bool) -> None:
    assert allowed(policies, "Ingress", VLLM, source, port) is reached


@pytest.mark.parametrize(
    ("target", "port", "protocol", "reached"),
    [
        ("52.95.110.1", 443, "TCP", True),
        ("52.95.110.1", 80, "TCP", False),
        ("169.254.169.254", 443, "TCP", False),
        (DNS, 53, "UDP", True),
        (DNS, 53, "TCP", True),
        (Pod(SYSTEM, {"app": "other"}), 53, "UDP", False),
        (STRANGER, 443, "TCP", False),
    ],
)
def test_what_vllm_reaches(
    policies: list[dict[str, Any]], target: Pod | str, port: int, protocol: str, reached: bool
) -> None:
    assert allowed(policies, "Egress", VLLM, target, port, protocol) is reached


def test_a_pod_that_no_policy_names_is_cut_off(policies: list[dict[str, Any]]) -> None:
    assert not allowed(policies, "Ingress", STRANGER, CLIENT, 8080)
    assert not allowed(policies, "Egress", STRANGER, "52.95.110.1", 443)


def test_an_emulated_aws_is_reached_at_its_port_and_stays_the_only_one() -> None:
    program = declare("local", awsEndpointUrl="http://172.18.0.1:4566")
    policies = [resource.inputs for resource in program.of_type("networking.k8s.io/v1:NetworkPolicy")]
    assert allowed(policies, "Egress", VLLM, "172.18.0.1", 4566)
    assert not allowed(policies, "Egress", VLLM, "172.18.0.1", 6443)
    assert not allowed(policies, "Egress", STRANGER, "172.18.0.1", 4566)
