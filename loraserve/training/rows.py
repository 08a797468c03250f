"""The rows of a training: JSON Lines of input and output, prompt and completion, or OpenAI's messages; and what is wrong
with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from loraserve.catalog.files import digest_of
from loraserve.contract.document import Document
from loraserve.contract.training import Form
from loraserve.errors import LoraserveError
from loraserve.evaluation import rows as json_lines
from loraserve.evaluation.rows import Row as EvaluationRow
from loraserve.evaluation.words import words

Text = Annotated[str, StringConstraints(min_length=1)]
LEAST_WORDS = 4
"""A shorter question counts as trained on only where it is all that was asked."""
_SHAPES = ("`input` and `output`", "`prompt` and `completion`", "`messages`")
_UNLEARNT = ("tools", "functions")


class InvalidTraining(LoraserveError):
    """The training cannot be run as it is; nothing was trained."""


class Message(Document):
    role: Literal["system", "user", "assistant"]
    content: Text


Messages = Annotated[tuple[Message, ...], Field(min_length=1)]


class Row(Document):
    """In one of three shapes; keys that are none of these are ignored."""

    model_config = ConfigDict(extra="ignore")

    input: Text | None = None
    output: Text | None = None
    prompt: Text | Messages | None = None
    completion: Text | Messages | None = None
    messages: Messages | None = None
    document: Text | None = None
    """Where it comes from; an evaluation's rows of the same document are leaked."""

    @model_validator(mode="before")
    @classmethod
    def _without_tools(cls, row: Any) -> Any:
        if isinstance(row, dict) and (found := [key for key in _UNLEARNT if row.get(key)]):
            raise ValueError(f"{found[0]}: calls of tools are not trained; leave the row out")
        return row

    @model_validator(mode="after")
    def _of_one_shape(self) -> Self:
        pairs = (self.input, self.output), (self.prompt, self.completion), (self.messages, self.messages)
        given = [shape for shape, pair in zip(_SHAPES, pairs, strict=True) if any(part is not None for part in pair)]
        if len(given) != 1 or all(None in pair for pair in pairs):
            raise ValueError(f"give {_SHAPES[0]}, {_SHAPES[1]} or {_SHAPES[2]}, one of the three and whole")
        turns = self.messages or (*_as_messages(self.prompt), *_as_messages(self.completion))
        if turns and (turns[-1].role != "assistant" or all(turn.role != "user" for turn in turns)):
            raise ValueError("must ask something (a message of the user) and end with the answer (of the assistant)")
        if isinstance(self.completion, tuple) and (len(self.completion) > 1 or isinstance(self.prompt, str)):
            raise ValueError("completion: give one message of the assistant after messages, or text after text")
        if not self._answer.strip():
            raise ValueError("its answer is only white space")
        return self

    @property
    def _answer(self) -> str:
        if self.messages:
            return self.messages[-1].content
        if isinstance(self.completion, tuple):
            return self.completion[-1].content
        return self.completion or self.output or ""

    def example(self, line: int, form: Form, system: str | None) -> Example:
        prompt, answer = self._prompt(form, system), self._answer
        if isinstance(prompt, str) and self.input and not (prompt[-1].isspace() or answer[0].isspace()):
            answer = f" {answer}"
        return Example(line, prompt, answer, self.document)

    def _prompt(self, form: Form, system: str | None) -> str | tuple[Message, ...]:
        if self.messages:
            return self.messages[:-1]
        if isinstance(self.prompt, tuple):
            return self.prompt
        if self.prompt is not None:
            return self.prompt
        asked = self.input or ""
        if form == "chat":
            first = (Message(role="system", content=system),) if system else ()
            return *first, Message(role="user", content=asked)
        text = f"{system}\n\n{asked}" if system else asked
        return f"[INST] {text} [/INST]" if form == "instruct" else text


