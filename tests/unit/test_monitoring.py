"""The charts of the monitoring stack, and what Prometheus scrapes of ours."""

from __future__ import annotations

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


def test_every_service_monitor_is_taken_whatever_its_labels() -> None:
    spec = stack_values("secret", 0)["prometheus"]["prometheusSpec"]
    assert spec["serviceMonitorSelectorNilUsesHelmValues"] is False


def test_a_volume_does_not_outlive_the_stack() -> None:
    """It is declared: test_prometheus_volume.py. The operator is to make none, nor to delete the claim of a replaced pod."""
    spec = stack_values("secret", 50)["prometheus"]["prometheusSpec"]
    assert spec["storageSpec"]["volumeClaimTemplate"]["spec"]["volumeName"] == names.PROMETHEUS_VOLUME
    assert "persistentVolumeClaimRetentionPolicy" not in spec
    assert "storageSpec" not in stack_values("secret", 0)["prometheus"]["prometheusSpec"]
