"""Pure arithmetic: where a GPU's memory goes, and what does not fit.

What vLLM does at its start, step by step (`Worker.determine_available_memory` of the version below), with the few
constants that are not arithmetic fitted to `bench/gpu_memory.json`; docs/capacity.md explains each part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from loraserve.contract.addresses import PROJECT
from loraserve.contract.desired_state import Envelope
from loraserve.planning.envelope import SLOT_STEPS
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES, GpuInstanceType
from loraserve.planning.model_shapes import ModelShape

MEASURED_VLLM = "0.32.0"
"""The vLLM whose memory is modelled here. Another one may divide it otherwise: measure (`python -m bench.gpu_memory`)."""
MAX_NUM_SEQS = 256
MAX_NUM_BATCHED_TOKENS = 2048
GRAPH_SIZES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
"""Batches, in tokens, that vLLM captures as CUDA graphs: 13 answer as fast as its own 51, and it is ready 15 s sooner.
Without those above 256 the median time to first token is three times as long (docs/cold-start.md)."""
KV_BLOCK_TOKENS = 16
SMALLEST_USEFUL_CONTEXT = 512
LARGEST_UTILIZATION = 0.95

_MIB = 1024**2
_GIB = 1024**3
_BYTES = 2
"""Of an activation, of an adapter's weight and of a logit: all are held in 16 bits."""

_OVERHEAD = 360 * _MIB
"""Kernels, handles and gaps between weights: 270 to 385 MiB on an H200, 340 to 440 on an H100."""
_CUBLAS_WORKSPACE = 32 * _MIB
_GRAPH_BYTES = 0.254 * _MIB
_FURTHER_GRAPH_BYTES = 0.108 * _MIB
"""What vLLM reserves for one layer of one CUDA graph, and of each further one for a batch of the same size."""
_NCCL_GRAPH_BYTES = 0.078 * _MIB
"""The same for one all-reduce between GPUs."""

_CONTEXT = _GIB // 2
"""The CUDA context, which lies outside vLLM's share: 518 MiB on an H200."""
_CARD_RESERVE = _GIB // 2
"""Memory that nvidia-smi counts and CUDA does not give: 615 MiB of an H200."""
_SAMPLING_BYTES = 16
"""For one logit that is sorted for top-k or top-p, and ranked for log-probabilities; vLLM's profiling has neither."""


@dataclass(frozen=True)
class Serving:
    """Everything GPU memory depends on. Without `gpu_memory_utilization` the largest safe one is taken."""

    model: ModelShape
    instance: GpuInstanceType
    max_model_len: int
    gpu_memory_utilization: float | None
    envelope: Envelope | None
    max_num_seqs: int = MAX_NUM_SEQS
    max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS
    specialize_active_lora: bool = False

    @property
    def utilization(self) -> float:
        """The share of each GPU that vLLM plans with."""
        return self.gpu_memory_utilization or largest_utilization(self)


@dataclass(frozen=True)
class MemoryPlan:
    """Where the memory of each GPU goes, GiB; `kv_tokens` may be negative where even the weights do not fit."""

    budget_gib: float
    outside_gib: float
    weights_gib: float
    adapters_gib: float
    peak_gib: float
    """The most that a first start takes for the moment, while it compiles or in a full batch."""
    graphs_gib: float
    overhead_gib: float
    """Kernels and handles, and the penalties' counters (a number for each token of the vocabulary and sequence)."""

    kv_bytes_per_token: int

    @property
    def kv_gib(self) -> float:
        """What is left for the KV cache."""
        taken = self.weights_gib + self.adapters_gib + self.peak_gib + self.graphs_gib + self.overhead_gib
        return self.budget_gib - taken

    @property
    def kv_tokens(self) -> int:
        """Tokens the KV cache holds, in whole blocks."""
        tokens = int(self.kv_gib * _GIB / self.kv_bytes_per_token)
        return tokens // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS


