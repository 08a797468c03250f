"""Start-up flags follow from the declared adapters, and change only when they must; a change is explained."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from loraserve.contract.desired_state import Adapter
from loraserve.planning.envelope import (
    RANKS,
    SWAP_HEADROOM,
    crowding_warning,
    envelope_around,
    lora_flags,
    restart_reason,
)
from tests.stack_values import adapter

ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
ALL = (*ATTENTION, "down_proj", "gate_proj", "up_proj")


def adapters(*entries: dict[str, Any]) -> list[Adapter]:
    return [Adapter.model_validate(entry) for entry in entries]


def many(count: int, **changes: Any) -> list[Adapter]:
    return adapters(*(adapter(f"a{number}", **changes) for number in range(count)))


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
