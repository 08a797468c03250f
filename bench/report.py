"""How a bench says what it found: a table for people, and a line of JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table


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
