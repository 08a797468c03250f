"""How a bench says what it found: a table for people or documents, and a line of JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from rich.console import Console
from rich.table import Table


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table as documents have it, each row as it comes."""
    for row in chain((columns, ["---"] * len(columns)), rows):
        print(f"| {' | '.join(row)} |", flush=True)


def show(figures: Mapping[str, str], problems: Sequence[str]) -> None:
    """Prints the figures, and the first problems in full."""
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    for problem in problems[:10]:
        console.print(problem, markup=False)
    print(json.dumps(figures))
