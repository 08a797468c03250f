"""A card with less free memory than planned: vLLM starts with what there is. A plugin that runs inside vLLM (`vllm.general_plugins`).

vLLM 0.32 refuses a share of the card that is not free, and Kubernetes starts it again for ever. Here the share is lowered once,
in the same start; vLLM itself still refuses where not even one request of full length fits. It imports nothing of ours.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
from collections.abc import Callable
from typing import Any

SPARE_VARIABLE = "LORASERVE_GPU_SPARE_MIB"
"""Names the memory that stays free beside the share, for what vLLM's profiling does not see."""
LOWERED = "less than the share"
"""Words of what is logged then, by which it is found."""
_MIB = 1024**2
_GIB = 1024**3
_log = logging.getLogger("vllm.loraserve")
"""Below vLLM's own, which has a handler."""

RequestMemory = Callable[..., int]


def lower_share_where_needed() -> None:
    """Called by vLLM in each of its processes. Raises AttributeError where this vLLM has no such function: it must not start."""
    from vllm.v1.worker import utils  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]

    wrapped = _at_most_what_is_free(utils.request_memory)
    utils.request_memory = wrapped
    if worker := sys.modules.get("vllm.v1.worker.gpu_worker"):
        worker.request_memory = wrapped  # type: ignore[attr-defined]


def _at_most_what_is_free(request_memory: RequestMemory) -> RequestMemory:
    @functools.wraps(request_memory)
    def request(init_snapshot: Any, cache_config: Any, *others: Any, **named: Any) -> int:
        _lower(init_snapshot, cache_config)
        return request_memory(init_snapshot, cache_config, *others, **named)

    return request


def _lower(snapshot: Any, cache_config: Any) -> None:
    """Changes the share where the card has less; a share of nothing is left for vLLM to refuse."""
    wanted, free, total = cache_config.gpu_memory_utilization, snapshot.free_memory, snapshot.total_memory
    if math.ceil(total * wanted) <= free:
        return
    share = math.floor((free - int(os.environ[SPARE_VARIABLE]) * _MIB) / total * 100) / 100
    if share <= 0:
        return
    cache_config.gpu_memory_utilization = share
    # A cache of this size is not to be kept for the next start, which may find the card free.
    os.environ["VLLM_ENABLE_STARTUP_PLAN"] = "0"
    _log.warning(
        "%s has %.1f of %.1f GiB free, %s %s that was planned: something else uses the card. The share is %s for this start, "
        "and the KV cache smaller; once the card is free, start the pod anew",
        snapshot.device_,
        free / _GIB,
        total / _GIB,
        LOWERED,
        wanted,
        share,
    )
