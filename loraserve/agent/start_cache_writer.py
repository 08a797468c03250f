"""Waits for a vLLM that nobody else talks to, has it compile what requests need, and publishes what lies on its volume."""

import logging
import time

import httpx

from loraserve.agent.vllm import Vllm
from loraserve.catalog import start_cache
from loraserve.catalog.bucket import Bucket
from loraserve.contract.base_model import StartCache
from loraserve.contract.start_cache_settings import StartCacheSettings
from loraserve.log import event

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0


def write(settings: StartCacheSettings, bucket: Bucket) -> StartCache:
    """The stack-config entry. Waits for ever: the Job has a deadline.

    Raises UnsafeFile, VersionExists, CatalogUnavailable, VllmUnreachable, VllmRefused.
    """
    while not _ready(settings.agent_url):
        time.sleep(LOOK_SECONDS)
    vllm = Vllm(settings.vllm_url, settings.vllm_api_key)
    for model in ("", *sorted(vllm.adapters())[:1]):
        vllm.prewarm(model or vllm.base_model(), settings.prompt_tokens)
    written = start_cache.publish(bucket, settings.dir, settings.version)
    log.info(event("start cache published", version=written.version, bytes=written.size_bytes))
    return written


def _ready(agent_url: str) -> bool:
    """Whether vLLM is well and holds every adapter."""
    try:
        return httpx.get(f"{agent_url}/readyz", timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False
