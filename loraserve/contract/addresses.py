"""Where the parts of a stack are found by each other: written into the cluster by `infra`, assumed by an operator's shell."""

PROJECT = "loraserve"
"""Of the Pulumi program: the namespace of its configuration keys."""

STACK_TAG = f"{PROJECT}/stack"
"""Key of the tag that names the stack, on everything in AWS."""

SERVING_NAMESPACE = "ml-models"
VLLM = "vllm"
VLLM_SERVICE = "vllm-service"
VLLM_SELECTOR = {"app": VLLM}
GATEWAY = "gateway"
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


def cluster_name(stack: str) -> str:
    """Named, not auto-named: kubeconfig, autoscaler discovery and the log group must know it beforehand."""
    return f"{PROJECT}-{stack}"
