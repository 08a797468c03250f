"""Pure arithmetic: which start-up flags the declared adapters need, and when they change.

vLLM fixes the number of adapter slots, their rank and the layers they reach at start-up. These form an *envelope* with
headroom: an adapter inside it is loaded at run time and restarts nothing; one outside it changes flags, hence the pod.
docs/capacity.md has the measurements behind the numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from loraserve.contract.desired_state import Adapter, Envelope
from loraserve.contract.document import MAX_RANK

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, MAX_RANK)
"""What vLLM accepts for --max-lora-rank."""
SLOT_STEPS = (4, 8, 16, 32, 52, 64, 96, 128, 192, 256)
"""Few, so that a compile cache, which is good for one number of slots, stays good over many changes."""
_OWN_SLOTS = 52
"""Up to so many, each version has a slot of its own."""
_SHARED_SLOTS = 32
"""Beyond that, kernels that look through all slots cost more than fetching an adapter into one."""
SWAP_HEADROOM = 2
"""Versions that may be resident beside the declared ones, while one adapter is swapped and another is added."""
USUAL_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj")


def first_envelope(modules: Collection[str] = USUAL_MODULES) -> Envelope:
    """What vLLM is started with from the beginning, so that the first adapters, such as most are, restart nothing."""
    return Envelope(slots=SLOT_STEPS[0], rank=16, target_modules=tuple(sorted(_groups(modules)[0])))


def _groups(modules: Collection[str]) -> tuple[set[str], set[str]]:
    """Attention and MLP of a base model with these layers."""
    attention = set(modules) & set(_ATTENTION)
    return attention, set(modules) - attention


def envelope_around(
    adapters: Sequence[Adapter],
    slots: int | None = None,
    at_once: int | None = None,
    modules: Collection[str] = USUAL_MODULES,
) -> Envelope | None:
    """The smallest envelope with headroom around the declared versions of a base model with these layers; None for 0 slots,
    which turns LoRA off.

    Without `slots`, every version that may be resident has one (a canary beside its stable version, both versions during
    a swap) as long as that is the faster way; beyond that there are slots for those that are `at_once` in use.
    """
    if slots == 0:
        return None
    wanted = slots or _default_slots(len(adapters) + SWAP_HEADROOM, at_once)
    first = first_envelope(modules)
    if wanted == first.slots and not any(first.misfit(adapter) for adapter in adapters):
        return first
    touched = {module for adapter in adapters for module in adapter.target_modules} or set(first.target_modules)
    grouped = {module for group in _groups(modules) if touched & group for module in group}
    return Envelope(
        slots=wanted,
        rank=_at_least(max((adapter.rank for adapter in adapters), default=first.rank), RANKS),
        target_modules=tuple(sorted(grouped | touched)),
    )


def _default_slots(versions: int, at_once: int | None) -> int:
    if versions <= _OWN_SLOTS:
        return _at_least(versions, SLOT_STEPS)
    return _SHARED_SLOTS if at_once is None else _at_least(min(at_once + SWAP_HEADROOM, SLOT_STEPS[-1]), SLOT_STEPS)


def lora_flags(envelope: Envelope, in_host_memory: int) -> list[str]:
    """vLLM's start-up flags for this envelope; so many adapters are kept in the host's memory, others on disk."""
    return [
        "--enable-lora",
        f"--max-loras={envelope.slots}",
        f"--max-cpu-loras={max(envelope.slots, in_host_memory)}",
        f"--max-lora-rank={envelope.rank}",
        "--lora-target-modules",
        *envelope.target_modules,
    ]


def crowding_warning(adapters: Sequence[Adapter], slots: Envelope | None) -> str | None:
    """What it costs that more versions are declared than there are slots; None where each has its own."""
    if not slots or len(adapters) + SWAP_HEADROOM <= slots.slots:
        return None
    return (
        f"{len(adapters)} adapter versions share {slots.slots} slots of the GPU: a request for one that is in none waits "
        "until it is copied in and another's requests have ended. With 200 adapters in 32, 16 and 8 slots the time to first "
        "token was 48, 48 and 62 ms in the median and 236, 261 and 513 ms in the 99th percentile (12 requests/s, even "
        "traffic, one H200); 50 adapters in 50 slots took 37 and 144. adapterSlots sets another number"
    )


def widening(adapters: Sequence[Adapter], modules: Collection[str] = USUAL_MODULES) -> dict[str, Sequence[Adapter]]:
    """Adapters that alone make the envelope wider for all: their name, and the others."""
    found: dict[str, Sequence[Adapter]] = {}
    for name in {adapter.name for adapter in adapters}:
        others = [adapter for adapter in adapters if adapter.name != name]
        mine = [adapter for adapter in adapters if adapter.name == name]
        around = envelope_around(others, modules=modules)
        if others and around and any(around.misfit(adapter) for adapter in mine):
            found[name] = others
    return found


def restart_reason(before: dict[str, object] | None, after: Envelope | None) -> str | None:
    """Why the start-up flags differ from those of the last update (as the stack put it out), or None where they do not."""
    now = after.model_dump(mode="json") if after else None
    if before == now:
        return None
    if not before:
        return "LoRA is turned on" if now else None
    if not now:
        return "LoRA is turned off"
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
