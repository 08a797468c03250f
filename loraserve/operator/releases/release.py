"""The program of two stacks compared: what dev ran, and what prod runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loraserve.operator.access.pulumi import Pulumi, PulumiFailed
from loraserve.planning.checkout import DIRTY, program


def differences(one: Pulumi, other: Pulumi) -> list[tuple[str, str, str]]:
    """(what, in `one`, in `other`) of their outputs `release`. Raises PulumiFailed."""
    before, after = (dict(_flat(_release(stack))) for stack in (one, other))
    found = ((what, before.get(what, "-"), after.get(what, "-")) for what in {**before, **after})
    differing = [(what, was, is_) for what, was, is_ in found if was != is_]
    # Commits of one program differ in stack files only.
    return [] if [what for what, *_ in differing] == ["commit"] else differing


def not_run(stack: Pulumi) -> str | None:
    """What is odd about deploying this checkout where `stack` is to have tried it out; None: it ran this very program.

    Raises PulumiFailed.
    """
    ran, here = _release(stack).get("program"), program(stack.folder)
    if here and ran == here and not here.endswith(DIRTY):
        return None
    return f"{stack.stack} ran program {ran or 'not known'}, this checkout holds {here or 'none that is committed'}"


def _release(stack: Pulumi) -> Mapping[str, Any]:
    release = stack.outputs().get("release")
    if not release:
        raise PulumiFailed(
            f"stack {stack.stack} says no `release`: `pulumi up --stack {stack.stack}` with this program"
        )
    return release


def _flat(release: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in release.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}: {name}", str(each)) for name, each in value.items())
        else:
            yield key, "not known" if value is None else str(value)
