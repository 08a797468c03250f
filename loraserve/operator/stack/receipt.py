"""`loraserve receipt`: what a stack had, written before `destroy`, since state and outputs are empty afterwards; and after it what is
left of that, by the finder of leftovers, and what it has cost: hours at list price."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from loraserve.operator.stack.leftovers import LeftoversError, StackState, connected, explained, find
from loraserve.planning import cost, stack_file

CLUSTER = "aws:eks/cluster:Cluster"


class Receipt(BaseModel):
    """`had` is the type by id, of all that costs or could; `hourly` a list price in US dollars, where it is known here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stack: str
    region: str
    account: str
    written_at: AwareDatetime
    since: AwareDatetime | None
    """When the cluster was made."""
    hourly: float | None
    had: dict[str, str]

    @property
    def hours(self) -> float:
        return (self.written_at - self.since).total_seconds() / 3600 if self.since else 0.0

    def estimate(self) -> str:
        """What it has cost, in one line."""
        if not self.since or self.hourly is None:
            return "no estimate of its cost: the state says no time, or there is no list price for its settings"
        return (
            f"an estimate: {self.hours:,.1f} h at ${self.hourly:.2f}, ${self.hours * self.hourly:,.2f} at list price, without GPU nodes, "
            f"logs and traffic; the bill has them by the tag loraserve/stack={self.stack}"
        )


def run(stack: str, export: str, folder: Path, now: datetime | None = None) -> bool:
    """Writes the receipt of a stack that stands; of one that was destroyed compares. Returns whether something is left.

    `folder` has the stack's files, and gets the receipt. Raises LeftoversError, InvalidSettings.
    """
    state, path = StackState.read(export, stack), folder / f"receipt-{stack}.json"
    before, stands = _read(path), _had(state)
    if stands and not (before and stands.items() < before.had.items()):
        _write(stack, stands, state, path, now or datetime.now(UTC))
        return False
    if not before:
        raise LeftoversError(
            f"stack {stack} has nothing in its state, and {path} was not written before `destroy`: "
            f"`pulumi stack export --stack {stack} | loraserve leftovers {stack}` says what is left all the same"
        )
    return _compare(before, folder)


def _had(state: StackState) -> dict[str, str]:
    """What AWS has; the cluster's objects go with it."""
    return {item["id"]: item["type"] for item in state.resources if item["type"].startswith("aws:") and item.get("id")}


def _write(stack: str, had: dict[str, str], state: StackState, path: Path, now: datetime) -> None:
    settings = stack_file.read(path.with_name(f"Pulumi.{stack}.yaml"))
    with explained():
        _, region, account = connected(path.with_name(f"Pulumi.{stack}.yaml"))
    zones = len(settings.availability_zones) or settings.availability_zone_count
    parts = cost.idle_cost(settings, region, zones)  # a GPU's price is no part of it, and need not be known
    receipt = Receipt(
        stack=stack,
        region=region,
        account=account,
        written_at=now,
        since=_made(state.resources),
        hourly=sum(parts.values()) / cost.HOURS if parts else None,
        had=had,
    )
    path.write_text(receipt.model_dump_json(indent=2), encoding="utf-8")
    click.echo(
        f"{path}: {_counted(receipt)}.\n{receipt.estimate()}\nNow `pulumi destroy --stack {stack}`, then this command again."
    )


def _made(resources: tuple[Mapping[str, Any], ...]) -> datetime | None:
    made = [item["created"] for item in resources if item["type"] == CLUSTER and item.get("created")]
    return datetime.fromisoformat(made[0]) if made else None


def _compare(before: Receipt, folder: Path) -> bool:
    with explained():
        connect, _, _ = connected(folder / f"Pulumi.{before.stack}.yaml")
        found = find(before.stack, StackState(), connect)
    click.echo(f"Stack {before.stack} had {_counted(before)}:")
    for kind, count in sorted(Counter(before.had.values()).items()):
        click.echo(f"  {count:>3} {kind}")
    click.echo(before.estimate())
    for one in found:
        click.echo(f"{'kept' if one.kept else 'LEFT'} {one.kind} {one.name}")
    left = any(not one.kept for one in found)
    delete = f"; how to delete it: pulumi stack export --stack {before.stack} | loraserve leftovers {before.stack}"
    click.echo(
        f"Something is left{delete}"
        if left
        else "Nothing is left that costs" + (", but what was kept." if found else ".")
    )
    return left


def _counted(receipt: Receipt) -> str:
    return f"{len(receipt.had)} objects in AWS ({receipt.region}, account {receipt.account}) on {receipt.written_at:%Y-%m-%d %H:%M %Z}"


def _read(path: Path) -> Receipt | None:
    try:
        return Receipt.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise LeftoversError(f"{path} is no receipt ({error}): move it away") from None