@lru_cache(maxsize=256)
def plan_memory(serving: Serving) -> MemoryPlan:
    """Where each GPU's memory goes under the given settings."""
    model, gpus, slots = serving.model, serving.instance.gpus, serving.envelope
    gpu_gib = serving.instance.gpu.memory_mib / 1024
    counters = serving.max_num_seqs * model.vocab_size * 4 * (1 + 1 / 32)
    adapters = _allocated(model.lora_tensors(slots, gpus)) if slots else 0
    return MemoryPlan(
        budget_gib=serving.utilization * gpu_gib,
        outside_gib=(1 - serving.utilization) * gpu_gib,
        weights_gib=model.weights_gib / gpus,
        adapters_gib=adapters / _GIB,
        peak_gib=_peak(serving) / _GIB,
        graphs_gib=_graphs(serving) / _GIB,
        overhead_gib=(_OVERHEAD + counters) / _GIB,
        kv_bytes_per_token=model.kv_bytes_per_token(gpus),
    )


def _peak(serving: Serving) -> float:
    """Bytes that torch takes at most while vLLM profiles a start without a compile cache."""
    model, gpus, tokens = serving.model, serving.instance.gpus, serving.max_num_batched_tokens
    forward = tokens * (3 * model.intermediate_size / gpus + 3 * model.hidden_size) * _BYTES
    logits = serving.max_num_seqs * model.vocab_size / gpus * _BYTES
    if gpus > 1:
        return forward + logits
    # torch.compile tries kernels of the embedding on a copy of its table.
    compiling = (model.vocab_size + 2 * tokens) * model.hidden_size * _BYTES - _CUBLAS_WORKSPACE
    return max(forward, logits, compiling)


def _graphs(serving: Serving) -> float:
    """Bytes that vLLM estimates for the graphs that it captures by itself: those were measured. GRAPH_SIZES take less."""
    layers, sizes = serving.model.num_hidden_layers, _measured_graph_sizes(serving.max_num_seqs)
    decode_only = sum(size <= serving.max_num_seqs for size in sizes)
    further = _lora_cases(serving) - 1
    of_a_size = layers * (_GRAPH_BYTES + further * _FURTHER_GRAPH_BYTES)
    if serving.instance.gpus > 1:
        of_a_size += (1 + further) * (2 * layers + 1) * _NCCL_GRAPH_BYTES
    return (len(sizes) + decode_only) * of_a_size


def _lora_cases(serving: Serving) -> int:
    """Graphs for a batch of one size: without LoRA, with it, or for several numbers of adapters in the batch."""
    if not serving.envelope:
        return 1
    most = serving.envelope.slots + 1
    if not serving.specialize_active_lora:
        return 2
    return 1 + len({most, *(1 << power for power in range(most.bit_length()))})


def _measured_graph_sizes(max_num_seqs: int) -> list[int]:
    """Those that vLLM chooses where it is told none (`VllmConfig._set_cudagraph_sizes`)."""
    largest = min(2 * max_num_seqs, 512)
    return [size for size in (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)) if size <= largest]


def _allocated(tensors: Iterable[int]) -> int:
    """Bytes that torch's allocator takes from CUDA for tensors that stay: it hands out pieces of segments."""
    total, gaps = 0, {2: [], 20: []}
    for size in tensors:
        if size >= 10 * _MIB:
            total += math.ceil(size / (2 * _MIB)) * 2 * _MIB
            continue
        segment = 2 if size <= _MIB else 20
        fitting = [gap for gap in gaps[segment] if gap >= size]
        gap = min(fitting, default=0)
        if gap:
            gaps[segment].remove(gap)
        else:
            gap = segment * _MIB
            total += gap
        gaps[segment].append(gap - size)
    return total


def largest_utilization(serving: Serving) -> float:
    """The largest share that leaves room for the CUDA context, and for what sampling takes beyond vLLM's profiling."""
    outside = (_CONTEXT + _CARD_RESERVE + beyond_the_share(serving)) / (serving.instance.gpu.memory_mib * _MIB)
    return min(int((1 - outside) * 100) / 100, LARGEST_UTILIZATION)


def beyond_the_share(serving: Serving) -> int:
    """Bytes that sampling a full batch takes."""
    return serving.max_num_seqs * serving.model.vocab_size * _SAMPLING_BYTES


