"""The charts of the monitoring stack, and what Prometheus scrapes of ours."""

from __future__ import annotations

from typing import Any

import pytest

from infra import names
from infra.monitoring.stack import stack_values
from tests.unit.declared import declare


def test_vllm_is_scraped_through_the_agent() -> None:
    program = declare("dev")
    endpoint = program.one("monitoring.coreos.com/v1:ServiceMonitor", names.VLLM).inputs["spec"]["endpoints"][0]
    service = program.one("core/v1:Service", names.VLLM_SERVICE).inputs["spec"]
    assert endpoint == {"port": "metrics", "path": "/metrics", "interval": "30s", "scrapeTimeout": "10s"}
    assert {"name": "metrics", "port": 9090, "targetPort": 9090} in service["ports"]


def test_rules_for_a_control_plane_that_eks_hides_are_off() -> None:
    values = stack_values("secret", 0)
    for part in ("kubeScheduler", "kubeControllerManager", "kubeEtcd"):
        assert values[part] == {"enabled": False}
    assert values["defaultRules"]["rules"]["etcd"] is False


def test_the_operator_waits_for_no_helm_hook() -> None:
    operator = stack_values("secret", 0)["prometheusOperator"]
    assert operator["admissionWebhooks"] == {"enabled": False}
    assert operator["tls"] == {"enabled": False}


def test_alerts_that_say_nothing_here_are_off() -> None:
    rules = stack_values("secret", 0)["defaultRules"]
    assert {"KubeCPUOvercommit", "KubeMemoryOvercommit"} <= {name for name, off in rules["disabled"].items() if off}


def test_nobody_but_the_operator_reads_secrets_of_other_namespaces() -> None:
    values = stack_values("secret", 0)
    assert "secrets" not in values["kube-state-metrics"]["collectors"]
    assert values["grafana"]["rbac"] == {"namespaced": True}
    for sidecar in ("dashboards", "datasources"):
        assert values["grafana"]["sidecar"][sidecar]["searchNamespace"] == names.MONITORING_NAMESPACE


def test_grafana_calls_nobody() -> None:
    settings = stack_values("secret", 0)["grafana"]["grafana.ini"]
    assert settings["analytics"] == {
        "reporting_enabled": False,
        "check_for_updates": False,
        "check_for_plugin_updates": False,
    }
    assert settings["plugins"]["preinstall_disabled"] is True


def test_the_autoscalers_are_scraped_where_they_are() -> None:
    def scraped(**changes: Any) -> dict[str, dict[str, Any]]:
        found = declare("dev", **changes).of_type("monitoring.coreos.com/v1:ServiceMonitor")
        return {monitor.name: monitor.inputs for monitor in found}

    monitors = scraped()
    assert monitors["cluster-autoscaler"]["metadata"]["namespace"] == names.SYSTEM_NAMESPACE
    assert monitors["cluster-autoscaler"]["spec"]["endpoints"][0]["port"] == "http"
    (keda,) = monitors["keda-operator"]["spec"]["endpoints"]
    assert (keda["port"], keda["honorLabels"]) == ("metrics", True)
    assert "keda-operator" not in scraped(scalingEnabled=False)
    assert set(scraped(addonsEnabled=False)) == {"vllm", "gateway"}


def test_a_gpus_metrics_name_the_pod_that_uses_it_and_not_the_exporter() -> None:
    monitor = declare("dev").one("helm.sh/v4:Chart", "dcgm-exporter").inputs["values"]["serviceMonitor"]
    assert monitor["honorLabels"] is True
    assert monitor["relabelings"] == [{"action": "labeldrop", "regex": "namespace|pod|container"}]


@pytest.mark.parametrize("volume_gib", [0, 50])
def test_prometheus_deletes_old_metrics_before_its_disk_is_full(volume_gib: int) -> None:
    spec = stack_values("secret", volume_gib)["prometheus"]["prometheusSpec"]
    storage = spec["storageSpec"]
    size = (
        storage["volumeClaimTemplate"]["spec"]["resources"]["requests"]["storage"]
        if volume_gib
        else storage["emptyDir"]["sizeLimit"]
    )
    assert 0 < int(spec["retentionSize"].removesuffix("GiB")) <= 0.85 * int(size.removesuffix("Gi"))


def test_every_service_monitor_is_taken_whatever_its_labels() -> None:
    spec = stack_values("secret", 0)["prometheus"]["prometheusSpec"]
    assert spec["serviceMonitorSelectorNilUsesHelmValues"] is False


def test_a_volume_does_not_outlive_the_stack() -> None:
    """It is declared: test_prometheus_volume.py. The operator is to make none, nor to delete the claim of a replaced pod."""
    spec = stack_values("secret", 50)["prometheus"]["prometheusSpec"]
    assert spec["storageSpec"]["volumeClaimTemplate"]["spec"]["volumeName"] == names.PROMETHEUS_VOLUME
    assert "persistentVolumeClaimRetentionPolicy" not in spec
    assert set(stack_values("secret", 0)["prometheus"]["prometheusSpec"]["storageSpec"]) == {"emptyDir"}
