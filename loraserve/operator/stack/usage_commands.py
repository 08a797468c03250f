"""`loraserve usage`: what tenants used, for a bill."""

import csv
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime

import click
from rich.table import Table

from loraserve.contract.usage import Used
from loraserve.monitoring.rules import WRITTEN_TOKEN_WEIGHT
from loraserve.operator.access.terminal import add_row, busy, json_option, print_json, print_table, table


@dataclass(frozen=True)
class Row:
    """What one tenant used of one version of a model on a day."""

    day: str
    tenant: str
    model: str
    version: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    gpu_share: float
    """Of the month's work, by tokens: a written one counts as four that are read, as the dashboards have it."""


@click.command()
@click.option("--bucket", "bucket_name", required=True, metavar="NAME", help="The stack's adapter bucket.")
@click.option("--month", type=click.DateTime(["%Y-%m"]), metavar="YYYY-MM", help="In UTC (default: the present one).")
@click.option("--dollars", type=float, help="What the month has cost: says each one's part of it, by its share.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, a row for each day.")
@json_option
def usage(bucket_name: str, month: datetime | None, dollars: float | None, as_csv: bool, as_json: bool) -> None:
    """Show what each tenant used of each adapter in a month: requests, tokens, share of the GPU's work.

    Counted by the gateways, which write it into the bucket every two minutes.
    """
    from loraserve.catalog import usage as ledger
    from loraserve.catalog.bucket import Bucket

    bucket = Bucket(bucket_name)
    with busy("reading the ledger"):
        rows = list(per_day(ledger.read_month(bucket, (month or datetime.now(UTC)).date())))
    plain = [asdict(row) | _part(dollars, row.gpu_share) for row in rows]
    if as_csv:
        columns = [*(field.name for field in fields(Row)), *_part(dollars, 0)]
        writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(plain)
    elif as_json:
        print_json(plain)
    else:
        print_table(_shown(rows, dollars))


def per_day(found: Iterable[tuple[date, Used]]) -> Iterator[Row]:
    """Sums over processes, in order, with each one's share of all."""
    sums: dict[tuple[str, str, str, str], Counter[str]] = {}
    for day, used in found:
        counts = sums.setdefault((day.isoformat(), used.tenant, used.model, used.version), Counter())
        counts.update(r=used.requests, p=used.prompt_tokens, c=used.completion_tokens)
    whole = sum(map(_work, sums.values())) or 1
    for key, counts in sorted(sums.items()):
        yield Row(*key, counts["r"], counts["p"], counts["c"], round(_work(counts) / whole, 6))


def _work(counts: Counter[str]) -> int:
    return counts["p"] + WRITTEN_TOKEN_WEIGHT * counts["c"]


def _part(dollars: float | None, share: float) -> dict[str, float]:
    """Nothing where no sum was given."""
    return {} if dollars is None else {"dollars": round(dollars * share, 4)}


def _shown(rows: Iterable[Row], dollars: float | None) -> Table:
    """The month's sums."""
    sums: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        total = sums.setdefault((row.tenant, row.model, row.version), [0, 0, 0, 0])
        for at, value in enumerate((row.requests, row.prompt_tokens, row.completion_tokens, row.gpu_share)):
            total[at] += value
    shown = table(
        "tenant", "model", "version", "requests", "prompt tokens", "completion tokens", "GPU share", *_part(dollars, 0)
    )
    for key, (requests, prompt, completion, share) in sums.items():
        counts = (f"{requests:,.0f}", f"{prompt:,.0f}", f"{completion:,.0f}", f"{share:.1%}")
        add_row(shown, *key, *counts, *(f"{part:,.2f}" for part in _part(dollars, share).values()))
    return shown
