"""The monitoring stack: kube-prometheus-stack, the GPU exporter, our scrape targets, rules and dashboards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pulumi
import pulumi_kubernetes as k8s
import pulumi_random as random

from infra.charts import DCGM_EXPORTER, KUBE_PROMETHEUS_STACK, bounded, hardened, on_gpu_nodes
from infra.iam import WorkloadRole
from infra.isolation import ApiServer, MonitoringIsolation, create_namespace
from infra.monitoring.alertmanager import alertmanager_values, create_secrets
from infra.monitoring.grafana import dashboard_json
from infra.monitoring.remote_write import create_login, remote_write_values
from infra.monitoring.rules import prometheus_rule
from infra.monitoring.scraping import KEEP_TARGETS_LABELS, monitor_autoscaling, service_monitor
from infra.monitoring.volume import claim_template, create_claim, create_volume
from infra.names import (
    ALERTMANAGER_PORT,
    ALERTMANAGER_SERVICE,
    GATEWAY,
    GATEWAY_SELECTOR,
    MONITORING_NAMESPACE,
    PROMETHEUS_PORT,
    PROMETHEUS_SERVICE,
    VLLM,
    VLLM_SELECTOR,
)
from loraserve.monitoring import dashboards
from loraserve.monitoring.rules import Group
from loraserve.planning import pod_resources
from loraserve.planning.alerting import Alerting
from loraserve.planning.pod_resources import Requests
from loraserve.planning.remote_write import RemoteWrite

RETENTION_DAYS = 15
_GIB_ON_THE_NODE = 4
"""Prometheus' disk without a volume: a part of what a system node's disk leaves beside images and logs."""
_DASHBOARD_LABEL = "grafana_dashboard"
_GRAFANA_USER = "admin"
_GRAFANA_LOGIN = "grafana-admin"
_PROMETHEUS = Requests(200, 640)
_PROMETHEUS_LIMIT_MIB = 2048
_GRAFANA = Requests(50, 192)
_SIDECAR = Requests(5, 64)
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
_DISABLED_ALERTS = (
    # They ask whether the rest of the nodes could take over from the largest. For a GPU node, which others cannot replace and
    # which is bought when it is needed, they would fire as long as it runs.
    "KubeCPUOvercommit",
    "KubeMemoryOvercommit",
)
_COUNTED_KINDS = (
    "configmaps",
    "cronjobs",
    "daemonsets",
    "deployments",
    "endpointslices",
    "horizontalpodautoscalers",
    "jobs",
    "leases",
    "limitranges",
    "namespaces",
    "networkpolicies",
    "nodes",
    "persistentvolumeclaims",
    "persistentvolumes",
    "poddisruptionbudgets",
    "pods",
    "replicasets",
    "resourcequotas",
    "services",
    "statefulsets",
    "storageclasses",
    "volumeattachments",
)
"""What kube-state-metrics may list: no Secrets, which hold vLLM's key."""
_NOBODY_IS_CALLED = {
    "analytics": {"reporting_enabled": False, "check_for_updates": False, "check_for_plugin_updates": False},
    "news": {"news_feed_enabled": False},
    "plugins": {"preinstall_disabled": True, "public_key_retrieval_disabled": True},
    "security": {"disable_gravatar": True},
}
"""Grafana's settings: it asks grafana.com and gravatar.com for nothing."""


def stack_values(
    grafana_secret: pulumi.Input[str], volume_gib: int, remote_write: RemoteWrite | None = None
) -> dict[str, Any]:
    """Chart values, but Alertmanager's: every ServiceMonitor is taken, and nothing watches the control plane that EKS hides."""
    return {
        **{part: {"enabled": False} for part in _HIDDEN_BY_EKS},
        "defaultRules": {
            "rules": dict.fromkeys(_RULES_HIDDEN_BY_EKS, False),
            "disabled": dict.fromkeys(_DISABLED_ALERTS, True),
        },
        "prometheus": {
            "prometheusSpec": _prometheus_spec(volume_gib) | {"remoteWrite": remote_write_values(remote_write)}
        },
        "prometheusOperator": {
            "resources": bounded(_OPERATOR, 512),
            # Its webhook's certificate is made by a Helm hook, and `Chart` runs no hooks: the operator would wait for ever.
            "admissionWebhooks": {"enabled": False},
            "tls": {"enabled": False},
        },
        "kube-state-metrics": {"resources": bounded(_KUBE_STATE_METRICS, 256), "collectors": list(_COUNTED_KINDS)},
        "prometheus-node-exporter": {
            "resources": bounded(pod_resources.NODE_EXPORTER, 128),
            "containerSecurityContext": hardened(),
            "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
        },
        "grafana": {
            "resources": bounded(_GRAFANA, 768),
            # Its sidecars read ConfigMaps and Secrets: of this namespace only.
            "rbac": {"namespaced": True},
            "grafana.ini": _NOBODY_IS_CALLED,
            "admin": {"existingSecret": grafana_secret, "userKey": "user", "passwordKey": "password"},
            "sidecar": {
                "resources": bounded(_SIDECAR, 256),
                "dashboards": {
                    "label": _DASHBOARD_LABEL,
                    "labelValue": "1",
                    "searchNamespace": MONITORING_NAMESPACE,
                },
                "datasources": {"alertmanager": {"enabled": False}, "searchNamespace": MONITORING_NAMESPACE},
            },
        },
    }


