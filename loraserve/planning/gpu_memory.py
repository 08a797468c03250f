"""Pure arithmetic: where the GPU's memory goes, and what does not fit. Checked against the measured tables in
docs/capacity.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from loraserve.contract.addresses import PROJECT
from loraserve.contract.desired_state import Envelope
from loraserve.planning.envelope import SLOT_STEPS, SWAP_HEADROOM
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES, GpuInstanceType
from loraserve.planning.model_shapes import ModelShape

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
            fewer = replace(serving, envelope=serving.envelope.model_copy(update={"slots": slots}))
            yield f"at most {slots - SWAP_HEADROOM} adapters of rank {serving.envelope.rank}", fewer
    for name, larger in GPU_INSTANCE_TYPES.items():
        if larger.gpu.memory_mib > serving.instance.gpu.memory_mib:
            yield f"gpuInstanceType {name}", replace(serving, instance=larger)


def _floor(value: float) -> float:
    return int(value * 100) / 100
