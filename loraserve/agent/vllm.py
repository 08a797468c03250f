"""The one vLLM beside the agent."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from loraserve.errors import LoraserveError
from loraserve.monitoring.metrics import KV_CACHE_USAGE

ANSWER_SECONDS = 5.0
LOAD_SECONDS = 120.0
COMPLETION_SECONDS = 60.0
LONGEST_PROBE_TOKENS = 128
"""vLLM keeps one row of logits per prompt token for its log-probability: 16 MB on a vocabulary of 32,000."""
PREWARM_TOKENS = 8
LARGEST_METRICS_BYTES = 1 << 20
"""Twenty times what vLLM's metrics take."""
_LAST_USED = "vllm:lora_last_used_timestamp_seconds"
"""Told by our plugin inside vLLM, loraserve/vllm_plugins/lora_metrics.py."""
_LAST_USED_SAMPLE = re.compile(rf'^{_LAST_USED}{{lora_name="(.*?)"}} (\S+)', re.MULTILINE)
_KV_CACHE_SAMPLE = re.compile(rf"^{KV_CACHE_USAGE}{{.*?}} (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class VllmLoad:
    last_used: dict[str, float]
    """When vLLM last had a request for an adapter, running or waiting: served name -> seconds since 1970. It looks at every
    step but the one that ends a request: one that is over by now is seen as well, one of a single token is not."""
    kv_cache_usage: float | None
    """0 to 1; None where it does not say."""


class VllmUnreachable(LoraserveError):
    """vLLM is not there (yet), or stopped answering."""

    transient = True


class VllmBusy(VllmUnreachable):
    """vLLM is there, and did not answer in time."""


class VllmRefused(LoraserveError):
    """vLLM answered with an error. Its status does not tell a bad adapter (500) from a passing trouble (500)."""

    transient = True


class Vllm:
    """Methods that ask vLLM raise VllmUnreachable or VllmRefused. Safe to share by threads."""

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # No proxy from the environment: this vLLM is in the same pod. No limit: its callers are few, and one whose
        # answer does not come must not keep another from asking.
        self._http = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=ANSWER_SECONDS,
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=4),
        )

    def check_health(self) -> None:
        """Returns where vLLM is well."""
        self._ask("GET", "/health")

    def adapters(self) -> dict[str, str]:
        """The loaded adapters: served name -> folder."""
        models = self._ask("GET", "/v1/models").json()["data"]
        return {model["id"]: model["root"] for model in models if model.get("parent")}

    def load(self, name: str, folder: Path) -> None:
        self._ask("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, LOAD_SECONDS)

    def unload(self, name: str) -> None:
        """Takes it from vLLM's list, which waits for nothing."""
        self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def prompt_logprobs(self, model: str, prompts: Sequence[str]) -> list[float]:
        """The log-probability of every token of the prompts but their first ones; long prompts lose their start."""
        limits = {"max_tokens": 1, "truncate_prompt_tokens": LONGEST_PROBE_TOKENS}
        body = {"model": model, "prompt": list(prompts), "temperature": 0, "prompt_logprobs": 0, **limits}
        choices = self._ask("POST", "/v1/completions", body, COMPLETION_SECONDS).json()["choices"]
        tokens = [token for choice in choices for token in choice.get("prompt_logprobs") or () if token]
        if not tokens:
            raise VllmRefused("vLLM returned no log-probabilities of the probe prompts; they need two tokens or more")
        return [entry["logprob"] for token in tokens for entry in token.values()]

    def base_model(self) -> str:
        """The name under which it is served."""
        models = self._ask("GET", "/v1/models").json()["data"]
        return next(model["id"] for model in models if not model.get("parent"))

    def prewarm(self, model: str, words: int = 1) -> None:
        """Has one request answered; a prompt of many words runs the kernels that no CUDA graph has."""
        body = {"model": model, "prompt": " ".join(["Hello"] * words), "max_tokens": PREWARM_TOKENS, "temperature": 0}
        self._ask("POST", "/v1/completions", body, COMPLETION_SECONDS)

    def load_now(self) -> VllmLoad:
        """What its metrics say of its requests."""
        # The slash leads to prometheus_client's own application, which writes out no other metrics than these.
        text = self._ask("GET", f"/metrics/?name[]={_LAST_USED}&name[]={KV_CACHE_USAGE}").text
        return VllmLoad(
            last_used={name: float(at) for name, at in _LAST_USED_SAMPLE.findall(text)},
            kv_cache_usage=max(map(float, _KV_CACHE_SAMPLE.findall(text)), default=None),
        )

    def metrics(self) -> str:
        """vLLM's own metrics in the Prometheus text format, as far as LARGEST_METRICS_BYTES of them go."""
        content = bytearray()
        try:
            with self._http.stream("GET", "/metrics") as response:
                if not response.is_success:
                    raise VllmRefused(f"vLLM answered /metrics with {response.status_code}")
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > LARGEST_METRICS_BYTES:
                        break
        except httpx.HTTPError as error:
            raise _unreachable("/metrics", error) from error
        whole = content[: content.rfind(b"\n", 0, LARGEST_METRICS_BYTES) + 1]
        return whole.decode(errors="replace")

    def _ask(
        self, method: str, path: str, body: Mapping[str, object] | None = None, timeout: float = ANSWER_SECONDS
    ) -> httpx.Response:
        try:
            response = self._http.request(method, path, json=body, timeout=timeout)
        except httpx.HTTPError as error:
            raise _unreachable(path, error) from error
        if not response.is_success:
            raise VllmRefused(f"vLLM answered {path} with {response.status_code}: {_message(response)}")
        return response


def _unreachable(path: str, error: httpx.HTTPError) -> VllmUnreachable:
    kind = VllmBusy if isinstance(error, httpx.TimeoutException) else VllmUnreachable
    return kind(f"vLLM does not answer {path}: {error or type(error).__name__}")


def _message(response: httpx.Response) -> str:
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return "unauthorized; give the agent vLLM's --api-key as AGENT_VLLM_API_KEY"
    try:
        return response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return response.text[:500]
