"""Is it fast, and is it full: the first page to open."""

from loraserve.monitoring.metrics import (
    VLLM_DURATION,
    VLLM_FIRST_TOKEN,
    VLLM_INTER_TOKEN,
    VLLM_QUEUE,
    quantile,
    rate,
)
from loraserve.monitoring.panels import Dashboard, Look, Panel, Query, Unit


def _percentiles(histogram: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(q / 100, histogram), f"P{q}") for q in (50, 95, 99))


DASHBOARD = Dashboard(
    "loraserve-serving",
    "Serving overview",
    (
        Panel(
            "Time to first token",
            Unit.SECONDS,
            _percentiles(VLLM_FIRST_TOKEN),
            "P99 far above P50 while requests wait: vLLM is full. Look at the waiting requests, then at requestsPerReplica.",
            warn=5,
        ),
        Panel(
            "Requests per second",
            Unit.REQUESTS_PER_SECOND,
            (Query(rate("vllm:request_success_total"), "finished"),),
            "A fall to nothing while the gateway has requests: vLLM hangs; runbook, VllmDoesNotAnswer.",
        ),
        Panel(
            "Requests running and waiting",
            Unit.COUNT,
            (
                Query("sum (vllm:num_requests_running)", "running"),
                Query("sum (vllm:num_requests_waiting)", "waiting in vLLM"),
                Query("sum (loraserve_gateway_waiting)", "held by the gateway"),
            ),
            "Waiting that does not go down: more load than one replica takes; raise gpuMaxSize or lower requestsPerReplica.",
        ),
        Panel(
            "KV cache in use",
            Unit.SHARE,
            (Query("max (vllm:kv_cache_usage_perc)", "fullest replica"),),
            "Near 1, requests are preempted and start again. Fewer adapter slots or shorter answers make room.",
            warn=0.9,
            maximum=1,
        ),
        Panel(
            "Tokens per second",
            Unit.PER_SECOND,
            (
                Query(rate("vllm:prompt_tokens_total"), "prompt"),
                Query(rate("vllm:generation_tokens_total"), "generation"),
            ),
            "Generation that falls while requests run: the batch is full of long prompts, or the GPU is throttled (GPU page).",
        ),
        Panel(
            "Duration of a request",
            Unit.SECONDS,
            _percentiles(VLLM_DURATION),
            "Grows with the answers' length. Compare with the time between tokens before blaming the GPU.",
        ),
        Panel(
            "Time between tokens",
            Unit.SECONDS,
            _percentiles(VLLM_INTER_TOKEN),
            "How fast a stream reads. Above 0.1 s people notice; fewer requests per replica make it faster.",
            warn=0.1,
        ),
        Panel(
            "Time in vLLM's queue",
            Unit.SECONDS,
            _percentiles(VLLM_QUEUE),
            "Time before the GPU looks at a request: it is what another replica would save.",
            warn=5,
        ),
        Panel(
            "Finished requests by reason",
            Unit.REQUESTS_PER_SECOND,
            (Query(rate("vllm:request_success_total", "finished_reason"), "{{finished_reason}}"),),
            "`length`: answers are cut at max_tokens. `abort`: clients go before the end; look at the duration.",
            look=Look.STACKED,
        ),
        Panel(
            "Preemptions",
            Unit.PER_SECOND,
            (Query(rate("vllm:num_preemptions_total"), "preempted"),),
            "Work that is thrown away since the KV cache was full: fewer requests per replica, or a larger cache.",
            warn=0.1,
        ),
        Panel(
            "What clients got",
            Unit.REQUESTS_PER_SECOND,
            (Query(rate("loraserve_gateway_requests_total", "outcome"), "{{outcome}}"),),
            "Anything but `ok` and `client_gone`: README, what each error means.",
            look=Look.STACKED,
        ),
        Panel(
            "Prefix cache",
            Unit.SHARE,
            (
                Query(
                    f"{rate('vllm:prefix_cache_hits_total')} / {rate('vllm:prefix_cache_queries_total')}",
                    "tokens found",
                ),
            ),
            "Low is not bad by itself. Prompts that begin alike within a tenant make it high, and first tokens fast.",
            maximum=1,
        ),
    ),
)
