"""Pure arithmetic: what training an adapter takes of a GPU and of its node, and the next setting to try where it is too much.

Sums over the tensors that transformers, peft and bitsandbytes make, with gradient checkpointing: one layer at a time is
computed again. No figure here is fitted; `bench.training_memory` holds the sum against a GPU (docs/training.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

from loraserve.contract.training import Method, Training
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES, T4, GpuInstanceType
from loraserve.planning.model_shapes import ModelShape

SHORTEST_USEFUL_ROW = 512
"""Tokens."""
_GIB = 1024**3
_NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Of a weight in NF4: 4 bits, a scale of 8 bits for 64 of them, and one of 32 for 256 scales (double quantisation)."""
_BF16, _FP32 = 2, 4
_ADAPTER_BYTES = 4 * _FP32
"""Of an adapter's weight: peft keeps it in fp32, with its gradient and Adam's two moments."""
_INPUT_BYTES = 2 * _FP32 + 1
"""What LoRA keeps of one input of a layer: in fp32, after dropout, and dropout's mask."""
_LOGIT_BYTES = _BF16 + 3 * _FP32
"""The model's, then in fp32, its logarithm, and its gradient."""
_CONTEXT = 2 * _GIB
"""The CUDA context and kernels, what the card withholds, and gaps between tensors."""
_HOST_PROCESS = 4 * _GIB
"""Python with torch and CUDA's libraries, the optimizer's state while it is saved."""
_HOST_TENSORS = 2
"""How often the largest tensor is in memory while weights are loaded: as read, and as it goes to the GPU."""


@dataclass(frozen=True)
class TrainingRun:
    """What the memory of a training depends on; `length` is of the longest row that it takes, tokens."""

    model: ModelShape
    instance: GpuInstanceType
    rank: int
    target_modules: tuple[str, ...]
    batch_size: int
    accumulation: int
    length: int
    method: Method = "qlora"

    @classmethod
    def of(cls, training: Training, shape: ModelShape, instance: str) -> Self:
        return cls(
            shape,
            GPU_INSTANCE_TYPES[instance],
            training.rank,
            training.target_modules,
            training.batch_size,
            training.accumulation,
            training.max_length,
            training.method,
        )

    @property
    def tokens(self) -> int:
        """Computed at once."""
        return self.batch_size * self.length


@dataclass(frozen=True)
class TrainingMemory:
    """GiB of one GPU, but for `host_gib`, which is of the node."""

    weights_gib: float
    adapter_gib: float
    """With gradients and Adam's moments."""
    checkpoints_gib: float
    """The input of each layer."""
    peak_gib: float
    """One layer computed again, or the logits: whichever is more."""
    context_gib: float
    host_gib: float

    @property
    def gpu_gib(self) -> float:
        return self.weights_gib + self.adapter_gib + self.checkpoints_gib + self.peak_gib + self.context_gib


def plan_training(run: TrainingRun) -> TrainingMemory:
    model, modules = run.model, run.model.lora_shape.modules
    linear = model.num_hidden_layers * sum(width_in * width_out for width_in, width_out in modules.values())
    tables = 2 * model.vocab_size * model.hidden_size
    adapted = [modules[name] for name in run.target_modules]
    adapter = model.num_hidden_layers * run.rank * sum(width_in + width_out for width_in, width_out in adapted)
    layer = sum(width_out for _, width_out in modules.values()) * _BF16 + sum(w for w, _ in adapted) * _INPUT_BYTES
    # The gradient of what a layer gives is as large as that.
    layer += sum(width_out for _, width_out in modules.values()) * _BF16
    per_weight = _NF4_BYTES if run.method == "qlora" else _BF16
    largest = max(model.vocab_size * model.hidden_size, model.hidden_size * model.intermediate_size) * _FP32
    return TrainingMemory(
        weights_gib=(linear * per_weight + tables * _BF16) / _GIB,
        adapter_gib=adapter * _ADAPTER_BYTES / _GIB,
        checkpoints_gib=run.tokens * model.num_hidden_layers * model.hidden_size * _BF16 / _GIB,
        peak_gib=run.tokens * max(layer, model.vocab_size * _LOGIT_BYTES) / _GIB,
        context_gib=_CONTEXT / _GIB,
        host_gib=(_HOST_PROCESS + _HOST_TENSORS * largest) / _GIB,
    )


