"""The curve of a training's loss, for machines and for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from loraserve.loadtest.chart import line_chart

LOSSES_FILE, PLOT_FILE = "losses.json", "losses.html"
_SMOOTHED = 20
"""Steps in the second line's mean."""
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px system-ui;max-width:60em;margin:2em auto;padding:0 1em}}svg{{width:100%}}
svg text{{font-size:11px;fill:#444}}.grid{{stroke:#ddd}}</style>
<h1>{title}</h1><p>{about}</p>{chart}</html>
"""

Curve = Sequence[tuple[int, float]]
"""Step, counted from 1, and the mean loss of an answer's token in it."""


def curve(history: Iterable[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """From the log of transformers' Trainer; a step that was done again counts as it was done last."""
    return sorted({int(entry["step"]): float(entry["loss"]) for entry in history if "loss" in entry}.items())


def write(folder: Path, title: str, about: str, losses: Curve) -> None:
    content = [{"step": step, "loss": loss} for step, loss in losses]
    (folder / LOSSES_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")
    lines = {"each step": losses, f"mean of {_SMOOTHED}": smoothed(losses)}
    chart = line_chart("Loss", "step", "loss of an answer's token", lines, {})
    page = _PAGE.format(title=escape(title), about=escape(about), chart=chart)
    (folder / PLOT_FILE).write_text(page, encoding="utf-8")


def smoothed(losses: Curve) -> list[tuple[int, float]]:
    """The mean of each step and those before it, of so many at most."""
    found = []
    for at, (step, _) in enumerate(losses):
        last = [loss for _, loss in losses[max(0, at + 1 - _SMOOTHED) : at + 1]]
        found.append((step, sum(last) / len(last)))
    return found
