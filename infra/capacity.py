"""Pure arithmetic: which start-up flags the declared adapters need, what they cost, and what does not fit.

vLLM fixes the number of adapter slots, their rank and the layers they reach at start-up. These form an *envelope* with
headroom: an adapter inside it is loaded at run time and restarts nothing; one outside it changes flags, hence the pod.
Checked against the measured tables in docs/capacity.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from infra.instance_types import GPU_INSTANCE_TYPES, GpuInstanceType
from infra.model_shapes import ModelShape
from infra.names import PROJECT
from infra.pod_resources import ADAPTER_VOLUME_GIB
from loraserve import desired
from loraserve.desired import MAX_RANK, Adapter

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, MAX_RANK)
"""What vLLM accepts for --max-lora-rank."""
SLOT_STEPS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
SWAP_HEADROOM = 2
"""Versions that may be resident beside the declared ones, while one adapter is swapped and another is added."""
_MODULE_GROUPS = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("gate_proj", "up_proj", "down_proj"),
)

MAX_NUM_SEQS = 256
MAX_NUM_BATCHED_TOKENS = 2048
KV_BLOCK_TOKENS = 16
SMALLEST_USEFUL_CONTEXT = 512
LARGEST_UTILIZATION = 0.95
GRAPHS_GIB = 1.5
"""CUDA graphs lie outside vLLM's share of the GPU: 0.6 to 1.5 GiB were measured."""
_ACTIVATION_BYTES_PER_UNIT = 18.8
"""Peak activations: bytes per batched token and unit of intermediate size, fitted to 0.515 GiB for Mistral-7B."""

_GIB = 1024**3
ADAPTER_DISK_BYTES = int(0.95 * ADAPTER_VOLUME_GIB * _GIB)
"""What the agent fills of the pod's volume: a pod whose volume runs over is evicted."""


@dataclass(frozen=True)
class Envelope:
    """Adapter slots in GPU memory, the largest rank and the layers they can hold."""

    slots: int
    rank: int
    target_modules: tuple[str, ...]

    def flags(self) -> list[str]:
        """vLLM's start-up flags for this envelope."""
        return [
            "--enable-lora",
            f"--max-loras={self.slots}",
            f"--max-cpu-loras={self.slots}",
            f"--max-lora-rank={self.rank}",
            "--lora-target-modules",
            *self.target_modules,
        ]

    def document(self) -> desired.Envelope:
        """The envelope as the agent reads it."""
        return desired.Envelope(slots=self.slots, rank=self.rank, target_modules=self.target_modules)

    def describe(self) -> dict[str, object]:
        """The envelope as plain values, for the stack's outputs."""
        return {"slots": self.slots, "rank": self.rank, "target_modules": list(self.target_modules)}


@dataclass(frozen=True)
class Serving:
    """Everything GPU memory depends on."""

    model: ModelShape
    instance: GpuInstanceType
    max_model_len: int
    gpu_memory_utilization: float
    envelope: Envelope | None


@dataclass(frozen=True)
class MemoryPlan:
    """Where the GPU's memory goes, GiB; `kv_tokens` may be negative where even the weights do not fit."""

    budget_gib: float
    weights_gib: float
    adapters_gib: float
    activations_gib: float
    outside_gib: float

    kv_bytes_per_token: int

    @property
    def kv_gib(self) -> float:
        """What is left for the KV cache."""
        return self.budget_gib - self.weights_gib - self.adapters_gib - self.activations_gib

    @property
    def kv_tokens(self) -> int:
        """Tokens the KV cache holds, in whole blocks."""
        tokens = int(self.kv_gib * _GIB / self.kv_bytes_per_token)
        return tokens // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS


def envelope(adapters: Sequence[Adapter]) -> Envelope | None:
    """The smallest envelope with headroom around the declared versions; None where there are none.

    Every version that may be resident has a slot: a canary beside its stable version, both versions during a swap.
    """
    if not adapters:
        return None
    needed = min(len(adapters) + SWAP_HEADROOM, SLOT_STEPS[-1])
    touched = {module for adapter in adapters for module in adapter.target_modules}
    grouped = {module for group in _MODULE_GROUPS if touched & set(group) for module in group}
    return Envelope(
        slots=_at_least(needed, SLOT_STEPS),
        rank=_at_least(max(adapter.rank for adapter in adapters), RANKS),
        target_modules=tuple(sorted(grouped | touched)),
    )


def plan_memory(serving: Serving) -> MemoryPlan:
    """Where the GPU's memory goes under the given settings."""
    gpu_gib = serving.instance.gpu.memory_mib / 1024
    slots = serving.envelope
    activations = MAX_NUM_BATCHED_TOKENS * serving.model.intermediate_size * _ACTIVATION_BYTES_PER_UNIT / _GIB
    return MemoryPlan(
        budget_gib=serving.gpu_memory_utilization * gpu_gib,
        weights_gib=serving.model.weights_gib,
        adapters_gib=slots.slots * serving.model.slot_gib(slots.rank, slots.target_modules) if slots else 0.0,
        activations_gib=activations,
        outside_gib=(1 - serving.gpu_memory_utilization) * gpu_gib,
        kv_bytes_per_token=serving.model.kv_bytes_per_token,
    )


