"""Memory arithmetic agrees with what was measured on GPUs, and a refusal names the smallest change that fits."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from infra import pinned_images
from loraserve.contract.base_model import with_defaults
from loraserve.contract.desired_state import Envelope
from loraserve.planning.gpu_memory import (
    MEASURED_VLLM,
    Serving,
    largest_utilization,
    memory_problem,
    plan_memory,
)
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES, Gpu
from loraserve.planning.known_models import MISTRAL_7B_AWQ
from loraserve.planning.model_shapes import ModelShape
from tests.stack_values import CHECKOUT

ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
ALL = (*ATTENTION, "down_proj", "gate_proj", "up_proj")
G6 = GPU_INSTANCE_TYPES["g6.xlarge"]

MEASURED = json.loads((CHECKOUT / "bench/gpu_memory.json").read_text())
MEASURED_ROWS = [row for row in MEASURED["rows"] if "kv_tokens" in row["measured"]]


def serving(slots: Envelope | None, **changes: Any) -> Serving:
    defaults = {"max_model_len": 4096, "gpu_memory_utilization": 0.88, "instance": G6}
    return Serving(**({"model": MISTRAL_7B_AWQ, "envelope": slots} | defaults | changes))


def test_the_pinned_vllm_is_the_one_that_was_measured() -> None:
    pinned = pinned_images.VLLM.partition(":v")[2].partition("@")[0]
    how = (
        f"the memory model was fitted to vLLM {MEASURED_VLLM} and the image has {pinned}. Run `python -m bench.gpu_memory` "
        "with that vLLM on a GPU, correct loraserve/planning/gpu_memory.py where a row is off, and set MEASURED_VLLM"
    )
    assert pinned == MEASURED_VLLM == MEASURED["vllm"], how


def shape_of(row: dict[str, Any]) -> ModelShape:
    """The row's model, with the weights that vLLM reported where it had no slots."""
    config, gpus = MEASURED["models"][row["model"]], row.get("tensor_parallel", 1)
    plain = [one for one in MEASURED_ROWS if one["model"] == row["model"] and not one["slots"]]
    alike = next((one for one in plain if one.get("tensor_parallel", 1) == gpus), plain[0])
    weights = alike["measured"]["weights_mib"] * alike.get("tensor_parallel", 1) / 1024
    config = with_defaults(config)
    known = {name: config[name] for name in ModelShape.model_fields if name in config}
    return ModelShape.model_validate(known | {"weights_gib": weights})


@pytest.mark.parametrize("row", MEASURED_ROWS, ids=[row["name"] for row in MEASURED_ROWS])
def test_kv_cache_tokens_are_within_5_percent_of_the_measured_ones(row: dict[str, Any]) -> None:
    slots = Envelope(slots=row["slots"], rank=row["rank"], target_modules=row["modules"]) if row["slots"] else None
    card = replace(G6, gpu=Gpu("imposed", row["card_mib"]), gpus=row.get("tensor_parallel", 1))
    planned = plan_memory(
        serving(
            slots,
            model=shape_of(row),
            instance=card,
            gpu_memory_utilization=row["utilization"],
            max_num_seqs=row["max_num_seqs"],
            max_num_batched_tokens=row["max_num_batched_tokens"],
            specialize_active_lora=row.get("extra", {}).get("specialize_active_lora", False),
        )
    )
    assert planned.kv_tokens == pytest.approx(row["measured"]["kv_tokens"], rel=0.05)


def test_rows_were_kept_back_when_the_model_was_fitted() -> None:
    kept_back = [row for row in MEASURED_ROWS if row.get("hold_out")]
    assert len(kept_back) > 20
    assert {row.get("tensor_parallel", 1) for row in kept_back} == {1, 2}


@pytest.mark.parametrize(("slots", "measured"), [(200, 93_024), (64, 109_328), (32, 112_816)])
def test_a_server_started_on_an_h100_is_within_5_percent(slots: int, measured: int) -> None:
    slots_around = Envelope(slots=slots, rank=8, target_modules=ATTENTION)
    planned = plan_memory(serving(slots_around))
    assert planned.kv_tokens == pytest.approx(measured, rel=0.05)


def test_the_share_is_as_large_as_the_context_and_sampling_allow() -> None:
    llama = MISTRAL_7B_AWQ.model_copy(update={"vocab_size": 128_256})
    assert plan_memory(serving(None, gpu_memory_utilization=None)).budget_gib == pytest.approx(0.95 * 23_034 / 1024)
    assert largest_utilization(serving(None, model=llama)) == 0.93


def test_a_share_that_leaves_no_room_outside_is_refused() -> None:
    told = memory_problem(serving(None, gpu_memory_utilization=0.97)) or ""
    assert "set it to 0.95 or less, or leave it out" in told


def test_too_many_slots_are_refused_with_how_many_would_fit() -> None:
    told = memory_problem(serving(Envelope(slots=64, rank=64, target_modules=ALL), gpu_memory_utilization=None)) or ""
    assert "The smallest change that fits: adapterSlots 32" in told


def test_the_change_that_is_named_does_fit() -> None:
    told = memory_problem(serving(None, max_model_len=200_000, gpu_memory_utilization=None)) or ""
    tokens = int(told.rpartition("maxModelLen ")[2])
    assert memory_problem(serving(None, max_model_len=tokens, gpu_memory_utilization=None)) is None


def test_a_model_too_large_for_the_card_is_sent_to_a_larger_one() -> None:
    large = MISTRAL_7B_AWQ.model_copy(update={"weights_gib": 24.0})
    assert "gpuInstanceType g6e.xlarge" in (memory_problem(serving(None, model=large)) or "")


def test_a_model_too_large_for_every_card_is_told_so() -> None:
    huge = MISTRAL_7B_AWQ.model_copy(update={"weights_gib": 1400.0})
    assert "use a smaller or a quantised base model" in (memory_problem(serving(None, model=huge)) or "")


def test_a_model_that_cannot_be_divided_among_the_gpus_is_refused() -> None:
    qwen = MISTRAL_7B_AWQ.model_copy(update={"num_attention_heads": 28, "num_key_value_heads": 4})
    four, eight = GPU_INSTANCE_TYPES["g6.12xlarge"], GPU_INSTANCE_TYPES["p4d.24xlarge"]
    assert memory_problem(serving(None, model=qwen, instance=four)) is None
    told = memory_problem(serving(None, model=qwen, instance=eight)) or ""
    assert "p4d.24xlarge has 8 GPUs, among which the base model's attention heads 28 cannot be divided" in told
