"""Memory arithmetic agrees with what was measured on GPUs, and a refusal names the smallest change that fits."""

from __future__ import annotations

from typing import Any

import pytest

from loraserve.contract.desired_state import Envelope
from loraserve.planning.gpu_memory import Serving, memory_problem, plan_memory
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES
from loraserve.planning.model_shapes import MISTRAL_7B_AWQ

ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
ALL = (*ATTENTION, "down_proj", "gate_proj", "up_proj")


def serving(slots: Envelope | None, **changes: Any) -> Serving:
    defaults = {"max_model_len": 4096, "gpu_memory_utilization": 0.88, "instance": GPU_INSTANCE_TYPES["g6.xlarge"]}
    return Serving(model=MISTRAL_7B_AWQ, envelope=slots, **(defaults | changes))


@pytest.mark.parametrize(
    ("slots", "rank", "modules", "measured"),
    [
        (0, 0, ALL, 125_296),
        (1, 8, ALL, 124_976),
        (8, 8, ALL, 122_656),
        (8, 64, ALL, 104_816),
        (32, 8, ALL, 114_784),
        (50, 8, ALL, 109_280),
        (50, 16, ALL, 93_072),
        (50, 8, ATTENTION, 120_080),
        (200, 8, ALL, 60_896),
        (200, 8, ATTENTION, 104_480),
    ],
)
def test_kv_cache_tokens_are_within_5_percent_of_the_measured_ones(
    slots: int, rank: int, modules: tuple[str, ...], measured: int
) -> None:
    planned = plan_memory(serving(Envelope(slots=slots, rank=rank, target_modules=modules) if slots else None))
    assert planned.kv_tokens == pytest.approx(measured, rel=0.05)


def test_the_tutorials_real_l4_is_within_5_percent() -> None:
    one_adapter = serving(Envelope(slots=1, rank=16, target_modules=ALL))
    assert plan_memory(one_adapter).kv_tokens == pytest.approx(123_472, rel=0.05)


def test_too_many_adapters_are_refused_with_how_many_would_fit() -> None:
    told = memory_problem(serving(Envelope(slots=256, rank=16, target_modules=ALL))) or ""
    assert "The smallest change that fits: at most 126 adapters of rank 16" in told


def test_the_change_that_is_named_does_fit() -> None:
    short = serving(None, max_model_len=200_000)
    assert memory_problem(short)
    assert memory_problem(serving(None, max_model_len=125_344)) is None


def test_a_model_too_large_for_the_card_is_sent_to_a_larger_one() -> None:
    large = MISTRAL_7B_AWQ.model_copy(update={"weights_gib": 24.0})
    told = memory_problem(Serving(large, GPU_INSTANCE_TYPES["g6.xlarge"], 4096, 0.88, None)) or ""
    assert "gpuInstanceType g6e.xlarge" in told


def test_a_model_too_large_for_every_card_is_told_so() -> None:
    huge = MISTRAL_7B_AWQ.model_copy(update={"weights_gib": 140.0})
    told = memory_problem(Serving(huge, GPU_INSTANCE_TYPES["g6.xlarge"], 4096, 0.88, None)) or ""
    assert "use a smaller or a quantised base model" in told