def memory_problem(serving: Serving) -> str | None:
    """Why the model does not fit the GPU, and the smallest single change that would make it; None where it fits."""
    plan = plan_memory(serving)
    if plan.outside_gib < GRAPHS_GIB:
        largest = 1 - GRAPHS_GIB / (plan.budget_gib + plan.outside_gib)
        return (
            f"{PROJECT}:gpuMemoryUtilization {serving.gpu_memory_utilization} leaves {plan.outside_gib:.1f} GiB for CUDA "
            f"graphs, which need {GRAPHS_GIB} GiB: set it to {_floor(largest)} or less"
        )
    if plan.kv_tokens >= serving.max_model_len:
        return None
    room = f"{plan.kv_tokens:,} tokens" if plan.kv_tokens > 0 else "none"
    return (
        f"{PROJECT}:maxModelLen {serving.max_model_len:,} leaves no room for one request on {serving.instance.name}: "
        f"of {plan.budget_gib:.1f} GiB the weights take {plan.weights_gib:.2f}, adapter slots {plan.adapters_gib:.2f} "
        f"and activations {plan.activations_gib:.2f}, so the KV cache holds {room}. "
        f"The smallest change that fits: {_smallest_change(serving)}"
    )


def disk_problem(adapters: Sequence[Adapter]) -> str | None:
    """Why the adapters do not fit the pod's volume, with both versions of some during a swap; None where they do."""
    sizes = sorted((adapter.size_bytes for adapter in adapters), reverse=True)
    needed = sum(sizes) + sum(sizes[:SWAP_HEADROOM])
    if needed <= ADAPTER_DISK_BYTES:
        return None
    return (
        f"{PROJECT}:adapters need {needed / _GIB:.1f} GiB of disk, new versions beside old ones included, and the pod has "
        f"{ADAPTER_DISK_BYTES / _GIB:.1f} GiB: train at a lower rank, or split them over two stacks"
    )


def crowding_warning(adapters: Sequence[Adapter], slots: Envelope | None) -> str | None:
    """What it costs that more versions are declared than slots can be had; None where each has its own."""
    if not slots or len(adapters) + SWAP_HEADROOM <= slots.slots:
        return None
    return (
        f"{len(adapters)} adapter versions are declared, and vLLM holds {slots.slots} on the GPU, {SWAP_HEADROOM} of them "
        "for swaps: a request for one that is not there waits until it is copied in and another's requests have ended. "
        "With 50 adapters in 8 slots the median time to first token was 863 ms instead of 61. Split them over two stacks"
    )


def restart_reason(before: dict[str, object] | None, after: Envelope | None) -> str | None:
    """Why the start-up flags differ from those of the last update (its `describe()`), or None where they do not."""
    now = after.describe() if after else None
    if before == now:
        return None
    if not before:
        return "the first adapters turn LoRA on" if now else None
    if not now:
        return "the last adapters are gone, which turns LoRA off"
    reasons = [
        f"{_LABELS[key]} {_show(before.get(key))} -> {_show(now[key])}" for key in now if before.get(key) != now[key]
    ]
    return "the declared adapters leave the envelope: " + ", ".join(reasons)


_LABELS = {"slots": "slots", "rank": "rank", "target_modules": "target modules"}


def _show(value: object) -> str:
    """Stack outputs come back with every number a float."""
    if isinstance(value, list):
        return " ".join(value)
    return f"{value:g}" if isinstance(value, int | float) else "none"


def _at_least(needed: int, steps: Sequence[int]) -> int:
    return next(step for step in steps if step >= needed)


def _smallest_change(serving: Serving) -> str:
    for change, changed in _changes(serving):
        if fits(changed):
            return change
    return "none of the known instance types fits; use a smaller or a quantised base model"


def fits(serving: Serving) -> bool:
    """Whether one request of full length fits beside the weights, the adapters and the CUDA graphs."""
    plan = plan_memory(serving)
    return plan.outside_gib >= GRAPHS_GIB and plan.kv_tokens >= serving.max_model_len


def _changes(serving: Serving) -> Iterator[tuple[str, Serving]]:
    """Single changes, the least intrusive first."""
    step = serving.gpu_memory_utilization
    while (step := round(step + 0.01, 2)) <= LARGEST_UTILIZATION:
        yield f"gpuMemoryUtilization {step}", replace(serving, gpu_memory_utilization=step)
    tokens = plan_memory(serving).kv_tokens
    if tokens >= SMALLEST_USEFUL_CONTEXT:
        yield f"maxModelLen {tokens}", replace(serving, max_model_len=tokens)
    if serving.envelope:
        for slots in (step for step in reversed(SLOT_STEPS) if step < serving.envelope.slots):
            fewer = replace(serving, envelope=replace(serving.envelope, slots=slots))
            yield f"at most {slots - SWAP_HEADROOM} adapters of rank {serving.envelope.rank}", fewer
    for name, larger in GPU_INSTANCE_TYPES.items():
        if larger.gpu.memory_mib > serving.instance.gpu.memory_mib:
            yield f"gpuInstanceType {name}", replace(serving, instance=larger)


def _floor(value: float) -> float:
    return int(value * 100) / 100
