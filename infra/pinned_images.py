"""Every image that this program runs or builds on: its tag here and nowhere else, its digest where one was recorded.

A tag can be moved by whoever owns its repository; a digest cannot. `make digests` asks the registries and writes them down.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import versions

RECORD = Path(__file__).with_name("image_digests.json")
"""Digest by reference, as `sha256:…`. It holds what was read from a registry and nothing else; a reference without one runs by its tag."""

VLLM = f"docker.io/vllm/vllm-openai:v{versions.VLLM}"
"""The official one; since CUDA 13 became its default it needs a driver of at least 580."""
PYTHON = f"docker.io/library/{versions.PYTHON_IMAGE}"
"""Base of the image that holds our own code."""
FLUENT_BIT = "public.ecr.aws/aws-observability/aws-for-fluent-bit:3.4.15"
"""AWS's build of Fluent Bit 5, from the registry that has no limits for those inside AWS."""


@dataclass(frozen=True)
class ChartImage:
    """An image that a chart runs, and the value that pins it.

    `pin` has the digest in the chart's own spelling: `{digest}`, `{hex}` without its algorithm, `{tag}` before it.
    """

    reference: str
    chart: str
    value: tuple[str, ...]
    pin: str = "{hex}"


_STACK = "kube-prometheus-stack"
_BEHIND_TAG = "{tag}@{digest}"

CHART_IMAGES = (
    ChartImage(
        f"registry.k8s.io/autoscaling/cluster-autoscaler:{versions.CLUSTER_AUTOSCALER_IMAGE}",
        "cluster-autoscaler",
        ("image", "tag"),
        _BEHIND_TAG,
    ),
    ChartImage("nvcr.io/nvidia/k8s-device-plugin:v0.20.0", "nvidia-device-plugin", ("image", "tag"), _BEHIND_TAG),
    ChartImage(
        "nvcr.io/nvidia/k8s/dcgm-exporter:4.5.3-4.8.2-distroless",
        "dcgm-exporter",
        ("image", "tag"),
        _BEHIND_TAG,
    ),
    ChartImage("ghcr.io/kedacore/keda:2.21.1", "keda", ("image", "keda", "tag"), _BEHIND_TAG),
    ChartImage(
        "ghcr.io/kedacore/keda-metrics-apiserver:2.21.1",
        "keda",
        ("image", "metricsApiServer", "tag"),
        _BEHIND_TAG,
    ),
    ChartImage("quay.io/prometheus/prometheus:v3.11.2", _STACK, ("prometheus", "prometheusSpec", "image", "sha")),
    ChartImage("quay.io/prometheus/alertmanager:v0.32.0", _STACK, ("alertmanager", "alertmanagerSpec", "image", "sha")),
    ChartImage(
        "quay.io/prometheus-operator/prometheus-operator:v0.90.1", _STACK, ("prometheusOperator", "image", "sha")
    ),
    ChartImage(
        "quay.io/prometheus-operator/prometheus-config-reloader:v0.90.1",
        _STACK,
        ("prometheusOperator", "prometheusConfigReloader", "image", "sha"),
    ),
    ChartImage("docker.io/grafana/grafana:12.4.3", _STACK, ("grafana", "image", "sha")),
    ChartImage("quay.io/kiwigrid/k8s-sidecar:2.6.0", _STACK, ("grafana", "sidecar", "image", "sha")),
    ChartImage(
        "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.18.0",
        _STACK,
        ("kube-state-metrics", "image", "sha"),
        "{digest}",
    ),
    ChartImage(
        "quay.io/prometheus/node-exporter:v1.11.1", _STACK, ("prometheus-node-exporter", "image", "digest"), "{digest}"
    ),
)
REFERENCES = (VLLM, PYTHON, FLUENT_BIT, *(image.reference for image in CHART_IMAGES))


def recorded() -> dict[str, str]:
    """Digest by reference."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def pinned(reference: str) -> str:
    """The image with its digest where one is recorded."""
    digest = recorded().get(reference)
    return f"{reference}@{digest}" if digest else reference


def with_digests(chart: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A chart's values, and those that pin its images."""
    digests, pinned_values = recorded(), dict(values)
    for image in CHART_IMAGES:
        if image.chart == chart and (digest := digests.get(image.reference)):
            tag = image.reference.rpartition(":")[2]
            pin = image.pin.format(tag=tag, digest=digest, hex=digest.partition(":")[2])
            pinned_values = _placed(pinned_values, image.value, pin)
    return pinned_values


def _placed(values: Mapping[str, Any], path: tuple[str, ...], value: str) -> dict[str, Any]:
    first, *rest = path
    return dict(values) | {first: _placed(values.get(first, {}), tuple(rest), value) if rest else value}
