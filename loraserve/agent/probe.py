"""Shows that a loaded adapter changes what the model computes; one that loads and serves the base's answers is not fit.

Texts are not compared: a good adapter may answer a prompt as the base does. The log-probabilities of the prompt's own
tokens are, against how far two runs of the base differ (batching changes the order of sums, so that need not be zero).
"""

import json
from collections.abc import Sequence
from pathlib import Path

from loraserve.agent.vllm import Vllm
from loraserve.catalog.manifest import MANIFEST_FILE, MAX_PROBE_PROMPTS
from loraserve.errors import LoraserveError

DEFAULT_PROMPTS = (
    "[INST] Which steps are needed to restore the service after an outage? [/INST]",
    "Question: How is a user's access to a shared folder taken away?\nAnswer:",
    '{"customer": "Meyer", "request": "Please cancel my order of last Tuesday.", "intent": "',
)
"""Where the publisher named none."""


class NoEffect(LoraserveError):
    """The model computes the same with the adapter as without it."""

    transient = True


def check_effect(vllm: Vllm, base: str, adapter: str, folder: Path) -> None:
    """Raises NoEffect; VllmRefused and VllmUnreachable as vLLM does."""
    prompts = probe_prompts(folder)
    before = vllm.prompt_logprobs(base, prompts)
    adapted = vllm.prompt_logprobs(adapter, prompts)
    after = vllm.prompt_logprobs(base, prompts)
    noise = _distance(before, after)
    effect = min(_distance(adapted, before), _distance(adapted, after))
    if effect <= noise:
        raise NoEffect(
            f"it changes nothing: its log-probabilities differ from the base's by {effect:.2g}, two runs of the base by "
            f"{noise:.2g}; train it again, or publish it with probe prompts on which it matters"
        )


def probe_prompts(folder: Path) -> Sequence[str]:
    """Those the publisher chose for the version in `folder`."""
    chosen = json.loads((folder / MANIFEST_FILE).read_bytes()).get("probePrompts")
    return chosen[:MAX_PROBE_PROMPTS] if chosen else DEFAULT_PROMPTS


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Mean absolute difference per token."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
