"""Namespaces with their Pod Security level, and the NetworkPolicies that say who may talk to whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

import pulumi
import pulumi_kubernetes as k8s

from infra.names import (
    AGENT_PORT,
    DNS_PORT,
    GATEWAY_CLIENT_LABELS,
    GATEWAY_METRICS_PORT,
    GATEWAY_PORT,
    GATEWAY_SELECTOR,
    GATEWAY_TLS_PORT,
    HTTPS_PORT,
    KEDA_OPERATOR_LABELS,
    MONITORING_NAMESPACE,
    SYSTEM_NAMESPACE,
    VLLM_PORT,
    VLLM_SELECTOR,
)

METADATA_ADDRESS = "169.254.169.254/32"
_EKS_SERVICE_CIDRS = ("10.100.0.0/16", "172.20.0.0/16")
_NAMESPACE_LABEL = "kubernetes.io/metadata.name"

net = k8s.networking.v1


def create_namespace(name: str, level: str, opts: pulumi.ResourceOptions) -> pulumi.Output[str]:
    """A namespace that enforces a Pod Security level (restricted, baseline or privileged); returns its name."""
    labels = {f"pod-security.kubernetes.io/{mode}": level for mode in ("enforce", "warn", "audit")}
    namespace = k8s.core.v1.Namespace(name, metadata={"name": name, "labels": labels}, opts=opts)
    return namespace.metadata.apply(lambda metadata: str(metadata.name))


@dataclass(frozen=True)
class ApiServer:
    """Where pods reach the Kubernetes API: its addresses before and after the Service's translation."""

    cidrs: tuple[str, ...]
    port: int


def eks_api_server(vpc_cidr: IPv4Network) -> ApiServer:
    """EKS puts the API's interfaces into the VPC, and its Service into one of two ranges."""
    return ApiServer((str(vpc_cidr), *_EKS_SERVICE_CIDRS), HTTPS_PORT)


class Isolation(pulumi.ComponentResource):
    """In the serving namespace nothing is allowed but what a policy here allows."""

    def __init__(
        self,
        name: str,
        *,
        namespace: pulumi.Input[str],
        api_server: ApiServer,
        client_namespaces: Sequence[str] = (),
        load_balancer_cidr: IPv4Network | None = None,
        emulated_aws: bool = False,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:Isolation", name, None, opts)
        self._namespace = namespace
        self._child = pulumi.ResourceOptions(parent=self)
        everyone: dict[str, str] = {}
        self._create("default-deny", everyone, ingress=[], egress=[])
        self._create("allow-dns", everyone, egress=[{"to": [_dns_pods()], "ports": _dns_ports()}])
        self._guard_vllm()
        self._guard_gateway(api_server, client_namespaces, load_balancer_cidr)
        if emulated_aws:  # it, and the API of a cluster beside it, listen on ports of their own
            for selector in (VLLM_SELECTOR, GATEWAY_SELECTOR):
                self._create(f"{selector['app']}-to-local-servers", selector, egress=[{"to": [_internet()]}])
        self.register_outputs({})

    def _guard_vllm(self) -> None:
        """Only the gateway reaches the pod, and Prometheus its metrics; within the port, vLLM's key guards the load API."""
        self._create("vllm-out", VLLM_SELECTOR, egress=[{"to": [_internet()], "ports": [_tcp(HTTPS_PORT)]}])
        self._create(
            "vllm-from-gateway",
            VLLM_SELECTOR,
            ingress=[_from(_pods(GATEWAY_SELECTOR), VLLM_PORT), _from(_pods(GATEWAY_SELECTOR), AGENT_PORT)],
        )
        self._create("metrics-from-prometheus", VLLM_SELECTOR, ingress=[_from(_prometheus(), AGENT_PORT)])

    def _guard_gateway(
        self, api_server: ApiServer, client_namespaces: Sequence[str], load_balancer_cidr: IPv4Network | None
    ) -> None:
        """Clients are the pods that say so by their label, and all pods of the namespaces that the stack names."""
        addresses: list[net.NetworkPolicyPeerArgsDict] = [{"ip_block": {"cidr": cidr}} for cidr in api_server.cidrs]
        self._create(
            "gateway-out",
            GATEWAY_SELECTOR,
            egress=[
                {"to": [_pods(VLLM_SELECTOR)], "ports": [_tcp(VLLM_PORT), _tcp(AGENT_PORT)]},
                {"to": addresses, "ports": [_tcp(api_server.port)]},
            ],
        )
        ingress = [
            _from({"namespace_selector": {}, "pod_selector": {"match_labels": GATEWAY_CLIENT_LABELS}}, GATEWAY_PORT),
            *(_from({"namespace_selector": _namespace(name)}, GATEWAY_PORT) for name in client_namespaces),
            _from(_prometheus(), GATEWAY_METRICS_PORT),
            _from(_system_pods(KEDA_OPERATOR_LABELS), GATEWAY_METRICS_PORT),
        ]
        if load_balancer_cidr:  # its connections come from the node that they entered at
            ingress.append(_from({"ip_block": {"cidr": str(load_balancer_cidr)}}, GATEWAY_TLS_PORT))
        self._create("gateway-in", GATEWAY_SELECTOR, ingress=ingress)

    def _create(
        self,
        name: str,
        selector: dict[str, str],
        *,
        ingress: list[net.NetworkPolicyIngressRuleArgsDict] | None = None,
        egress: list[net.NetworkPolicyEgressRuleArgsDict] | None = None,
    ) -> None:
        directions = [kind for kind, rules in (("Ingress", ingress), ("Egress", egress)) if rules is not None]
        net.NetworkPolicy(
            name,
            metadata={"name": name, "namespace": self._namespace},
            spec={
                "pod_selector": {"match_labels": selector} if selector else {},
                "policy_types": directions,
                "ingress": ingress,
                "egress": egress,
            },
            opts=self._child,
        )


def _from(peer: net.NetworkPolicyPeerArgsDict, port: int) -> net.NetworkPolicyIngressRuleArgsDict:
    return {"from_": [peer], "ports": [_tcp(port)]}


def _pods(labels: dict[str, str]) -> net.NetworkPolicyPeerArgsDict:
    """Of the serving namespace."""
    return {"pod_selector": {"match_labels": labels}}


def _namespace(name: str) -> k8s.meta.v1.LabelSelectorArgsDict:
    return {"match_labels": {_NAMESPACE_LABEL: name}}


def _internet() -> net.NetworkPolicyPeerArgsDict:
    """S3, STS and the model hub are outside the cluster, which no namespace selector can name."""
    return {"ip_block": {"cidr": "0.0.0.0/0", "except_": [METADATA_ADDRESS]}}


def _dns_pods() -> net.NetworkPolicyPeerArgsDict:
    return _system_pods({"k8s-app": "kube-dns"})


def _system_pods(labels: dict[str, str]) -> net.NetworkPolicyPeerArgsDict:
    return {
        "namespace_selector": _namespace(SYSTEM_NAMESPACE),
        "pod_selector": {"match_labels": labels},
    }


def _prometheus() -> net.NetworkPolicyPeerArgsDict:
    return {
        "namespace_selector": _namespace(MONITORING_NAMESPACE),
        "pod_selector": {"match_labels": {"app.kubernetes.io/name": "prometheus"}},
    }


def _dns_ports() -> list[net.NetworkPolicyPortArgsDict]:
    return [{"protocol": protocol, "port": DNS_PORT} for protocol in ("UDP", "TCP")]


def _tcp(port: int) -> net.NetworkPolicyPortArgsDict:
    return {"protocol": "TCP", "port": port}
