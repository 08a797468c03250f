"""Which adapters a pod holds where it cannot hold all: by this the agent chooses, and a plan tells how many are left out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from loraserve.contract.desired_state import Adapter
from loraserve.planning.envelope import SWAP_HEADROOM

Declared = Mapping[str, Sequence[Adapter]]
"""Versions by name, since a canary and its stable version, or both versions of a swap, come and go together."""


def by_name(adapters: Iterable[Adapter]) -> Declared:
    declared: dict[str, list[Adapter]] = {}
    for adapter in adapters:
        declared.setdefault(adapter.name, []).append(adapter)
    return declared


def disk_needed(adapters: Sequence[Adapter]) -> int:
    """Bytes of all, and of what is fetched before another one goes: new versions beside old ones."""
    return _bytes(adapters) + _spare(adapters)


def fit_all(adapters: Sequence[Adapter], most: int | None, disk_bytes: int) -> bool:
    """`most` versions are held, and what fits the disk; None: all that are declared."""
    return most is None or (len(adapters) <= most and disk_needed(adapters) <= disk_bytes)


def unasked_order(declared: Declared) -> list[str]:
    """Of what no request has used yet: the prewarmed, then the others, by name."""
    return sorted(sorted(declared), key=lambda name: not any(adapter.prewarm for adapter in declared[name]))


def held(
    declared: Declared,
    ranked: Iterable[str],
    most: int,
    disk_bytes: int,
    anyway: Callable[[str], bool] = lambda name: False,
) -> Iterator[str]:
    """Names in the order of `ranked`, as long as there is room; and those that are to be held `anyway`."""
    places = most
    room = disk_bytes - _spare([adapter for versions in declared.values() for adapter in versions])
    for name in ranked:
        versions = declared[name]
        if (len(versions) <= places and _bytes(versions) <= room) or anyway(name):
            places, room = places - len(versions), room - _bytes(versions)
            yield name


def on_demand(adapters: Sequence[Adapter], most: int | None, disk_bytes: int) -> int:
    """How many versions no pod holds before a request asks for them."""
    if most is None or fit_all(adapters, most, disk_bytes):
        return 0
    declared = by_name(adapters)
    return len(adapters) - sum(
        len(declared[name]) for name in held(declared, unasked_order(declared), most, disk_bytes)
    )


def _spare(adapters: Sequence[Adapter]) -> int:
    return sum(sorted((adapter.size_bytes for adapter in adapters), reverse=True)[:SWAP_HEADROOM])


def _bytes(adapters: Iterable[Adapter]) -> int:
    return sum(adapter.size_bytes for adapter in adapters)
