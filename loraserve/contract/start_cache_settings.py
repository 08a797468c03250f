"""What the pod tells the writer of a start cache. AWS credentials, region and endpoint are the AWS SDK's own variables."""

from pathlib import Path
from typing import ClassVar

from loraserve.contract.addresses import AGENT_PORT, VLLM_PORT
from loraserve.contract.environment import Count, ProcessSettings, Url


class StartCacheSettings(ProcessSettings):
    prefix: ClassVar[str] = "START_CACHE_"

    bucket: str
    version: str
    """What vLLM compiles there."""
    dir: Path
    """vLLM's cache volume, under the path that it has in every pod."""
    prompt_tokens: Count
    """Of one prompt that is larger than every CUDA graph, where the context takes that."""
    agent_url: Url = f"http://127.0.0.1:{AGENT_PORT}"
    vllm_url: Url = f"http://127.0.0.1:{VLLM_PORT}"
    vllm_api_key: str | None = None
