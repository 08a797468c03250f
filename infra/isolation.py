"""Namespaces with their Pod Security level, and the NetworkPolicies that say who may talk to whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

import pulumi
import pulumi_kubernetes as k8s

from infra.names import (
    AGENT_PORT,
    ALERTMANAGER,
    DNS_PORT,
    EVALUATOR_SELECTOR,
    GATEWAY_CLIENT_LABELS,
    GATEWAY_METRICS_PORT,
    GATEWAY_PORT,
    GATEWAY_SELECTOR,
    GATEWAY_TLS_PORT,
    HTTPS_PORT,
    KEDA_OPERATOR_LABELS,
    LOAD_TEST_SELECTOR,
    MONITORING_NAMESPACE,
    PROMETHEUS_PORT,
    START_CACHE_WRITER_LABELS,
    SYSTEM_NAMESPACE,
    TRAINING_LABELS,
    VLLM_PORT,
    VLLM_SELECTOR,
)
from loraserve.planning import traces

METADATA_ADDRESS = "169.254.169.254/32"
_EKS_SERVICE_CIDRS = ("10.100.0.0/16", "172.20.0.0/16")
_NAMESPACE_LABEL = "kubernetes.io/metadata.name"
_EVERYONE: dict[str, str] = {}
_PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}
_ALERTMANAGER = {"app.kubernetes.io/name": ALERTMANAGER}
_GRAFANA = {"app.kubernetes.io/name": "grafana"}
_WATCH_THE_API = (
    _GRAFANA,
    {"app.kubernetes.io/name": "kube-state-metrics"},
    {"app.kubernetes.io/name": "kube-prometheus-stack-prometheus-operator"},
)
"""Grafana's sidecars look for dashboards. Prometheus reaches the API with the rest of the cluster."""

net = k8s.networking.v1


def create_namespace(name: str, level: str, opts: pulumi.ResourceOptions) -> pulumi.Output[str]:
    """A namespace that enforces a Pod Security level (restricted, baseline or privileged); returns its name."""
    labels = {f"pod-security.kubernetes.io/{mode}": level for mode in ("enforce", "warn", "audit")}
    namespace = k8s.core.v1.Namespace(name, metadata={"name": name, "labels": labels}, opts=opts)
    return namespace.metadata.apply(lambda metadata: str(metadata.name))


@dataclass(frozen=True)
class ApiServer:
    """Where pods reach the Kubernetes API: its addresses before and after the Service's translation."""

    cidrs: tuple[pulumi.Input[str], ...]
    port: int


def eks_api_server(vpc_cidr: pulumi.Input[str]) -> ApiServer:
    """EKS puts the API's interfaces into the VPC, and its Service into one of two ranges."""
    return ApiServer((vpc_cidr, *_EKS_SERVICE_CIDRS), HTTPS_PORT)


class _Policies(pulumi.ComponentResource):
    """A namespace in which nothing is allowed but DNS and what further policies allow."""

    def __init__(
        self,
        kind: str,
        name: str,
        namespace: pulumi.Input[str],
        opts: pulumi.ResourceOptions | None,
        prefix: str = "",
    ) -> None:
        super().__init__(f"loraserve:infra:{kind}", name, None, opts)
        self._namespace = namespace
        self._prefix = prefix
        self._child = pulumi.ResourceOptions(parent=self)
        self._create("default-deny", _EVERYONE, ingress=[], egress=[])
        self._create("allow-dns", _EVERYONE, egress=[{"to": [_dns_pods()], "ports": _dns_ports()}])

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
            f"{self._prefix}{name}",
            metadata={"name": name, "namespace": self._namespace},
            spec={
                "pod_selector": {"match_labels": selector} if selector else {},
                "policy_types": directions,
                "ingress": ingress,
                "egress": egress,
            },
            opts=self._child,
        )


