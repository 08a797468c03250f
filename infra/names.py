"""Each shared word once: namespaces, labels, the GPU taint, ports, service accounts, tags."""

from __future__ import annotations

from dataclasses import dataclass

from loraserve.contract.addresses import ADAPTER_PREFIX as ADAPTER_PREFIX
from loraserve.contract.addresses import AGENT_PORT as AGENT_PORT
from loraserve.contract.addresses import BASE_MODEL_PREFIX as BASE_MODEL_PREFIX
from loraserve.contract.addresses import DESIRED_STATE as DESIRED_STATE
from loraserve.contract.addresses import DESIRED_STATE_FILE as DESIRED_STATE_FILE
from loraserve.contract.addresses import EVALUATION_PREFIX as EVALUATION_PREFIX
from loraserve.contract.addresses import GATEWAY as GATEWAY
from loraserve.contract.addresses import GATEWAY_METRICS_PORT as GATEWAY_METRICS_PORT
from loraserve.contract.addresses import GATEWAY_PORT as GATEWAY_PORT
from loraserve.contract.addresses import GPU_RESOURCE as GPU_RESOURCE
from loraserve.contract.addresses import LINEAGE_PREFIX as LINEAGE_PREFIX
from loraserve.contract.addresses import MONITORING_NAMESPACE as MONITORING_NAMESPACE
from loraserve.contract.addresses import PROJECT as PROJECT
from loraserve.contract.addresses import PROMETHEUS_PORT as PROMETHEUS_PORT
from loraserve.contract.addresses import PROMETHEUS_SERVICE as PROMETHEUS_SERVICE
from loraserve.contract.addresses import SAMPLE_PREFIX as SAMPLE_PREFIX
from loraserve.contract.addresses import SERVING_NAMESPACE as SERVING_NAMESPACE
from loraserve.contract.addresses import START_CACHE_PREFIX as START_CACHE_PREFIX
from loraserve.contract.addresses import USAGE_PREFIX as USAGE_PREFIX
from loraserve.contract.addresses import VLLM as VLLM
from loraserve.contract.addresses import VLLM_PORT as VLLM_PORT
from loraserve.contract.addresses import VLLM_SELECTOR as VLLM_SELECTOR
from loraserve.contract.addresses import VLLM_SERVICE as VLLM_SERVICE
from loraserve.contract.addresses import cluster_name as cluster_name

SYSTEM_NAMESPACE = "kube-system"

VLLM_LABELS = VLLM_SELECTOR | {"component": "inference"}
VLLM_API_KEY = "api-key"
"""The key of Secret `vllm` that everything in front of vLLM shares."""
HUB_TOKEN = "hub-token"
"""The key of Secret `vllm` that vLLM fetches a gated base model with."""

GATEWAY_LABELS = {"app": "gateway", "component": "inference"}
GATEWAY_SELECTOR = {"app": "gateway"}
GATEWAY_CLIENT_LABELS = {"loraserve-client": "true"}
"""Pods, in any namespace, that may call the gateway."""
EVALUATOR = "evaluator"
"""Service account, and label, of pods that evaluate."""
EVALUATOR_SELECTOR = {"app": EVALUATOR}
LOAD_TEST = "load-test"
LOAD_TEST_SELECTOR = {"app": LOAD_TEST}
GATEWAY_ENDPOINT = "gateway-endpoint"
"""The node port behind the internal load balancer."""

SERVING_SERVICE_ACCOUNT = "workflow-sa"
START_CACHE_WRITER = "start-cache-writer"
START_CACHE_WRITER_LABELS = {"app": START_CACHE_WRITER}
KEDA_OPERATOR = "keda-operator"
KEDA_OPERATOR_LABELS = {"app": KEDA_OPERATOR}
AUTOSCALER_SERVICE_ACCOUNT = "cluster-autoscaler"
EBS_CSI_SERVICE_ACCOUNT = "ebs-csi-controller-sa"
POD_LOGS = "pod-logs"
"""Namespace, service account and DaemonSet of what sends logs away."""

