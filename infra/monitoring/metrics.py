"""The metrics that dashboards and alerts use: only names that a running vLLM, or our own gateway, exports."""

TIME_TO_FIRST_TOKEN = "vllm:time_to_first_token_seconds"
REQUESTS_FINISHED = "vllm:request_success_total"
REQUESTS_RUNNING = "vllm:num_requests_running"
REQUESTS_WAITING = "vllm:num_requests_waiting"
KV_CACHE_USAGE = "vllm:kv_cache_usage_perc"
PROMPT_TOKENS = "vllm:prompt_tokens_total"
GENERATION_TOKENS = "vllm:generation_tokens_total"
GATEWAY_REQUESTS = "loraserve_gateway_requests_total"
GATEWAY_FALLBACKS = "loraserve_gateway_fallbacks_total"


def quantile(q: float, histogram: str) -> str:
    """PromQL for a quantile of a histogram over all replicas."""
    return f"histogram_quantile({q}, sum by (le) (rate({histogram}_bucket[$__rate_interval])))"


def per_second(counter: str) -> str:
    """PromQL for a counter's rate over all replicas."""
    return f"sum(rate({counter}[$__rate_interval]))"