class MonitoringIsolation(_Policies):
    """Prometheus asks everybody, Grafana asks Prometheus, Alertmanager calls who is to be told; nobody else asks anything here.

    People come by `kubectl port-forward`, which enters a pod from within. The node exporter shares its node's network, to
    which no policy applies.
    """

    def __init__(
        self,
        name: str,
        *,
        namespace: pulumi.Input[str],
        api_server: ApiServer,
        alerting_ports: Sequence[int],
        remote_write_port: int | None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("MonitoringIsolation", name, namespace, opts, prefix="monitoring-")
        cluster = _addresses(api_server)
        api: net.NetworkPolicyEgressRuleArgsDict = {"to": cluster, "ports": [_tcp(api_server.port)]}
        # Kubelets, node exporters and the API are at addresses of nodes; the rest are pods.
        self._create("prometheus-out", _PROMETHEUS, egress=[{"to": [{"namespace_selector": {}}, *cluster]}])
        self._create("prometheus-in", _PROMETHEUS, ingress=[_from(_pods(_GRAFANA), PROMETHEUS_PORT)])
        self._create("scraped", _EVERYONE, ingress=[{"from_": [_pods(_PROMETHEUS)]}])
        self._create("grafana-out", _GRAFANA, egress=[{"to": [_pods(_PROMETHEUS)], "ports": [_tcp(PROMETHEUS_PORT)]}])
        if alerting_ports:
            out = [_tcp(port) for port in alerting_ports]
            self._create("alertmanager-out", _ALERTMANAGER, egress=[{"to": [_internet()], "ports": out}])
        if remote_write_port:
            out = [_tcp(remote_write_port)]
            self._create("prometheus-remote-write", _PROMETHEUS, egress=[{"to": [_internet()], "ports": out}])
        for watcher in _WATCH_THE_API:
            self._create(f"{watcher['app.kubernetes.io/name']}-to-api", watcher, egress=[api])
        self.register_outputs({})


class PodLogsIsolation(_Policies):
    """Who sends logs away reaches CloudWatch and STS, and nobody reaches it."""

    def __init__(
        self,
        name: str,
        *,
        namespace: pulumi.Input[str],
        selector: dict[str, str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("PodLogsIsolation", name, namespace, opts, prefix="pod-logs-")
        self._create("out", selector, egress=[{"to": [_internet()], "ports": [_tcp(HTTPS_PORT)]}])
        self.register_outputs({})


class Isolation(_Policies):
    """In the serving namespace nothing is allowed but what a policy here allows."""

    def __init__(
        self,
        name: str,
        *,
        namespace: pulumi.Input[str],
        api_server: ApiServer,
        client_namespaces: Sequence[str] = (),
        load_balancer_cidr: IPv4Network | None = None,
        evaluations: bool = False,
        load_test: bool = False,
        start_cache_writer: bool = False,
        training: bool = False,
        traces_endpoint: str | None = None,
        emulated_aws: bool = False,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("Isolation", name, namespace, opts)
        self._guard_vllm()
        if start_cache_writer:  # what vLLM's pod may, and nobody enters
            out: net.NetworkPolicyEgressRuleArgsDict = {"to": [_internet()], "ports": [_tcp(HTTPS_PORT)]}
            self._create("start-cache-writer-out", START_CACHE_WRITER_LABELS, egress=[out])
        self._guard_gateway(api_server, client_namespaces, load_balancer_cidr)
        reach_aws = [VLLM_SELECTOR, GATEWAY_SELECTOR]
        if evaluations:
            reach_aws.append(EVALUATOR_SELECTOR)
            self._guard_client(EVALUATOR_SELECTOR, {"to": [_internet()], "ports": [_tcp(HTTPS_PORT)]})
        if load_test:
            self._guard_client(LOAD_TEST_SELECTOR)
        if training:  # S3, STS and the hub; nobody comes in
            reach_aws.append(TRAINING_LABELS)
            self._create("training-out", TRAINING_LABELS, egress=[{"to": [_internet()], "ports": [_tcp(HTTPS_PORT)]}])
        if traces_endpoint:
            for selector in (VLLM_SELECTOR, GATEWAY_SELECTOR):
                self._create(f"{selector['app']}-to-collector", selector, egress=[_collector(traces_endpoint)])
        if emulated_aws:  # it, and the API of a cluster beside it, listen on ports of their own
            for selector in reach_aws:
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
        self._create(
            "gateway-out",
            GATEWAY_SELECTOR,
            egress=[
                {"to": [_pods(VLLM_SELECTOR)], "ports": [_tcp(VLLM_PORT), _tcp(AGENT_PORT)]},
                {"to": _addresses(api_server), "ports": [_tcp(api_server.port)]},
                {"to": [_internet()], "ports": [_tcp(HTTPS_PORT)]},  # S3 and STS, for the usage ledger
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

    def _guard_client(self, selector: dict[str, str], *more: net.NetworkPolicyEgressRuleArgsDict) -> None:
        """It calls the gateway; who evaluates writes verdicts too, and a judge may be outside."""
        gateway: net.NetworkPolicyEgressRuleArgsDict = {
            "to": [_pods(GATEWAY_SELECTOR)],
            "ports": [_tcp(GATEWAY_PORT)],
        }
        self._create(f"{selector['app']}-out", selector, egress=[gateway, *more])


def _from(peer: net.NetworkPolicyPeerArgsDict, port: int) -> net.NetworkPolicyIngressRuleArgsDict:
    return {"from_": [peer], "ports": [_tcp(port)]}


def _pods(labels: dict[str, str]) -> net.NetworkPolicyPeerArgsDict:
    """Of the policy's own namespace."""
    return {"pod_selector": {"match_labels": labels}}


def _namespace(name: str) -> k8s.meta.v1.LabelSelectorArgsDict:
    return {"match_labels": {_NAMESPACE_LABEL: name}}


def _addresses(api_server: ApiServer) -> list[net.NetworkPolicyPeerArgsDict]:
    return [{"ip_block": {"cidr": cidr}} for cidr in api_server.cidrs]


def _internet() -> net.NetworkPolicyPeerArgsDict:
    """S3, STS and the model hub are outside the cluster, which no namespace selector can name."""
    return {"ip_block": {"cidr": "0.0.0.0/0", "except_": [METADATA_ADDRESS]}}


def _collector(address: str) -> net.NetworkPolicyEgressRuleArgsDict:
    """In the cluster all pods of its namespace, as a policy cannot name a Service; outside any address, as it cannot name a host."""
    inside = traces.namespace(address)
    peer: net.NetworkPolicyPeerArgsDict = {"namespace_selector": _namespace(inside)} if inside else _internet()
    return {"to": [peer], "ports": [_tcp(traces.port(address))]}


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
        "pod_selector": {"match_labels": _PROMETHEUS},
    }


def _dns_ports() -> list[net.NetworkPolicyPortArgsDict]:
    return [{"protocol": protocol, "port": DNS_PORT} for protocol in ("UDP", "TCP")]


def _tcp(port: int) -> net.NetworkPolicyPortArgsDict:
    return {"protocol": "TCP", "port": port}
