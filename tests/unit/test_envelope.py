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
    first_envelope,
    lora_flags,
    restart_reason,
    widening,
)
from tests.stack_values import adapter

ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
ALL = (*ATTENTION, "down_proj", "gate_proj", "up_proj")
ALL_SORTED = tuple(sorted(ALL))


def adapters(*entries: dict[str, Any]) -> list[Adapter]:
    return [Adapter.model_validate(entry) for entry in entries]


def many(count: int, **changes: Any) -> list[Adapter]:
    return adapters(*(adapter(f"a{number}", **changes) for number in range(count)))


def test_no_slots_need_no_lora_flags() -> None:
    assert envelope_around([], slots=0) is None


def test_the_first_adapters_find_their_envelope_there() -> None:
    assert envelope_around([]) == envelope_around(many(1)) == envelope_around(many(2, rank=16))


def test_an_adapter_that_is_wider_than_most_has_an_envelope_made_for_it() -> None:
    wide = envelope_around(many(1, rank=64, targetModules=["q_proj", "up_proj"]))
    assert wide
    assert (wide.slots, wide.rank, wide.target_modules) == (4, 64, ALL_SORTED)


def test_flags_follow_from_the_adapters() -> None:
    slots = envelope_around(adapters(adapter(rank=12, targetModules=["q_proj", "v_proj"])))
    assert slots
    assert lora_flags(slots, 200) == [
        "--enable-lora",
        "--max-loras=4",
        "--max-cpu-loras=200",
        "--max-lora-rank=16",
        "--lora-target-modules",
        *ATTENTION,
    ]


def test_an_adapter_inside_the_envelope_changes_no_flag() -> None:
    assert envelope_around(many(1)) == envelope_around(many(2))


def test_the_envelope_leaves_room_for_both_versions_of_an_adapter_during_a_swap() -> None:
    for count in range(1, 51):
        slots = envelope_around(many(count))
        assert slots
        assert slots.slots >= count + SWAP_HEADROOM


def test_a_canary_has_a_slot_of_its_own() -> None:
    with_canary = [*many(2), *adapters(adapter("a0", version="v2", canaryPercent=10))]
    assert envelope_around(with_canary) == envelope_around(many(3))


def test_beyond_fifty_adapters_the_working_set_has_the_slots() -> None:
    assert {(envelope_around(many(count)) or first_envelope()).slots for count in (51, 100, 200)} == {32}
    chosen = envelope_around(many(200), slots=64)
    assert chosen
    assert chosen.slots == 64


def test_versions_that_share_slots_are_announced_with_what_that_costs() -> None:
    assert crowding_warning(many(50), envelope_around(many(50))) is None
    assert "share 32 slots" in (crowding_warning(many(51), envelope_around(many(51))) or "")
    assert "48, 48 and 62 ms" in (crowding_warning(many(8), envelope_around(many(8), slots=8)) or "")


def test_an_adapter_that_alone_widens_the_envelope_is_found() -> None:
    eight = many(8)
    assert widening(eight) == {}
    wide = adapters(adapter("wide", rank=64))
    assert widening([*eight, *wide]) == {"wide": eight}
    assert widening([*eight, *wide, *adapters(adapter("wide-too", rank=64))]) == {}
    assert widening(wide) == {}


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
        "the declared adapters leave the envelope: slots 4 -> 8, rank 16 -> 8"
    )
    wider = envelope_around(many(2, rank=64, targetModules=["q_proj", "up_proj"]))
    told = restart_reason(before.model_dump(mode="json"), wider) or ""
    assert "rank 16 -> 64" in told
    assert "target modules" in told


def test_staying_inside_the_envelope_is_silent() -> None:
    before = envelope_around(many(1))
    assert before
    assert restart_reason(before.model_dump(mode="json"), envelope_around(many(2))) is None
    assert restart_reason(None, None) is None


def test_turning_lora_on_or_off_restarts_vllm() -> None:
    slots = envelope_around(many(1))
    assert slots
    assert "turned on" in (restart_reason(None, slots) or "")
    assert "turned off" in (restart_reason(slots.model_dump(mode="json"), None) or "")