def within_memory(serving: Serving) -> Serving:
    """With as many of the envelope's slots, or fewer, as leave half of what would be KV cache without them.

    An adapter in no slot waits for one, and a request without KV cache waits for another's end.
    """
    least = max(plan_memory(replace(serving, envelope=None)).kv_tokens / 2, serving.max_model_len)
    for slots in reversed(SLOT_STEPS):
        fewer = _with_slots(serving, slots)
        if plan_memory(fewer).kv_tokens >= least:
            return fewer
    return _with_slots(serving, SLOT_STEPS[0])


def _with_slots(serving: Serving, slots: int) -> Serving:
    """At most so many."""
    if not serving.envelope or serving.envelope.slots <= slots:
        return serving
    return replace(serving, envelope=serving.envelope.model_copy(update={"slots": slots}))


def memory_problem(serving: Serving) -> str | None:
    """Why the model does not fit the GPU, and the smallest single change that would make it; None where it fits."""
    if problem := _indivisible(serving):
        return problem
    largest = largest_utilization(serving)
    if serving.utilization > largest:
        return (
            f"{PROJECT}:gpuMemoryUtilization {serving.utilization} leaves too little for the CUDA context and for sampling "
            f"on {serving.instance.name}: set it to {largest} or less, or leave it out to have it computed"
        )
    plan = plan_memory(serving)
    if plan.kv_tokens >= serving.max_model_len:
        return None
    room = f"{plan.kv_tokens:,} tokens" if plan.kv_tokens > 0 else "none"
    return (
        f"{PROJECT}:maxModelLen {serving.max_model_len:,} leaves no room for one request on {serving.instance.name}: "
        f"of {plan.budget_gib:.1f} GiB the weights take {plan.weights_gib:.2f}, adapter slots {plan.adapters_gib:.2f}, "
        f"activations and compilation {plan.peak_gib:.2f}, CUDA graphs {plan.graphs_gib:.2f} and the rest "
        f"{plan.overhead_gib:.2f}, so the KV cache holds {room}. The smallest change that fits: {_smallest_change(serving)}"
    )


def _smallest_change(serving: Serving) -> str:
    for change, changed in _changes(serving):
        if fits(changed):
            return change
    return "none of the known instance types fits; use a smaller or a quantised base model"


def fits(serving: Serving) -> bool:
    """Whether one request of full length fits beside everything else."""
    return (
        not _indivisible(serving)
        and serving.utilization <= largest_utilization(serving)
        and plan_memory(serving).kv_tokens >= serving.max_model_len
    )


def _indivisible(serving: Serving) -> str | None:
    """What of the base model cannot be divided among the GPUs; vLLM would not start (`verify_with_parallel_config`)."""
    model, gpus = serving.model, serving.instance.gpus
    parts = {"attention heads": model.num_attention_heads, "MLP": model.intermediate_size}
    uneven = [f"{what} {size}" for what, size in parts.items() if size % gpus]
    heads = model.num_key_value_heads
    if heads % gpus and gpus % heads:
        uneven.append(f"key-value heads {heads}")
    if not uneven:
        return None
    return (
        f"{PROJECT}:gpuInstanceType {serving.instance.name} has {gpus} GPUs, among which the base model's {', '.join(uneven)} "
        "cannot be divided: choose a type with another number of GPUs"
    )


def _changes(serving: Serving) -> Iterator[tuple[str, Serving]]:
    """Single changes, the least intrusive first."""
    step = serving.utilization
    while (step := round(step + 0.01, 2)) <= largest_utilization(serving):
        yield f"gpuMemoryUtilization {step}", replace(serving, gpu_memory_utilization=step)
    tokens = plan_memory(serving).kv_tokens
    if tokens >= SMALLEST_USEFUL_CONTEXT:
        yield f"maxModelLen {tokens}", replace(serving, max_model_len=tokens)
    if serving.envelope:
        for slots in (step for step in reversed(SLOT_STEPS) if step < serving.envelope.slots):
            yield f"adapterSlots {slots}", _with_slots(serving, slots)
    for name, larger in GPU_INSTANCE_TYPES.items():
        if larger.gpus * larger.gpu.memory_mib > serving.instance.gpus * serving.instance.gpu.memory_mib:
            yield f"gpuInstanceType {name}", replace(serving, instance=larger)