def training_fits(run: TrainingRun) -> bool:
    return run.instance.gpu != T4 and _gpu_fits(run) and _host_fits(run)


def training_problem(run: TrainingRun) -> str | None:
    """Why a training does not fit its instance, and the smallest change that would make it; None where it fits."""
    layers = run.model.lora_shape.modules
    if strangers := [name for name in run.target_modules if name not in layers]:
        return (
            f"target_modules: {', '.join(strangers)} are not layers of the base model: name some of {', '.join(layers)}"
        )
    plan, instance = plan_training(run), run.instance
    if training_fits(run):
        return None
    if instance.gpu == T4:
        wanted = "bfloat16 and its GPU has none"
    elif not _gpu_fits(run):
        wanted = (
            f"{plan.gpu_gib:.1f} GiB of the GPU (weights {plan.weights_gib:.1f}, adapter and optimizer {plan.adapter_gib:.1f}, "
            f"checkpoints {plan.checkpoints_gib:.1f}, one layer or the logits {plan.peak_gib:.1f}, context {plan.context_gib:.1f}) and "
            f"it has {_gpu_gib(instance):.1f}"
        )
    else:
        wanted = f"{plan.host_gib:.1f} GiB of memory and it gives {_host_gib(instance):.1f}"
    fixes = [words for words, changed in changes(run) if training_fits(changed)]
    if not fixes:
        remedy = "none of the known instance types fits: train a smaller model"
    else:
        larger = next((words for words in fixes[1:] if words.startswith("gpuInstanceType")), None)
        remedy = f"the smallest change that fits: {fixes[0]}" + (f"; or {larger}" if larger else "")
    return f"this training does not fit {instance.name}: it takes {wanted}; {remedy}"


def changes(run: TrainingRun) -> Iterator[tuple[str, TrainingRun]]:
    """What to try where memory does not do, the least intrusive first: what is learnt stays the same as long as can be."""
    batch, accumulation = run.batch_size, run.accumulation
    while batch > 1:
        batch, accumulation = batch // 2, accumulation * 2
        yield (
            f"batchSize {batch} and accumulation {accumulation}",
            replace(run, batch_size=batch, accumulation=accumulation),
        )
    smallest = replace(run, batch_size=batch, accumulation=accumulation)
    if run.method == "lora":
        yield "method qlora", replace(run, method="qlora")
        smallest = replace(smallest, method="qlora")
    larger = [
        other
        for other in GPU_INSTANCE_TYPES.values()
        if other.gpus == 1  # as many as a training uses
        and (_gpu_gib(other) > _gpu_gib(run.instance) or _more_host(other, run))
    ]
    for other in sorted(larger, key=lambda one: (one.gpus, _gpu_gib(one), one.memory_mib)):
        yield f"gpuInstanceType {other.name}", replace(run, instance=other)
    length = run.length
    while length // 2 >= SHORTEST_USEFUL_ROW:
        length //= 2
        yield f"maxLength {length}, for rows that are as short", replace(smallest, length=length)


def next_setting(run: TrainingRun) -> str:
    """What to try after a card ran out of memory although the sum said that it would do."""
    return next((words for words, _ in changes(run)), "a smaller model")


def _gpu_gib(instance: GpuInstanceType) -> float:
    return instance.gpu.memory_mib / 1024


def _host_gib(instance: GpuInstanceType) -> float:
    return instance.allocatable_memory_mib / 1024


def _gpu_fits(run: TrainingRun) -> bool:
    return plan_training(run).gpu_gib <= _gpu_gib(run.instance)


def _host_fits(run: TrainingRun) -> bool:
    return plan_training(run).host_gib <= _host_gib(run.instance)


def _more_host(other: GpuInstanceType, run: TrainingRun) -> bool:
    return _gpu_gib(other) >= _gpu_gib(run.instance) and other.memory_mib > run.instance.memory_mib
