"""Prometheus' disk: one claim, one PersistentVolume, one volume in one zone, and the order in which they go."""

from __future__ import annotations

import pytest

from infra.names import MONITORING_NAMESPACE
from tests.unit.declared import Program, declare


@pytest.fixture(scope="module")
def prod() -> Program:
    return declare("prod")


def test_the_claim_is_bound_to_the_stacks_own_disk_where_pods_can_reach_it(prod: Program) -> None:
    disk = prod.one("ebs/volume:Volume")
    volume = prod.one("core/v1:PersistentVolume").inputs
    claim = prod.one("core/v1:PersistentVolumeClaim").inputs

    assert (disk.inputs["encrypted"], disk.inputs["size"]) == (True, 50)
    assert volume["spec"]["csi"]["volumeHandle"] == f"{disk.name}-id"
    [term] = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert term["matchExpressions"][0]["values"] == [disk.inputs["availabilityZone"]]
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    for key in ("accessModes", "storageClassName"):
        assert claim["spec"][key] == volume["spec"][key]
    assert claim["spec"]["resources"]["requests"] == volume["spec"]["capacity"]


def test_prometheus_finds_that_claim_in_the_place_of_one_of_its_own(prod: Program) -> None:
    values = prod.one("helm.sh/v4:Chart", "kube-prometheus-stack").inputs["values"]
    template = values["prometheus"]["prometheusSpec"]["storageSpec"]["volumeClaimTemplate"]
    claim = prod.one("core/v1:PersistentVolumeClaim").inputs

    # https://github.com/prometheus-operator/prometheus-operator/blob/v0.85.0/pkg/prometheus/server/statefulset.go#L117
    assert claim["metadata"]["name"] == f"{template['metadata']['name']}-prometheus-kube-prometheus-stack-prometheus-0"
    assert claim["metadata"]["namespace"] == MONITORING_NAMESPACE
    assert template["spec"] == claim["spec"]


def test_the_disk_is_detached_before_the_driver_goes(prod: Program) -> None:
    driver = prod.one("eks/addon:Addon", "loraserve-prod-aws-ebs-csi-driver")
    volume = prod.one("core/v1:PersistentVolume")
    namespace = prod.one("core/v1:Namespace", MONITORING_NAMESPACE)
    claim = prod.one("core/v1:PersistentVolumeClaim")
    chart = prod.one("helm.sh/v4:Chart", "kube-prometheus-stack")

    for later, earlier in ((volume, driver), (namespace, volume), (claim, namespace), (chart, claim)):
        assert earlier.urn in later.depends_on, f"{later.name} goes before {earlier.name}"


def test_without_a_volume_there_is_none_of_it() -> None:
    dev = declare("dev")
    for kind in ("ebs/volume:Volume", "core/v1:PersistentVolume", "core/v1:PersistentVolumeClaim"):
        assert dev.of_type(kind) == []
