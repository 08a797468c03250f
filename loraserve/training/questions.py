"""Rows from documents: a model of the stack makes questions and answers of each passage, and what it says is checked before
it is kept. A whole document goes to training or to the evaluation, never to both.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from loraserve.catalog.files import digest_of
from loraserve.contract.document import Document
from loraserve.errors import LoraserveError, reason
from loraserve.evaluation.answers import Answer
from loraserve.evaluation.definition import Prompt
from loraserve.evaluation.rows import Row as EvaluationRow
from loraserve.evaluation.rows import Text
from loraserve.evaluation.words import words

REFUSAL = "The context does not say."
"""What a negative example answers; `loraserve evaluate` knows it as a refusal."""
NEGATIVE = "missing context"
"""Category of the evaluation's negative examples."""
FOUNDED_SHARE = 0.6
"""Of an answer's words, that must stand in its passage."""
_URL = "/v1/chat/completions"
_MOST_TOKENS_EACH = 160
_MOST_QUESTIONS = 50
_INSTRUCTION = (
    "Write {count} different questions that the text below answers, each with its answer. A question must make sense to "
    "somebody who does not know that there is a text. An answer is short, and takes its words from the text. Reply with JSON "
    'only: {{"pairs": [{{"question": "…", "answer": "…"}}]}}\n\nText:\n{text}'
)


class InvalidDocuments(LoraserveError):
    """No rows can be made of these; nothing was asked."""


class _Pair(Document):
    question: Text
    answer: Text


class _Pairs(Document):
    pairs: Annotated[tuple[_Pair, ...], Field(max_length=_MOST_QUESTIONS)]


@dataclass(frozen=True)
class Passage:
    document: str
    text: str


@dataclass(frozen=True)
class Question:
    """One that is answered by its passage, or, `answer` being None, one that is not."""

    passage: Passage
    question: str
    answer: str | None


@dataclass(frozen=True)
class PassageRequest:
    """Asks a model for pairs, as `bulk` sends it."""

    passage: Passage
    model: str
    count: int

    @property
    def url(self) -> str:
        return _URL

    @property
    def payload(self) -> dict[str, Any]:
        asked = _INSTRUCTION.format(count=self.count, text=self.passage.text)
        schema = {"name": "pairs", "schema": _Pairs.model_json_schema()}
        return {
            "model": self.model,
            "service_tier": "flex",
            "messages": [{"role": "user", "content": asked}],
            "temperature": 0,
            "max_tokens": _MOST_TOKENS_EACH * self.count,
            "response_format": {"type": "json_schema", "json_schema": schema},
        }

    @property
    def digest(self) -> str:
        return digest_of(json.dumps([self.passage.document, self.payload], sort_keys=True).encode())


@dataclass
class Kept:
    """Questions that may be asked, and why others were dropped."""

    questions: list[Question] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def read_passages(paths: Sequence[Path], most_words: int) -> list[Passage]:
    """Of text files, named by their path. Raises InvalidDocuments."""
    found, problems = list[Passage](), list[str]()
    for path in dict.fromkeys(paths):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{path} cannot be read as text: {reason(error)}")
            continue
        passages = [Passage(str(path), part) for part in cut(text, most_words)]
        found += passages
        if not passages:
            problems.append(f"{path} has no words")
    if problems:
        raise InvalidDocuments("\n  ".join(["documents:", *problems]))
    return found


def cut(text: str, most_words: int) -> list[str]:
    """Paragraphs together, as many as there is room for; one that is longer than that is cut between words."""
    parts, part, count = list[str](), list[str](), 0
    for paragraph in _pieces(text, most_words):
        length = len(paragraph.split())
        if part and count + length > most_words:
            parts.append("\n\n".join(part))
            part, count = [], 0
        part.append(paragraph)
        count += length
    return [*parts, "\n\n".join(part)] if part else parts


def _pieces(text: str, most_words: int) -> Iterator[str]:
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        tokens = paragraph.split()
        if not words(paragraph):
            continue
        if len(tokens) <= most_words:
            yield paragraph.strip()
        else:
            yield from (" ".join(tokens[at : at + most_words]) for at in range(0, len(tokens), most_words))


def keep(responses: Mapping[PassageRequest, dict[str, Any]]) -> Kept:
    """What of the answers can be used: JSON, founded on its passage, and asked only once."""
    kept, seen = Kept(), set[str]()
    for request, response in responses.items():
        answer = Answer.of(response)
        try:
            pairs = _Pairs.model_validate_json(answer.text).pairs
        except ValidationError:
            kept.dropped["passages whose answer was no JSON of pairs" if not answer.error else answer.error] += 1
            continue
        for pair in pairs:
            asked = " ".join(words(pair.question))
            if not asked or asked in seen:
                kept.dropped["questions that were asked before"] += 1
            elif not _founded(pair.answer, request.passage.text):
                kept.dropped["answers that are not in the text"] += 1
            else:
                seen.add(asked)
                kept.questions.append(Question(request.passage, pair.question.strip(), pair.answer.strip()))
    return kept


def _founded(answer: str, text: str, share: float = FOUNDED_SHARE) -> bool:
    said, there = words(answer), set(words(text))
    return bool(said) and sum(word in there for word in said) >= share * len(said)


def split(documents: Collection[str], evaluation_share: float, seed: int) -> frozenset[str]:
    """Those for the evaluation, at least one and never all. Raises InvalidDocuments."""
    different = sorted(documents)
    if len(different) < 2:
        raise InvalidDocuments(
            f"one document ({', '.join(different)}) cannot be split, and rows of one document on both sides would only "
            "measure memory: give two or more"
        )
    count = min(len(different) - 1, max(1, round(evaluation_share * len(different))))
    return frozenset(random.Random(seed).sample(different, count))


def with_negatives(questions: Sequence[Question], share: float, seed: int) -> list[Question]:
    """And for so many of them the same question with a passage of another document, which lacks the answer."""
    rng = random.Random(seed)
    passages = list(dict.fromkeys(question.passage for question in questions))
    found = []
    for question in rng.sample(list(questions), round(share * len(questions))):
        others = [
            passage
            for passage in passages
            if passage.document != question.passage.document and not _founded(question.answer or "", passage.text)
        ]
        if others:
            found.append(Question(rng.choice(others), question.question, None))
    return [*questions, *found]


def training_row(question: Question, refusal: str) -> dict[str, Any]:
    """In the words in which an evaluation asks its rows."""
    asked = Prompt().text(evaluation_row(question, refusal))
    return {"input": asked, "output": question.answer or refusal, "document": question.passage.document}


def evaluation_row(question: Question, refusal: str) -> EvaluationRow:
    return EvaluationRow(
        question=question.question,
        context=question.passage.text,
        reference=question.answer or refusal,
        category="answerable" if question.answer else NEGATIVE,
        document=question.passage.document,
        answerable=question.answer is not None,
    )