PROMETHEUS_VOLUME = "prometheus"
ALERTMANAGER = "alertmanager"
ALERTMANAGER_SERVICE, ALERTMANAGER_PORT = "alertmanager-operated", 9093
"""As the Prometheus operator calls it."""

GPU_NODE_GROUP = "gpu-vllm-nodes"
SPOT_NODE_GROUP = f"{GPU_NODE_GROUP}-spot"
SYSTEM_NODE_GROUP = "system-nodes"
GPU_SELECTOR = {"workload": "gpu-vllm"}
GPU_NODE = {"nvidia.com/gpu.present": "true"}
"""On the GPU nodes of every stack in a cluster; the device plugin's chart looks for it."""
TRAINING = "training"
TRAINING_NODE_GROUP = "gpu-training-nodes"
TRAINING_SELECTOR = {"workload": "gpu-training"}
"""Neither group's pods go to the other's nodes, whose taint is the same."""
TRAINING_LABELS = {"app": TRAINING}
TRAINING_PURPOSE_TAG = {"Purpose": "LLM Training"}
GPU_PURPOSE_TAG = {"Purpose": "LLM Inference"}


@dataclass(frozen=True)
class Taint:
    """A node taint in Kubernetes' spelling, and in the spellings of those who repeat it."""

    key: str
    value: str
    effect: str

    @property
    def eks_effect(self) -> str:
        """EKS's API writes NoSchedule as NO_SCHEDULE."""
        return {"NoSchedule": "NO_SCHEDULE", "NoExecute": "NO_EXECUTE", "PreferNoSchedule": "PREFER_NO_SCHEDULE"}[
            self.effect
        ]

    @property
    def autoscaler_value(self) -> str:
        """The value of Cluster Autoscaler's node-template tag for this taint."""
        return f"{self.value}:{self.effect}"

    def toleration(self) -> dict[str, str]:
        """The toleration that matches exactly this taint."""
        return {"key": self.key, "operator": "Equal", "value": self.value, "effect": self.effect}


GPU_TAINT = Taint(GPU_RESOURCE, "true", "NoSchedule")


def gpu_node_labels(accelerator: str, suffix: str = "", selector: dict[str, str] = GPU_SELECTOR) -> dict[str, str]:
    """Labels of a GPU node group; `accelerator` is the GPU's name as in `nvidia-l4`, `suffix` that of a stack's names.

    Cluster Autoscaler treats a node with the accelerator label as unready until its GPU is registered; without it, a
    half-ready node is remembered as having none and scale-from-zero fails.
    """
    return with_suffix(selector, suffix) | {"k8s.amazonaws.com/accelerator": accelerator} | GPU_NODE


def with_suffix(labels: dict[str, str], suffix: str) -> dict[str, str]:
    """Labels that tell one stack's from those of another in the same cluster."""
    return {key: f"{value}{suffix}" for key, value in labels.items()}


GATEWAY_TLS_PORT = 8443
"""What the internal load balancer speaks to."""
HTTPS_PORT = 443
DNS_PORT = 53
METRICS_PORT_NAME = "metrics"
HTTP_PORT_NAME = "http"

CATALOG_PREFIXES = (ADAPTER_PREFIX, BASE_MODEL_PREFIX)

ADAPTER_DIR = "/mnt/adapters"
BASE_DIR = "/mnt/base"
"""Mirrored base weights; like the adapters shared with vLLM under the same path."""
ADAPTERS_VOLUME, BASE_VOLUME, TMP_VOLUME = "adapters", "base", "tmp"
"""What agent and vLLM both mount."""
CACHE_DIR = "/cache"
"""What vLLM compiles, and what it fetches from a hub."""
CACHE_VOLUME = "cache"
DESIRED_STATE_DIR = "/etc/loraserve"
