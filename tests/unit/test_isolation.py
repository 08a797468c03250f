"""Who reaches whom, by reasoning over the rendered NetworkPolicies as Kubernetes would."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from infra import names
from infra.gateway import how_to_call
from tests.stack_values import CHECKOUT, adapter
from tests.unit.declared import Program, declare

SERVING, MONITORING, SYSTEM = names.SERVING_NAMESPACE, names.MONITORING_NAMESPACE, names.SYSTEM_NAMESPACE


@dataclass(frozen=True)
class Pod:
    namespace: str
    labels: dict[str, str] = field(default_factory=dict)


VLLM = Pod(SERVING, names.VLLM_LABELS)
GATEWAY = Pod(SERVING, names.GATEWAY_LABELS)
CLIENT = Pod(SERVING, names.GATEWAY_CLIENT_LABELS)
CLIENT_ELSEWHERE = Pod("default", names.GATEWAY_CLIENT_LABELS)
STRANGER = Pod(SERVING, {"app": "notebook"})
STRANGER_ELSEWHERE = Pod("default", {"app": "notebook"})
IMPOSTOR = Pod("default", names.GATEWAY_LABELS)
"""Anybody may give a pod any label in a namespace of their own."""
PROMETHEUS = Pod(MONITORING, {"app.kubernetes.io/name": "prometheus"})
FAKE_PROMETHEUS = Pod("default", {"app.kubernetes.io/name": "prometheus"})
GRAFANA = Pod(MONITORING, {"app.kubernetes.io/name": "grafana"})
ALERTMANAGER = Pod(MONITORING, {"app.kubernetes.io/name": "alertmanager"})
# Labels as the charts render them.
OPERATOR = Pod(MONITORING, {"app.kubernetes.io/name": "kube-prometheus-stack-prometheus-operator"})
KUBE_STATE = Pod(MONITORING, {"app.kubernetes.io/name": "kube-state-metrics"})
GPU_EXPORTER = Pod(MONITORING, {"app.kubernetes.io/name": "dcgm-exporter"})
KEDA = Pod(SYSTEM, names.KEDA_OPERATOR_LABELS)
DNS = Pod(SYSTEM, {"k8s-app": "kube-dns"})
API_SERVER, API_SERVICE, NODE = "10.0.3.4", "172.20.0.1", "10.0.5.6"
INTERNET, METADATA = "52.95.110.1", "169.254.169.254"

EVERYBODY = {
    "vllm": VLLM,
    "gateway": GATEWAY,
    "client": CLIENT,
    "client-elsewhere": CLIENT_ELSEWHERE,
    "stranger": STRANGER,
    "stranger-elsewhere": STRANGER_ELSEWHERE,
    "impostor": IMPOSTOR,
    "prometheus": PROMETHEUS,
    "fake-prometheus": FAKE_PROMETHEUS,
    "grafana": GRAFANA,
    "alertmanager": ALERTMANAGER,
    "operator": OPERATOR,
    "kube-state": KUBE_STATE,
    "gpu-exporter": GPU_EXPORTER,
    "keda": KEDA,
    "dns": DNS,
    "node": NODE,
    "internet": INTERNET,
    "metadata": METADATA,
    "api-server": API_SERVER,
    "api-service": API_SERVICE,
}
PORTS = (
    53,
    80,
    443,
    587,
    names.VLLM_PORT,
    names.AGENT_PORT,
    names.GATEWAY_PORT,
    names.GATEWAY_TLS_PORT,
    names.GATEWAY_METRICS_PORT,
    10250,
)
SERVERS = ("vllm", "gateway", "client", "stranger")
MONITORS = ("prometheus", "grafana", "alertmanager", "operator", "kube-state", "gpu-exporter")
MAY_ENTER = {
    ("gateway", "vllm", names.VLLM_PORT),
    ("gateway", "vllm", names.AGENT_PORT),
    ("prometheus", "vllm", names.AGENT_PORT),
    ("client", "gateway", names.GATEWAY_PORT),
    ("client-elsewhere", "gateway", names.GATEWAY_PORT),
    ("prometheus", "gateway", names.GATEWAY_METRICS_PORT),
    ("keda", "gateway", names.GATEWAY_METRICS_PORT),
    ("grafana", "prometheus", 9090),
    *(("prometheus", monitor, port) for monitor in MONITORS for port in PORTS),
}
"""Every connection that a pod of ours takes."""
MAY_LEAVE = {
    ("gateway", "vllm", names.VLLM_PORT),
    ("gateway", "vllm", names.AGENT_PORT),
    ("gateway", "api-server", 443),
    ("gateway", "api-service", 443),
    ("gateway", "internet", 443),
    ("gateway", "node", 443),  # in the VPC's range, as the API server's interfaces are
    ("vllm", "api-server", 443),
    ("vllm", "api-service", 443),
    ("vllm", "node", 443),
    ("vllm", "internet", 443),
    ("grafana", "prometheus", 9090),
    *(
        (pod, api, 443)
        for pod in ("grafana", "operator", "kube-state")
        for api in ("api-server", "api-service", "node")
    ),
    *(("prometheus", other, port) for other in EVERYBODY if other not in ("internet", "metadata") for port in PORTS),
    *((pod, "dns", 53) for pod in (*SERVERS, *MONITORS)),
}
"""Every connection that a pod of ours opens."""


@pytest.fixture(scope="module")
def policies() -> list[dict[str, Any]]:
    program: Program = declare("dev")
    return [resource.inputs for resource in program.of_type("networking.k8s.io/v1:NetworkPolicy")]


def selected(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return (selector.get("matchLabels") or {}).items() <= labels.items()


def peer_matches(peer: dict[str, Any], other: Pod | str, namespace: str) -> bool:
    """Whether a peer of a policy in this namespace is the other end."""
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
        else other.namespace == namespace
    )
    return namespace_ok and selected(peer.get("podSelector") or {}, other.labels)


def allowed(
    policies: list[dict[str, Any]], direction: str, pod: Pod, other: Pod | str, port: int, protocol: str = "TCP"
) -> bool:
    applying = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == pod.namespace
        and direction in policy["spec"]["policyTypes"]
        and selected(policy["spec"]["podSelector"], pod.labels)
    ]
    peers = "from" if direction == "Ingress" else "to"
    rules = [rule for spec in applying for rule in spec.get(direction.lower()) or []]
    return not applying or any(
        any(peer_matches(peer, other, pod.namespace) for peer in rule[peers])
        and (
            "ports" not in rule
            or any(entry["port"] == port and entry["protocol"] == protocol for entry in rule["ports"])
        )
        for rule in rules
    )


def test_every_pair_has_what_is_listed_and_nothing_else_comes_in(policies: list[dict[str, Any]]) -> None:
    entering = {
        (source, target, port)
        for target in (*SERVERS, *MONITORS)
        for source in EVERYBODY
        for port in PORTS
        for pod in [EVERYBODY[target]]
        if isinstance(pod, Pod) and allowed(policies, "Ingress", pod, EVERYBODY[source], port)
    }
    assert entering == MAY_ENTER


def test_every_pair_has_what_is_listed_and_nothing_else_goes_out(policies: list[dict[str, Any]]) -> None:
    leaving = {
        (source, target, port)
        for source in (*SERVERS, *MONITORS)
        for target in EVERYBODY
        for port in PORTS
        for pod in [EVERYBODY[source]]
        if isinstance(pod, Pod) and allowed(policies, "Egress", pod, EVERYBODY[target], port)
    }
    assert leaving == MAY_LEAVE


def test_who_evaluates_is_a_client_and_writes_to_s3_and_nobody_enters() -> None:
    evaluation = {"adapter": "aws-rag-qa", "file": str(CHECKOUT / "tests" / "evaluation" / "faq.yaml")}
    rendered = declare("dev", adapters=[adapter()], evaluations=[evaluation])
    (job,) = rendered.of_type("batch/v1:CronJob")
    policies = [resource.inputs for resource in rendered.of_type("networking.k8s.io/v1:NetworkPolicy")]
    pod = Pod(SERVING, job.inputs["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"])
    ends = [(name, who, port) for name, who in EVERYBODY.items() for port in PORTS]
    leaving = {(name, port) for name, who, port in ends if allowed(policies, "Egress", pod, who, port)}
    https = {(name, 443) for name in ("internet", "node", "api-server", "api-service")}
    assert leaving == https | {("gateway", names.GATEWAY_PORT), ("dns", 53)}
    entering = {name for name, who, port in ends if allowed(policies, "Ingress", pod, who, port)}
    assert not entering
    assert allowed(policies, "Ingress", GATEWAY, pod, names.GATEWAY_PORT)
    assert not allowed(policies, "Ingress", VLLM, pod, names.VLLM_PORT)


def test_a_load_test_is_a_client_and_nothing_else() -> None:
    rendered = declare("dev", loadTest="phases")
    (job,) = rendered.of_type("batch/v1:CronJob")
    policies = [resource.inputs for resource in rendered.of_type("networking.k8s.io/v1:NetworkPolicy")]
    pod = Pod(SERVING, job.inputs["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"])
    ends = [(name, who, port) for name, who in EVERYBODY.items() for port in PORTS]
    leaving = {(name, port) for name, who, port in ends if allowed(policies, "Egress", pod, who, port)}
    assert leaving == {("gateway", names.GATEWAY_PORT), ("dns", 53)}
    assert not {name for name, who, port in ends if allowed(policies, "Ingress", pod, who, port)}
    assert allowed(policies, "Ingress", GATEWAY, pod, names.GATEWAY_PORT)


def test_alertmanager_calls_who_is_to_be_told_and_nobody_else() -> None:
    alerting = {
        "slack": {"channel": "#ops", "url": "https://hooks.slack.com/services/x"},
        "email": {"to": ["ops@example.com"], "sender": "l@example.com", "smarthost": "smtp.example.com:587"},
    }
    rendered = declare("dev", alerting=alerting, secrets=["alerting"]).of_type("networking.k8s.io/v1:NetworkPolicy")
    called = {
        (name, port)
        for name, who in EVERYBODY.items()
        for port in PORTS
        if isinstance(who, str) and allowed([policy.inputs for policy in rendered], "Egress", ALERTMANAGER, who, port)
    }
    assert {name for name, _ in called} >= {"internet"}
    assert {port for _, port in called} == {443, 587}
    assert "metadata" not in {name for name, _ in called}


@pytest.mark.parametrize(
    ("address", "port", "reached"),
    [
        ("http://collector.observability.svc:4318", 4318, {"collector"}),
        ("https://otlp.example.com", 443, {"internet", "node", "api-server", "api-service"}),
        ("http://otlp.example.com:4318", 4318, {"internet", "node", "api-server", "api-service"}),
    ],
)
def test_spans_are_sent_to_their_collector_and_nowhere_else(address: str, port: int, reached: set[str]) -> None:
    rendered = declare("dev", tracesEndpoint=address).of_type("networking.k8s.io/v1:NetworkPolicy")
    policies = [policy.inputs for policy in rendered]
    everybody = EVERYBODY | {"collector": Pod("observability")}
    for name, pod in (("vllm", VLLM), ("gateway", GATEWAY)):
        called = {
            (other, number)
            for other, who in everybody.items()
            for number in (*PORTS, 4318)
            if allowed(policies, "Egress", pod, who, number)
        }
        before = {(target, number) for source, target, number in MAY_LEAVE if source == name}
        assert called - before == {(other, port) for other in reached} - before
    assert not allowed(policies, "Egress", STRANGER, everybody["collector"], 4318)


def test_names_are_asked_over_udp_too(policies: list[dict[str, Any]]) -> None:
    assert allowed(policies, "Egress", VLLM, DNS, 53, "UDP")
    assert allowed(policies, "Egress", GATEWAY, DNS, 53, "UDP")
    assert not allowed(policies, "Egress", VLLM, Pod(SYSTEM, {"app": "other"}), 53, "UDP")


def test_what_one_end_may_send_the_other_end_takes(policies: list[dict[str, Any]]) -> None:
    """Between pods of ours a connection needs both; one-sided rules are mistakes."""
    ours = {"vllm", "gateway"}
    inside = {pair for pair in MAY_ENTER if {pair[0], pair[1]} <= ours}
    assert inside == {pair for pair in MAY_LEAVE if {pair[0], pair[1]} <= ours}


def test_a_namespace_of_clients_adds_its_pods_to_those_with_the_label_and_nobody_else() -> None:
    program = declare("dev", gatewayClientNamespaces=["default"])
    rendered = [resource.inputs for resource in program.of_type("networking.k8s.io/v1:NetworkPolicy")]
    everybody = EVERYBODY | {"third": Pod("team-b", {"app": "notebook"})}
    admitted = {
        (name, port)
        for name, who in everybody.items()
        for port in PORTS
        if allowed(rendered, "Ingress", GATEWAY, who, port)
    }
    before = {(source, port) for source, target, port in MAY_ENTER if target == "gateway"}
    inside = {name for name, who in EVERYBODY.items() if isinstance(who, Pod) and who.namespace == "default"}
    assert inside >= {"stranger-elsewhere", "impostor"}
    assert admitted - before == {(name, names.GATEWAY_PORT) for name in inside} - before
    assert not allowed(rendered, "Ingress", VLLM, STRANGER_ELSEWHERE, names.VLLM_PORT)


def test_the_outputs_say_which_pods_may_call() -> None:
    assert how_to_call("ml-models", [])["urlInCluster"] == "http://gateway.ml-models:8080/v1"
    assert how_to_call("ml-models", [])["podsThatMayCall"] == "those with the label loraserve-client=true"
    assert how_to_call("ml-models", ["team-a", "team-b"])["podsThatMayCall"].endswith(
        ", and all in the namespaces team-a, team-b"
    )


def test_a_load_balancer_adds_its_own_port_for_nodes_and_nothing_else() -> None:
    with_balancer = declare("dev", gatewayCertificateArn="arn:aws:acm:eu-central-1:123456789012:certificate/c")
    rendered = [resource.inputs for resource in with_balancer.of_type("networking.k8s.io/v1:NetworkPolicy")]
    admitted = {
        (name, port)
        for name, who in EVERYBODY.items()
        for port in PORTS
        if allowed(rendered, "Ingress", GATEWAY, who, port)
    }
    before = {(source, port) for source, target, port in MAY_ENTER if target == "gateway"}
    assert admitted - before == {("node", names.GATEWAY_TLS_PORT), ("api-server", names.GATEWAY_TLS_PORT)}


def test_with_an_emulated_aws_its_port_is_reached_and_by_nobody_else() -> None:
    program = declare("local", local={"awsEndpointUrl": "http://172.18.0.1:4566"})
    policies = [resource.inputs for resource in program.of_type("networking.k8s.io/v1:NetworkPolicy")]
    assert allowed(policies, "Egress", VLLM, "172.18.0.1", 4566)
    assert allowed(policies, "Egress", GATEWAY, "172.18.0.1", 6443)
    assert not allowed(policies, "Egress", STRANGER, "172.18.0.1", 4566)
