"""Namespaces with their Pod Security level, and the NetworkPolicies that say who may talk to whom."""

from __future__ import annotations

from urllib.parse import urlsplit

import pulumi
import pulumi_kubernetes as k8s

from infra.names import (
    AGENT_PORT,
    DNS_PORT,
    HTTPS_PORT,
    MONITORING_NAMESPACE,
    SYSTEM_NAMESPACE,
    VLLM_CLIENT_LABELS,
    VLLM_PORT,
    VLLM_SELECTOR,
)

METADATA_ADDRESS = "169.254.169.254/32"
_NAMESPACE_LABEL = "kubernetes.io/metadata.name"

net = k8s.networking.v1


def create_namespace(name: str, level: str, opts: pulumi.ResourceOptions) -> pulumi.Output[str]:
    """A namespace that enforces a Pod Security level (restricted, baseline or privileged); returns its name."""
    labels = {f"pod-security.kubernetes.io/{mode}": level for mode in ("enforce", "warn", "audit")}
    namespace = k8s.core.v1.Namespace(name, metadata={"name": name, "labels": labels}, opts=opts)
    return namespace.metadata.apply(lambda metadata: str(metadata.name))


class Isolation(pulumi.ComponentResource):
    """In the serving namespace nothing is allowed but what a policy here allows."""

    def __init__(
        self,
        name: str,
        *,
        namespace: pulumi.Input[str],
        aws_endpoint_url: str | None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:Isolation", name, None, opts)
        self._namespace = namespace
        self._child = pulumi.ResourceOptions(parent=self)
        everyone: dict[str, str] = {}
        self._create("default-deny", everyone, ingress=[], egress=[])
        self._create("allow-dns", everyone, egress=[{"to": [_dns_pods()], "ports": _dns_ports()}])
        self._create(
            "vllm-out",
            VLLM_SELECTOR,
            egress=[{"to": [_internet()], "ports": [_tcp(HTTPS_PORT)]}],
        )
        if aws_endpoint_url:  # an emulated AWS, which need not listen on HTTPS's port
            port = urlsplit(aws_endpoint_url).port or HTTPS_PORT
            self._create("vllm-to-aws-endpoint", VLLM_SELECTOR, egress=[{"to": [_internet()], "ports": [_tcp(port)]}])
        self._create(
            "vllm-from-clients",
            VLLM_SELECTOR,
            ingress=[_from(VLLM_PORT, {"pod_selector": {"match_labels": VLLM_CLIENT_LABELS}})],
        )
        self._create("metrics-from-prometheus", VLLM_SELECTOR, ingress=[_from(AGENT_PORT, _prometheus())])
        self.register_outputs({})

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


def _from(port: int, peer: net.NetworkPolicyPeerArgsDict) -> net.NetworkPolicyIngressRuleArgsDict:
    return {"from_": [peer], "ports": [_tcp(port)]}


def _internet() -> net.NetworkPolicyPeerArgsDict:
    """S3, STS and the model hub are outside the cluster, which no namespace selector can name."""
    return {"ip_block": {"cidr": "0.0.0.0/0", "except_": [METADATA_ADDRESS]}}


def _dns_pods() -> net.NetworkPolicyPeerArgsDict:
    return {
        "namespace_selector": {"match_labels": {_NAMESPACE_LABEL: SYSTEM_NAMESPACE}},
        "pod_selector": {"match_labels": {"k8s-app": "kube-dns"}},
    }


def _prometheus() -> net.NetworkPolicyPeerArgsDict:
    return {
        "namespace_selector": {"match_labels": {_NAMESPACE_LABEL: MONITORING_NAMESPACE}},
        "pod_selector": {"match_labels": {"app.kubernetes.io/name": "prometheus"}},
    }


def _dns_ports() -> list[net.NetworkPolicyPortArgsDict]:
    return [{"protocol": protocol, "port": DNS_PORT} for protocol in ("UDP", "TCP")]


def _tcp(port: int) -> net.NetworkPolicyPortArgsDict:
    return {"protocol": "TCP", "port": port}
