"""A model as the judge of two answers. Each pair is shown in both orders: a verdict that the order turns is a tie."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field

from loraserve.contract.document import Document
from loraserve.errors import LoraserveError
from loraserve.evaluation.statistics import cohens_kappa
from loraserve.evaluation.words import filled

JUDGE = "judge"
"""The name of its score: 1 for the better answer, 0 for the other, 0.5 each for a tie."""
KEY_VARIABLE = "JUDGE_API_KEY"
FEWEST_LABELS = 30
PROMPT = """Two assistants answered the same question. Judge which answer is better: correct by the reference answer, \
and by the context where there is one. Neither their order nor their length matters.

{row}

[Answer A]
{a}
[End of answer A]

[Answer B]
{b}
[End of answer B]

Think in two sentences at most, then end with exactly one of [[A]], [[B]] or [[TIE]]."""

Preference = Literal["a", "b", "tie"]


class UnfitJudge(LoraserveError):
    """It was to decide, and people disagree with it."""


class Judge(Document):
    model: str | None = None
    """None: the base model of the stack."""
    url: Annotated[str, Field(pattern=r"^https?://.+/v1/?$")] | None = None
    """Of an outside service, ends in /v1; its key is read from JUDGE_API_KEY. None: the stack itself."""
    max_tokens: Annotated[int, Field(ge=8)] = 256
    labels: str | None = None
    """JSON Lines of pairs that people judged: question, context, reference, a, b, preferred (a, b or tie)."""
    minimum_kappa: Annotated[float, Field(ge=0, le=1)] = 0.4
    """It decides only where it agrees with these people beyond chance by so much."""


class Labelled(Document):
    """A pair of answers and what a person said of them."""

    question: str
    context: str | None = None
    reference: str | None = None
    a: str
    b: str
    preferred: Preference


@dataclass(frozen=True)
class Pair:
    question: str
    context: str | None
    reference: str | None
    a: str
    b: str

    def prompt(self, swapped: bool) -> str:
        facts = {"Question": self.question, "Context": self.context, "Reference answer": self.reference}
        row = "\n\n".join(f"[{name}]\n{text}" for name, text in facts.items() if text)
        first, second = (self.b, self.a) if swapped else (self.a, self.b)
        return filled(PROMPT, {"row": row, "a": first, "b": second})


@dataclass(frozen=True)
class JudgeRequest:
    """One order of one pair."""

    pair: Pair
    swapped: bool
    model: str
    body: tuple[tuple[str, Any], ...]
    url: str = "/v1/chat/completions"

    @property
    def payload(self) -> dict[str, Any]:
        messages = [{"role": "user", "content": self.pair.prompt(self.swapped)}]
        return {"model": self.model, "messages": messages} | dict(self.body)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(["judge", self.payload], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Opinion:
    """On one pair, from both orders."""

    preferred: Preference
    unparsable: int
    turned: bool
    """The order decided."""

    @classmethod
    def of(cls, straight: str, swapped: str) -> "Opinion":
        first = _parsed(straight, {"A": "a", "B": "b", "TIE": "tie"})
        second = _parsed(swapped, {"A": "b", "B": "a", "TIE": "tie"})
        agreed = first if first == second else None
        unparsable = (first is None) + (second is None)
        return cls(agreed or "tie", unparsable, turned=agreed is None and not unparsable)

    @property
    def scores(self) -> tuple[float, float]:
        """Of answer a and of answer b."""
        return {"a": (1.0, 0.0), "b": (0.0, 1.0), "tie": (0.5, 0.5)}[self.preferred]


@dataclass(frozen=True)
class Agreement:
    """With what people said of the same pairs."""

    labels: int
    raw: float
    kappa: float

    @classmethod
    def of(cls, opinions: Sequence[Opinion], labels: Sequence[Labelled]) -> "Agreement":
        pairs = [(opinion.preferred, label.preferred) for opinion, label in zip(opinions, labels, strict=True)]
        return cls(len(pairs), fmean(one == other for one, other in pairs), cohens_kappa(pairs))

    def check(self, judge: Judge) -> None:
        """Before it decides. Raises UnfitJudge."""
        if self.labels < FEWEST_LABELS:
            raise UnfitJudge(
                f"the judge is to decide and has {self.labels} labels of people; give at least {FEWEST_LABELS}"
            )
        if self.kappa < judge.minimum_kappa:
            raise UnfitJudge(
                f"the judge is to decide and agrees with people by a kappa of {self.kappa:.2f} on {self.labels} pairs, less than "
                f"{judge.minimum_kappa}: name another judge, or another primaryScore"
            )


def _parsed(verdict: str, words: dict[str, Preference]) -> Preference | None:
    """None: it says none of the words, or several."""
    found = set(re.findall(r"\[\[(A|B|TIE)\]\]", verdict.upper()))
    return words[found.pop()] if len(found) == 1 else None
