"""Where the parts of a stack are found by each other: written into the cluster by `infra`, assumed by an operator's shell."""

import re

PROJECT = "loraserve"
"""Of the Pulumi program: the namespace of its configuration keys."""

STACK_TAG = f"{PROJECT}/stack"
"""Key of the tag that names the stack, on everything in AWS."""

RETAINED_TAG = f"{PROJECT}/retained"
"""Key of the tag on a bucket that `destroy` keeps and the next `up` takes back; its value is true."""

SERVING_NAMESPACE = "ml-models"
MONITORING_NAMESPACE = "ai-platform"
PROMETHEUS_SERVICE, PROMETHEUS_PORT = "prometheus-operated", 9090
"""What the Prometheus operator calls it, whatever the chart's release is called."""
VLLM = "vllm"
VLLM_SERVICE = "vllm-service"
VLLM_SELECTOR = {"app": VLLM}
"""Labels of vLLM's pods."""
GATEWAY = "gateway"
"""The Service that clients call."""
DESIRED_STATE = "desired-state"
"""The ConfigMap with the desired state, which the agent's Role grants by name."""
DESIRED_STATE_FILE = "desired.json"
"""Its one key."""

GATEWAY_KEYS = "gateway-keys"
"""The Secret with the digests of the API keys."""
GATEWAY_KEYS_FILE = "keys.json"
"""Its one key."""

GPU_RESOURCE = "nvidia.com/gpu"
"""As pods ask for it and nodes offer it."""

VLLM_PORT = 8000
AGENT_PORT = 9090
"""The agent re-exports vLLM's metrics here, next to its own state."""
GATEWAY_PORT = 8080
GATEWAY_METRICS_PORT = 9091
"""Metrics, probes, and what KEDA scales on."""

ADAPTER_PREFIX = "llm-models"
"""Adapters lie under llm-models/{model}/{version}/ in the bucket."""
BASE_MODEL_PREFIX = "base-models"
"""Mirrored base weights lie under base-models/{hub id}/{version}/."""
START_CACHE_PREFIX = "start-caches"
"""What a start of vLLM compiles lies under start-caches/vllm/{what it was compiled for}/."""
MANIFEST_FILE = "manifest.json"
"""Says what a version consists of, and so is the version."""
EVALUATION_PREFIX = "evaluations"
"""Verdicts lie under evaluations/{adapter name}/{version}/; only the pipeline's role writes there."""
LINEAGE_PREFIX = "lineage"
"""What is known of a version lies under lineage/, then as the version itself: it is added to, and stays."""

TRAINING_PREFIX = "training"
"""Checkpoints lie under training/{digest of the run}/, until a rule of the bucket deletes them."""

USAGE_PREFIX = "usage"
"""What tenants used lies under usage/{day}/{gateway process}/."""

SAMPLE_PREFIX = "samples"
"""Sampled questions and answers lie under samples/{day}/{gateway process}/, until a rule of the bucket deletes them."""

_STACK_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?")


def stack_name_problem(stack: str) -> str | None:
    """Why nothing can be named after this stack: roles take 64 characters in all, buckets no capitals, a cluster no dot."""
    if _STACK_NAME.fullmatch(stack):
        return None
    return (
        f"the stack's name {stack!r} stands in the names of its cluster, roles and bucket, and AWS does not take it there: use at "
        "most 30 small letters, digits and hyphens (`pulumi stack rename` before the first `up`)"
    )


def version_key(kind: str, model: str, version: str, file: str) -> str:
    """Of a file of a published version; `kind` is the prefix of adapters or of base models."""
    return f"{kind}/{model}/{version}/{file}"


def cluster_name(stack: str) -> str:
    """Named, not auto-named: kubeconfig, autoscaler discovery and the log group must know it beforehand."""
    return f"{PROJECT}-{stack}"