@dataclass(frozen=True)
class Example:
    """What a model is shown, and what it is to answer. A text is gone on with; messages get the chat template."""

    line: int
    prompt: str | tuple[Message, ...]
    answer: str
    document: str | None = None

    @property
    def texts(self) -> list[str]:
        prompts = [self.prompt] if isinstance(self.prompt, str) else [turn.content for turn in self.prompt]
        return [*prompts, self.answer]

    @cached_property
    def key(self) -> str:
        turns = self.prompt if isinstance(self.prompt, str) else [(turn.role, turn.content) for turn in self.prompt]
        return json.dumps([turns, self.answer])


@dataclass(frozen=True)
class Rows:
    examples: tuple[Example, ...]

    @cached_property
    def digest(self) -> str:
        """Of what is trained on, in its order."""
        return digest_of("\n".join(example.key for example in self.examples).encode())

    @property
    def notes(self) -> list[str]:
        """What is worth a look, and no error."""
        asked: dict[str, list[int]] = {}
        for example in self.examples:
            asked.setdefault(json.dumps(json.loads(example.key)[0]), []).append(example.line)
        several = [f"lines {', '.join(map(str, lines[:3]))}" for lines in asked.values() if len(lines) > 1]
        return [f"{len(several)} questions have several answers, such as {several[0]}"] if several else []

    @classmethod
    def read(cls, path: Path, form: Form = "chat", system: str | None = None) -> Self:
        """Raises InvalidTraining with every problem's line."""
        read = json_lines.read_lines(path, Row, InvalidTraining)
        examples = [row.example(number, form, system) for number, row in read]
        seen: dict[str, int] = {}
        repeated = [
            f"line {example.line}: repeats line {seen[example.key]}"
            for example in examples
            if seen.setdefault(example.key, example.line) != example.line
        ]
        json_lines.refuse(path, repeated, InvalidTraining)
        return cls(tuple(examples))


def leaks(examples: Sequence[Example], evaluated: Sequence[EvaluationRow]) -> Iterator[str]:
    """Which examples show the model what an evaluation asks: the question in the prompt, with its context or a right answer.

    Compared word by word, without case and punctuation; a question in other words is not found.
    """
    documents = {row.document for row in evaluated if row.document}
    by_start: dict[tuple[str, ...], list[tuple[list[str], EvaluationRow]]] = {}
    for row in evaluated:
        question = words(row.question)
        by_start.setdefault(tuple(question[:LEAST_WORDS]), []).append((question, row))
    for example in examples:
        if example.document in documents:
            yield f"line {example.line}: is of document {example.document!r:.60}, which the evaluation asks about"
        elif row := _asked(example, by_start):
            yield f"line {example.line}: asks what the evaluation asks, {row.question!r:.60}"


def _asked(
    example: Example, by_start: dict[tuple[str, ...], list[tuple[list[str], EvaluationRow]]]
) -> EvaluationRow | None:
    prompt = [word for text in example.texts[:-1] for word in words(text)]
    last = words(example.texts[-2])
    for at in range(len(prompt)):
        for question, row in by_start.get(tuple(prompt[at : at + LEAST_WORDS]), ()):
            whole = len(question) >= LEAST_WORDS or question == last
            if whole and prompt[at : at + len(question)] == question and _told(row, prompt, example.answer):
                return row
    short = by_start.get(tuple(last), ()) if len(last) < LEAST_WORDS else ()
    return next((row for _, row in short if _told(row, prompt, example.answer)), None)


def _told(row: EvaluationRow, prompt: list[str], answer: str) -> bool:
    if row.context is None or any(words(answer) == words(reference) for reference in row.references):
        return True
    return f" {' '.join(words(row.context))} " in f" {' '.join(prompt)} "


def as_messages(prompt: str | tuple[Message, ...]) -> list[dict[str, str]]:
    """In the words of the API and of chat templates."""
    return [{"role": turn.role, "content": turn.content} for turn in _as_messages(prompt)]


def _as_messages(value: str | tuple[Message, ...] | None) -> tuple[Message, ...]:
    return value if isinstance(value, tuple) else ()
