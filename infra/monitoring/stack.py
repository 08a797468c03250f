"""The monitoring stack: kube-prometheus-stack, the GPU exporter, our scrape target and our dashboard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pulumi
import pulumi_kubernetes as k8s
import pulumi_random as random

from infra.charts import DCGM_EXPORTER, KUBE_PROMETHEUS_STACK, on_gpu_nodes, requesting
from infra.isolation import create_namespace
from infra.monitoring.grafana import dashboard_json
from infra.monitoring.rules import prometheus_rule
from infra.monitoring.scraping import service_monitor
from infra.monitoring.volume import claim_template, create_claim, create_volume
from infra.names import GATEWAY, GATEWAY_SELECTOR, MONITORING_NAMESPACE, VLLM, VLLM_SELECTOR
from loraserve.monitoring import dashboards
from loraserve.monitoring.rules import Group
from loraserve.planning import pod_resources
from loraserve.planning.pod_resources import Requests

RETENTION_DAYS = 15
_DASHBOARD_LABEL = "grafana_dashboard"
_GRAFANA_USER = "admin"
_GRAFANA_LOGIN = "grafana-admin"
_PROMETHEUS = Requests(200, 640)
_GRAFANA = Requests(50, 192)
_OPERATOR = Requests(50, 96)
_KUBE_STATE_METRICS = Requests(20, 64)
_HIDDEN_BY_EKS = ("kubeScheduler", "kubeControllerManager", "kubeEtcd", "kubeProxy")
_RULES_HIDDEN_BY_EKS = (
    "etcd",
    "kubeControllerManager",
    "kubeProxy",
    "kubeSchedulerAlerting",
    "kubeSchedulerRecording",
)


def stack_values(grafana_secret: pulumi.Input[str], volume_gib: int) -> dict[str, Any]:
    """Chart values: every ServiceMonitor is taken, and nothing watches the control plane that EKS hides."""
    return {
        **{part: {"enabled": False} for part in _HIDDEN_BY_EKS},
        "defaultRules": {
            "rules": dict.fromkeys(_RULES_HIDDEN_BY_EKS, False),
            "disabled": {"PrometheusNotConnectedToAlertmanagers": True},
        },
        "alertmanager": {"enabled": False},
        "prometheus": {"prometheusSpec": _prometheus_spec(volume_gib)},
        "prometheusOperator": {
            "resources": requesting(_OPERATOR),
            # Its webhook's certificate is made by a Helm hook, and `Chart` runs no hooks: the operator would wait for ever.
            "admissionWebhooks": {"enabled": False},
            "tls": {"enabled": False},
        },
        "kube-state-metrics": {"resources": requesting(_KUBE_STATE_METRICS)},
        "prometheus-node-exporter": {
            "resources": requesting(pod_resources.NODE_EXPORTER),
            "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
        },
        "grafana": {
            "resources": requesting(_GRAFANA),
            "admin": {"existingSecret": grafana_secret, "userKey": "user", "passwordKey": "password"},
            "sidecar": {
                "dashboards": {"label": _DASHBOARD_LABEL, "labelValue": "1"},
                "datasources": {"alertmanager": {"enabled": False}},
            },
        },
    }


def _prometheus_spec(volume_gib: int) -> dict[str, Any]:
    take_all = {f"{kind}SelectorNilUsesHelmValues": False for kind in ("serviceMonitor", "podMonitor", "rule", "probe")}
    spec: dict[str, Any] = {
        **take_all,
        "retention": f"{RETENTION_DAYS}d",
        "resources": requesting(_PROMETHEUS),
    }
    if volume_gib:
        spec["retentionSize"] = f"{volume_gib * 9 // 10}GiB"
        spec["storageSpec"] = claim_template(volume_gib)
    return spec


def grafana_commands() -> dict[str, str]:
    """How a person gets to Grafana."""
    kubectl = f"kubectl --namespace {MONITORING_NAMESPACE}"
    return {
        "forward": f"{kubectl} port-forward service/{KUBE_PROMETHEUS_STACK.name}-grafana 3000:80",
        "user": _GRAFANA_USER,
        "passwordCommand": f"{kubectl} get secret {_GRAFANA_LOGIN} --output jsonpath='{{.data.password}}' | base64 --decode",
    }


class Monitoring(pulumi.ComponentResource):
    """Everything in the monitoring namespace."""

    def __init__(
        self,
        name: str,
        *,
        serving_namespace: pulumi.Input[str],
        cluster_name: str,
        zone: str,
        volume_gib: int,
        volume_driver: pulumi.Resource | None,
        chart_mirror: str | None,
        rule_groups: Iterable[Group],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:Monitoring", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        volume = [create_volume(cluster_name, volume_gib, zone, volume_driver, self)] if volume_driver else []
        namespace = create_namespace(
            MONITORING_NAMESPACE, "privileged", pulumi.ResourceOptions(parent=self, depends_on=volume)
        )
        password = random.RandomPassword(_GRAFANA_LOGIN, length=24, special=False, opts=child)
        login = k8s.core.v1.Secret(
            _GRAFANA_LOGIN,
            metadata={"name": _GRAFANA_LOGIN, "namespace": namespace},
            string_data={"user": _GRAFANA_USER, "password": password.result},
            opts=child,
        )
        claim = [create_claim(volume_gib, namespace, self)] if volume_driver else []
        operator = KUBE_PROMETHEUS_STACK.install(
            mirror=chart_mirror,
            namespace=namespace,
            values=stack_values(_GRAFANA_LOGIN, volume_gib),
            parent=self,
            depends_on=[login, *claim],
        )
        # Custom resources come after the operator that knows their kind, and go before it.
        after_operator = pulumi.ResourceOptions(parent=self, depends_on=[operator])
        service_monitor(VLLM, VLLM_SELECTOR, serving_namespace, after_operator)
        service_monitor(GATEWAY, GATEWAY_SELECTOR, serving_namespace, after_operator)
        prometheus_rule(rule_groups, serving_namespace, after_operator)
        DCGM_EXPORTER.install(
            mirror=chart_mirror,
            namespace=namespace,
            values=on_gpu_nodes()
            | {"resources": requesting(pod_resources.DCGM_EXPORTER), "serviceMonitor": {"enabled": True}},
            parent=self,
            depends_on=[operator],
        )
        k8s.core.v1.ConfigMap(
            "dashboards",
            metadata={"name": "loraserve-dashboards", "namespace": namespace, "labels": {_DASHBOARD_LABEL: "1"}},
            data={f"{dashboard.uid}.json": dashboard_json(dashboard) for dashboard in dashboards.ALL},
            opts=child,
        )
        self.register_outputs({})
