"""What the commands print: results to stdout, for people or as JSON; all else to stderr."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from loraserve.catalog.files import OnProgress
from loraserve.contract.checks import Check, CheckVerdict
from loraserve.contract.document import Document
from loraserve.planning.stack_file_edit import entry_lines

PIPED_WIDTH = 200
"""Of a table that no terminal shows."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for a machine.")
key_option = click.option(
    "--key",
    envvar="OPENAI_API_KEY",
    show_envvar=True,
    required=True,
    help="API key, such as `loraserve key` makes; better in the variable than here.",
)


def tell(text: str) -> None:
    """Not part of what a script reads."""
    click.echo(text, err=True)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def plain(document: Document) -> dict[str, Any]:
    """As JSON has it; what says no more than its default is left out."""
    return document.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def stack_config_entry(entry: Document) -> str:
    """YAML, one item of a list."""
    return "- " + "\n  ".join(entry_lines(entry))


def print_published(entry: Document, as_json: bool) -> None:
    """An adapter's entry, which its stack config still lacks."""
    if as_json:
        print_json(plain(entry))
        return
    tell("Published. Add to the stack config's list of adapters:")
    click.echo(stack_config_entry(entry))


def stack_config_setting(key: str, value: Document) -> str:
    """YAML, one key of a stack config."""
    return f"loraserve:{key}:\n  " + "\n  ".join(entry_lines(value))


def table(*heads: str) -> Table:
    return Table(*heads, box=None, pad_edge=False)


def add_row(table: Table, *cells: str) -> None:
    """Without rich's markup: the words come from the bucket."""
    table.add_row(*(Text(cell) for cell in cells))


def print_table(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)


def busy(doing: str) -> AbstractContextManager[object]:
    """A sign of life on a terminal, for what takes seconds or minutes."""
    return Console(stderr=True).status(doing)


@contextmanager
def counted_bars() -> Iterator[OnProgress]:
    """Of work whose answers are kept: told what is done, how much of it, and of how much."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        try:
            yield update
        except KeyboardInterrupt:
            tell("Interrupted: the same command goes on from here.")
            raise


@contextmanager
def progress_bars() -> Iterator[OnProgress]:
    """Bars on a terminal, one line per file elsewhere."""
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bars:
            tasks = {}

            def update(doing: str, done: int, total: int) -> None:
                if doing not in tasks:
                    tasks[doing] = bars.add_task(doing, total=total)
                bars.update(tasks[doing], completed=done)

            yield update
    else:
        announced: set[str] = set()

        def announce(doing: str, done: int, total: int) -> None:
            if doing not in announced:
                announced.add(doing)
                tell(f"{doing} ({total / 1e6:.1f} MB)")

        yield announce


def print_checks(checks: Iterable[Check], as_json: bool) -> int:
    """Each as it ends. The exit code: 1 where one failed."""
    found = []
    for check in checks:
        found.append(check)
        if not as_json:
            click.echo(f"{check.verdict.upper():<5} {check.name:<11} {check.found}")
    if as_json:
        print_json([asdict(check) for check in found])
    return int(any(check.verdict is CheckVerdict.FAIL for check in found))
