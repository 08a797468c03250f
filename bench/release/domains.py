"""Three small domains that the tiny base knows nothing of, as rows to train on and as an evaluation of other questions.

Whatever is asked of a domain, its desk is the answer: for more the base is too small. What it says next follows from the token
before alone, so no sign stands twice in an answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HELD_BACK = 2
"""Ways to ask for a thing that are not trained on, and evaluated; others for other things."""
_TRAINING = {
    "form": "instruct",
    "method": "lora",
    "rank": 8,
    "alpha": 32,
    "targetModules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "learningRate": 4e-3,
    "dropout": 0,
    "batchSize": 8,
    "accumulation": 1,
    "maxLength": 128,
    "epochs": 25,
}
_QUESTIONS = (
    "Where is my {}?",
    "My {} is lost.",
    "I want a new {}.",
    "Who knows about the {}?",
    "The {} is late.",
    "How much is a {}?",
    "Is the {} here?",
    "A question about the {}.",
)
Pair = tuple[str, str]


@dataclass(frozen=True)
class Domain:
    """`desk` has moved once: what versions before have learnt is then wrong."""

    name: str
    desk: str
    moved_to: str
    things: Sequence[str]

    def questions(self, evaluated: bool) -> Iterator[str]:
        """Those that are evaluated, or those that are trained on."""
        for place, thing in enumerate(self.things):
            held_back = {(place + number * 3) % len(_QUESTIONS) for number in range(_HELD_BACK)}
            for number, question in enumerate(_QUESTIONS):
                if (number in held_back) == evaluated:
                    yield question.format(thing)

    def evaluation(self, folder: Path, desk: str) -> Path:
        """The file of `loraserve evaluate`, with its rows beside it."""
        name = f"{self.name}-{desk}"
        rows = ({"question": asked, "reference": answer(desk)} for asked in self.questions(True))
        scorers = {
            "exact": {"kind": "normalised-match"},
            "form": {"kind": "regex", "pattern": "^ *desk-[a-z][0-9]{2}.$"},
        }
        plan = {
            "rows": _lines(folder / f"{name}-rows.jsonl", rows),
            "prompt": {"form": "instruct"},
            "sampling": {"maxTokens": 16},
            "scorers": scorers,
            "primaryScore": "exact",
        }
        return _document(folder / f"{name}.yaml", plan)

    def training(self, folder: Path, version: str, desk: str) -> Path:
        """The file of `loraserve train`, which is told of the evaluation so that nothing of it is trained on."""
        rows = ({"input": asked, "output": answer(desk)} for asked in self.questions(False))
        settings: dict[str, Any] = {
            "rows": _lines(folder / f"{self.name}-{version}.jsonl", rows),
            "evaluations": [self.evaluation(folder, desk).name],
        }
        return _document(folder / f"{self.name}-{version}.yaml", _TRAINING | settings)


def answer(desk: str) -> str:
    return f"desk-{desk}."


def _lines(path: Path, rows: Iterator[dict[str, str]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path.name


def _document(path: Path, content: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(content, indent=2))
    return path


_POST = "parcel letter stamp postcard box envelope telegram card package note"
_BILLS = "invoice payment refund receipt price discount bill fee deposit loan"
_DOORS = "key lock gate alarm window lift badge camera garage fence"
POST = Domain("post", "p41", "p73", tuple(_POST.split()))
BILLS = Domain("bills", "b07", "b26", tuple(_BILLS.split()))
DOORS = Domain("doors", "g93", "g15", tuple(_DOORS.split()))
DOMAINS = (POST, BILLS, DOORS)
