"""Where the parts of a stack are found by each other: written into the cluster by `infra`, assumed by an operator's shell."""

SERVING_NAMESPACE = "ml-models"
VLLM_SELECTOR = {"app": "vllm"}
"""Labels of vLLM's pods."""

VLLM_PORT = 8000
AGENT_PORT = 9090
"""The agent re-exports vLLM's metrics here, next to its own state."""
GATEWAY_PORT = 8080
GATEWAY_METRICS_PORT = 9091
"""Metrics, probes, and what KEDA scales on."""