def _prometheus_spec(volume_gib: int) -> dict[str, Any]:
    take_all = {f"{kind}SelectorNilUsesHelmValues": False for kind in ("serviceMonitor", "podMonitor", "rule", "probe")}
    spec: dict[str, Any] = {
        **take_all,
        "retention": f"{RETENTION_DAYS}d",
        # Before the disk is full, which would end it; its log of the newest hours is on top.
        "retentionSize": f"{(volume_gib or _GIB_ON_THE_NODE) * 8 // 10}GiB",
        "resources": bounded(_PROMETHEUS, _PROMETHEUS_LIMIT_MIB),
    }
    if volume_gib:
        spec["storageSpec"] = claim_template(volume_gib)
    else:
        spec["storageSpec"] = {"emptyDir": {"sizeLimit": f"{_GIB_ON_THE_NODE}Gi"}}
    return spec


_KUBECTL = f"kubectl --namespace {MONITORING_NAMESPACE}"


def grafana_commands() -> dict[str, str]:
    """How a person gets to Grafana."""
    return {
        "forward": f"{_KUBECTL} port-forward service/{KUBE_PROMETHEUS_STACK.name}-grafana 3000:80",
        "user": _GRAFANA_USER,
        "passwordCommand": f"{_KUBECTL} get secret {_GRAFANA_LOGIN} --output jsonpath='{{.data.password}}' | base64 --decode",
    }


def forwards() -> dict[str, str]:
    """How a person gets to what has no login, by name."""
    services = {
        "prometheus": (PROMETHEUS_SERVICE, PROMETHEUS_PORT),
        "alertmanager": (ALERTMANAGER_SERVICE, ALERTMANAGER_PORT),
    }
    return {name: f"{_KUBECTL} port-forward service/{service} {port}" for name, (service, port) in services.items()}


def watch_serving(namespace: pulumi.Input[str], opts: pulumi.ResourceOptions) -> None:
    """Has Prometheus ask vLLM and the gateway of a namespace; the operator that knows this kind is there."""
    service_monitor(VLLM, VLLM_SELECTOR, namespace, opts)
    service_monitor(GATEWAY, GATEWAY_SELECTOR, namespace, opts)


class Monitoring(pulumi.ComponentResource):
    """Everything in the monitoring namespace."""

    def __init__(
        self,
        name: str,
        *,
        serving_namespace: pulumi.Input[str],
        cluster_name: str,
        zone: str,
        api_server: ApiServer,
        autoscaler: bool,
        keda: bool,
        volume_gib: int,
        volume_driver: pulumi.Resource | None,
        chart_mirror: str | None,
        rule_groups: Iterable[Group],
        alerting: Alerting,
        remote_write: RemoteWrite | None,
        alertmanager_role: WorkloadRole | None,
        region: str,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:Monitoring", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        volume = [create_volume(cluster_name, volume_gib, zone, volume_driver, self)] if volume_driver else []
        namespace = create_namespace(
            MONITORING_NAMESPACE, "privileged", pulumi.ResourceOptions(parent=self, depends_on=volume)
        )
        MonitoringIsolation(
            "monitoring-isolation",
            namespace=namespace,
            api_server=api_server,
            alerting_ports=alerting.ports,
            remote_write_port=remote_write.port if remote_write else None,
            opts=child,
        )
        password = random.RandomPassword(_GRAFANA_LOGIN, length=24, special=False, opts=child)
        login = k8s.core.v1.Secret(
            _GRAFANA_LOGIN,
            metadata={"name": _GRAFANA_LOGIN, "namespace": namespace},
            string_data={"user": _GRAFANA_USER, "password": password.result},
            opts=child,
        )
        secrets = [*create_secrets(alerting, namespace, child), *create_login(remote_write, namespace, child)]
        claim = [create_claim(volume_gib, namespace, self)] if volume_driver else []
        role_arn = alertmanager_role.arn if alertmanager_role else None
        operator = KUBE_PROMETHEUS_STACK.install(
            mirror=chart_mirror,
            namespace=namespace,
            values=stack_values(_GRAFANA_LOGIN, volume_gib, remote_write)
            | {"alertmanager": alertmanager_values(alerting, region, role_arn)},
            parent=self,
            depends_on=[login, *secrets, *claim],
        )
        # Custom resources come after the operator that knows their kind, and go before it.
        after_operator = pulumi.ResourceOptions(parent=self, depends_on=[operator])
        watch_serving(serving_namespace, after_operator)
        prometheus_rule(rule_groups, serving_namespace, after_operator)
        if autoscaler:
            monitor_autoscaling(keda, after_operator)
        DCGM_EXPORTER.install(
            mirror=chart_mirror,
            namespace=namespace,
            values=on_gpu_nodes()
            | {
                "resources": bounded(pod_resources.DCGM_EXPORTER, 512),
                "serviceMonitor": {"enabled": True, **KEEP_TARGETS_LABELS},
            },
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
