"""What bench.soak runs in vLLM's image: load on vLLM's own metrics, without a model. Standard library and vLLM only.

    soak_in_vllm.py MODEL_FOLDER PLUGINS_FOLDER HOURS STEPS RESULT.json

MODEL_FOLDER holds a config.json; PLUGINS_FOLDER what our pod mounts beside vLLM, "" for vLLM as it is. vLLM writes its
metrics at every STEPS-th start or end of a request.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import heapq
import itertools
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

ADAPTERS = 50
REQUESTS_PER_SECOND = 12
SECONDS_OF_A_REQUEST = (0.4, 1.0)
NEW_VERSIONS_HOURS = 24


def simulate(logger: Any, hours: float, steps: int, chance: random.Random) -> int:
    """Every request's start and end, as vLLM counts them for its metrics; how many requests there were."""
    from vllm.v1.metrics.stats import LoRARequestStates, SchedulerStats

    def step() -> None:
        if next(count) % steps == 0:
            stats = SchedulerStats()
            states.update_scheduler_stats(stats)
            logger.record(stats, None)

    states, requests, now, count = LoRARequestStates(log_stats=True), 0, 0.0, itertools.count()
    running: list[tuple[float, str, str]] = []
    while now < hours * 3600:
        now += chance.expovariate(REQUESTS_PER_SECOND)
        while running and running[0][0] <= now:
            _, request, adapter = heapq.heappop(running)
            states.request_finished(request, adapter)
            step()
        version = int(now / 3600 / NEW_VERSIONS_HOURS) + 1
        request, adapter = str(requests), f"tenant-{chance.randrange(ADAPTERS)}@v{version}"
        states.request_waiting(request, adapter)
        states.request_running(request, adapter)
        heapq.heappush(running, (now + chance.uniform(*SECONDS_OF_A_REQUEST), request, adapter))
        requests += 1
        step()
    return requests


def main(model: str, plugins: str, hours: str, steps: str, result: str) -> None:
    if plugins:
        sys.path.insert(0, plugins)
    from prometheus_client import REGISTRY, generate_latest
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.metrics.loggers import PrometheusStatLogger, load_stat_logger_plugin_factories

    config = EngineArgs(model=model, max_model_len=512, enable_lora=True, max_loras=ADAPTERS, max_lora_rank=8)
    (factory,) = load_stat_logger_plugin_factories() if plugins else [PrometheusStatLogger]
    logger = factory(config.create_engine_config(), [0])
    requests = simulate(logger, float(hours), int(steps), random.Random(1))
    started = time.perf_counter()
    text = generate_latest(REGISTRY).decode()
    found = {
        "requests": requests,
        "bytes": len(text),
        "sets": text.count("vllm:lora_requests_info{"),
        "seconds": time.perf_counter() - started,
    }
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
