"""`vllmExtraArgs`: the few flags of vLLM that a stack may set, and why it may not set the others. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from loraserve.planning.gpu_memory import MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS


@dataclass(frozen=True)
class Levers:
    """What trades throughput for latency, memory or time to start; docs/capacity.md has what each was measured to do."""

    max_num_seqs: int = MAX_NUM_SEQS
    max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS
    specialize_active_lora: bool = False
    prefix_caching: bool = True

    @property
    def flags(self) -> list[str]:
        """As vLLM takes them."""
        return [
            f"--max-num-seqs={self.max_num_seqs}",
            f"--max-num-batched-tokens={self.max_num_batched_tokens}",
            *(["--specialize-active-lora"] if self.specialize_active_lora else []),
            *([] if self.prefix_caching else ["--no-enable-prefix-caching"]),
        ]


def _number(least: int, most: int) -> Callable[[str, str], int]:
    def read(flag: str, text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not least <= int(text) <= most:
            raise ValueError(f"{flag} takes a whole number from {least} to {most}, and not {text!r}")
        return int(text)

    return read


def _switch(value: bool) -> Callable[[str, str], bool]:
    def read(flag: str, text: str) -> bool:
        if text:
            raise ValueError(f"{flag} takes no value, and not {text!r}")
        return value

    return read


_ALLOWED: dict[str, tuple[str, Callable[[str, str], int | bool]]] = {
    "--max-num-seqs": ("max_num_seqs", _number(1, 1024)),
    "--max-num-batched-tokens": ("max_num_batched_tokens", _number(256, 65_536)),
    "--specialize-active-lora": ("specialize_active_lora", _switch(True)),
    "--no-enable-prefix-caching": ("prefix_caching", _switch(False)),
}
"""The lever, and how its value is read."""

_OF_A_SETTING = {
    "baseModel": ["--model", "--tokenizer", "--served-model-name"],
    "baseModelRevision": ["--revision", "--code-revision", "--tokenizer-revision"],
    "baseModelMirror": ["--download-dir", "--load-format"],
    "hubToken": ["--hf-token"],
    "maxModelLen": ["--max-model-len"],
    "gpuMemoryUtilization": ["--gpu-memory-utilization"],
    "gpuInstanceType": ["--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size"],
    "adapters": ["--lora-modules", "--max-lora-rank", "--lora-target-modules", "--default-mm-loras"],
    "adapterSlots": ["--enable-lora", "--max-loras", "--max-cpu-loras"],
    "chatTemplateFile": ["--chat-template"],
    "toolCallParser": ["--tool-call-parser", "--enable-auto-tool-choice"],
    "reasoningParser": ["--reasoning-parser"],
    "longestGenerationSeconds": ["--shutdown-timeout"],
}
"""Flags that the program computes from what a stack says elsewhere."""

_REFUSED = {
    flag: f"the program sets it from {setting}" for setting, flags in _OF_A_SETTING.items() for flag in flags
} | {
    "--host": "the pod's probes, Service and NetworkPolicies name the address",
    "--port": "the pod's probes, Service and NetworkPolicies name the port",
    "--api-key": "the gateway and the agent share a key that nobody else has",
    "--middleware": "the program's own guards the adapter API",
    "--scheduling-policy": "the gateway says which requests can wait",
    "--trust-remote-code": "it runs code of the model's authors beside every tenant's prompts",
    "--enable-log-requests": "it writes prompts into logs",
    "--disable-log-stats": "alerts, dashboards and scaling need the metrics",
    "--kv-cache-memory-bytes": "a figure that is wrong on the card ends vLLM under load, where a share makes a smaller cache",
    "--kv-cache-dtype": "the memory plan was not measured with it",
    "--no-enable-chunked-prefill": "a prompt longer than a batch would keep vLLM from starting",
    "--enforce-eager": "it costs a multiple of the time of each token, and the memory plan counts CUDA graphs",
}


def read_levers(args: Sequence[str]) -> Levers:
    """From `--flag=value` or `--flag`. Raises ValueError, which says why a flag is not taken and which are."""
    found: dict[str, int | bool] = {}
    for arg in args:
        flag, _, text = arg.partition("=")
        if flag not in _ALLOWED:
            raise ValueError(_why_not(flag))
        lever, read = _ALLOWED[flag]
        if lever in found:
            raise ValueError(f"{flag} is given twice: keep one")
        found[lever] = read(flag, text)
    levers = replace(Levers(), **found)
    if levers.max_num_batched_tokens < levers.max_num_seqs:
        raise ValueError(
            f"--max-num-batched-tokens {levers.max_num_batched_tokens} is less than --max-num-seqs {levers.max_num_seqs}, and "
            "vLLM would not start: raise it, or lower the other"
        )
    return levers


def _why_not(flag: str) -> str:
    takes = f"what may be set here is {', '.join(_ALLOWED)} (--flag=value)"
    if reason := _REFUSED.get(flag.replace("_", "-")):
        return f"{flag} is not taken: {reason}; {takes}"
    return f"{flag!r} is not taken: {takes}"
