"""The one vLLM beside the agent."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from loraserve.errors import LoraserveError

ANSWER_SECONDS = 5.0
LOAD_SECONDS = 120.0
COMPLETION_SECONDS = 60.0
LONGEST_PROBE_TOKENS = 128
"""vLLM keeps one row of logits per prompt token for its log-probability: 16 MB on a vocabulary of 32,000."""
PREWARM_TOKENS = 8
USE_METRIC = "vllm:lora_requests_info"
_USE = re.compile(
    rf'^{USE_METRIC}{{.*?running_lora_adapters="(.*?)".*?waiting_lora_adapters="(.*?)".*?}} (\S+)', re.MULTILINE
)


class VllmUnreachable(LoraserveError):
    """vLLM is not there (yet), or stopped answering."""

    transient = True


class VllmRefused(LoraserveError):
    """vLLM answered with an error. Its status does not tell a bad adapter (500) from a passing trouble (500)."""

    transient = True


class Vllm:
    """Methods that ask vLLM raise VllmUnreachable or VllmRefused. Safe to share by threads."""

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # No proxy from the environment: this vLLM is in the same pod.
        self._http = httpx.Client(base_url=url, headers=headers, timeout=ANSWER_SECONDS, trust_env=False)

    def healthy(self) -> bool:
        try:
            return self._http.get("/health").is_success
        except httpx.HTTPError:
            return False

    def adapters(self) -> dict[str, str]:
        """The loaded adapters: served name -> folder."""
        models = self._ask("GET", "/v1/models").json()["data"]
        return {model["id"]: model["root"] for model in models if model.get("parent")}

    def load(self, name: str, folder: Path) -> None:
        self._ask("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, LOAD_SECONDS)

    def unload(self, name: str) -> None:
        self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name}, LOAD_SECONDS)

    def prompt_logprobs(self, model: str, prompts: Sequence[str]) -> list[float]:
        """The log-probability of every token of the prompts but their first ones; long prompts lose their start."""
        limits = {"max_tokens": 1, "truncate_prompt_tokens": LONGEST_PROBE_TOKENS}
        body = {"model": model, "prompt": list(prompts), "temperature": 0, "prompt_logprobs": 0, **limits}
        choices = self._ask("POST", "/v1/completions", body, COMPLETION_SECONDS).json()["choices"]
        tokens = [token for choice in choices for token in choice.get("prompt_logprobs") or () if token]
        if not tokens:
            raise VllmRefused("vLLM returned no log-probabilities of the probe prompts; they need two tokens or more")
        return [entry["logprob"] for token in tokens for entry in token.values()]

    def prewarm(self, model: str) -> None:
        """Has one short request answered."""
        body = {"model": model, "prompt": "Hello", "max_tokens": PREWARM_TOKENS, "temperature": 0}
        self._ask("POST", "/v1/completions", body, COMPLETION_SECONDS)

    def last_used(self) -> dict[str, float]:
        """When vLLM last had a request for an adapter, running or waiting: served name -> seconds since 1970.

        vLLM stamps the set of adapters in use with the time at every step but the one that ends a request: one that is
        over by now is seen as well, one of a single token is not.
        """
        seen: dict[str, float] = {}
        for running, waiting, at in _USE.findall(self.metrics()):
            for name in filter(None, [*running.split(","), *waiting.split(",")]):
                seen[name] = max(seen.get(name, 0.0), float(at))
        return seen

    def metrics(self) -> str:
        """vLLM's own metrics in the Prometheus text format."""
        return self._ask("GET", "/metrics").text

    def _ask(
        self, method: str, path: str, body: Mapping[str, object] | None = None, timeout: float = ANSWER_SECONDS
    ) -> httpx.Response:
        try:
            response = self._http.request(method, path, json=body, timeout=timeout)
        except httpx.HTTPError as error:
            raise VllmUnreachable(f"vLLM does not answer {path}: {error or type(error).__name__}") from error
        if not response.is_success:
            raise VllmRefused(f"vLLM answered {path} with {response.status_code}: {_message(response)}")
        return response


def _message(response: httpx.Response) -> str:
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return "unauthorized; give the agent vLLM's --api-key as AGENT_VLLM_API_KEY"
    try:
        return response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return response.text[:500]
