"""Capacity arithmetic agrees with what was measured on GPUs, and start-up flags change only when they must."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraserve.contract.desired_state import Adapter, Envelope
from loraserve.planning import pod_resources
from loraserve.planning.envelope import (
    RANKS,
    SWAP_HEADROOM,
    crowding_warning,
    envelope_around,
    lora_flags,
    restart_reason,
)
from loraserve.planning.gpu_memory import Serving, memory_problem, plan_memory
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES, SYSTEM_INSTANCE_TYPES
from loraserve.planning.model_shapes import MISTRAL_7B_AWQ
from tests.stack_values import adapter

ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
ALL = (*ATTENTION, "down_proj", "gate_proj", "up_proj")


def adapters(*entries: dict[str, Any]) -> list[Adapter]:
    return [Adapter.model_validate(entry) for entry in entries]


def many(count: int, **changes: Any) -> list[Adapter]:
    return adapters(*(adapter(f"a{number}", **changes) for number in range(count)))


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


def test_no_adapters_need_no_lora_flags() -> None:
    assert envelope_around([]) is None


def test_flags_follow_from_the_adapters() -> None:
    slots = envelope_around(adapters(adapter(rank=12, targetModules=["q_proj", "v_proj"])))
    assert slots
    assert lora_flags(slots) == [
        "--enable-lora",
        "--max-loras=4",
        "--max-cpu-loras=4",
        "--max-lora-rank=16",
        "--lora-target-modules",
        *ATTENTION,
    ]


def test_an_adapter_inside_the_envelope_changes_no_flag() -> None:
    assert envelope_around(many(1)) == envelope_around(many(2))


def test_the_envelope_leaves_room_for_both_versions_of_an_adapter_during_a_swap() -> None:
    for count in range(1, 200):
        slots = envelope_around(many(count))
        assert slots
        assert slots.slots >= count + SWAP_HEADROOM


def test_a_canary_has_a_slot_of_its_own() -> None:
    with_canary = [*many(2), *adapters(adapter("a0", version="v2", canaryPercent=10))]
    assert envelope_around(with_canary) == envelope_around(many(3))


def test_versions_that_must_share_slots_are_announced_with_what_that_costs() -> None:
    assert crowding_warning(many(254), envelope_around(many(254))) is None
    assert "863 ms instead of 61" in (crowding_warning(many(255), envelope_around(many(255))) or "")


@given(st.lists(st.sampled_from(ALL), min_size=1), st.integers(1, 512))
def test_every_allowed_adapter_fits_its_own_envelope(modules: list[str], rank: int) -> None:
    slots = envelope_around(adapters(adapter(rank=rank, targetModules=modules)))
    assert slots
    assert slots.rank in RANKS
    assert slots.rank >= rank
    assert set(modules) <= set(slots.target_modules)


def test_leaving_the_envelope_is_explained() -> None:
    before = envelope_around(many(2))
    assert before
    assert restart_reason(before.model_dump(mode="json"), envelope_around(many(3))) == (
        "the declared adapters leave the envelope: slots 4 -> 8"
    )
    wider = envelope_around(many(2, rank=64, targetModules=["q_proj", "up_proj"]))
    told = restart_reason(before.model_dump(mode="json"), wider) or ""
    assert "rank 8 -> 64" in told
    assert "target modules" in told


def test_staying_inside_the_envelope_is_silent() -> None:
    before = envelope_around(many(1))
    assert before
    assert restart_reason(before.model_dump(mode="json"), envelope_around(many(2))) is None
    assert restart_reason(None, None) is None


def test_the_first_and_the_last_adapter_restart_vllm() -> None:
    slots = envelope_around(many(1))
    assert slots
    assert "turn LoRA on" in (restart_reason(None, slots) or "")
    assert "turns LoRA off" in (restart_reason(slots.model_dump(mode="json"), None) or "")


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


def test_adapters_that_fit_the_disk_only_without_a_swap_are_refused() -> None:
    size = 1900 * 1024**2
    assert pod_resources.disk_problem(many(3, sizeBytes=size)) is None
    assert "loraserve:adapters need 11.1 GiB of disk" in (pod_resources.disk_problem(many(4, sizeBytes=size)) or "")


def test_the_pod_fits_a_g6_xlarge_and_14_gib_would_not() -> None:
    node = GPU_INSTANCE_TYPES["g6.xlarge"]
    assert pod_resources.node_fit_problem(node) is None
    beside = sum(requests.memory_mib for requests in pod_resources.GPU_NODE_DAEMONSETS.values())
    assert 14 * 1024 + pod_resources.AGENT_REQUESTS.memory_mib + beside > node.allocatable_memory_mib


def test_allocatable_cpu_is_what_the_eks_ami_leaves() -> None:
    assert GPU_INSTANCE_TYPES["g6.xlarge"].allocatable_cpu_millis == 3920
    assert SYSTEM_INSTANCE_TYPES["t3a.medium"].allocatable_cpu_millis == 1930
