"""The evaluation file: which rows, how they are asked, how answers are scored, and which score decides."""

import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from loraserve.catalog.files import digest_of
from loraserve.contract.document import Document, explain
from loraserve.errors import reason
from loraserve.evaluation.judge import JUDGE, Judge, Labelled
from loraserve.evaluation.rows import InvalidEvaluation, Row, Rows, read_lines
from loraserve.evaluation.scorers import AnyScorer
from loraserve.evaluation.words import filled, unspaced_languages


class Prompt(Document):
    """`instruct` is a completion of `[INST] … [/INST]`, `completion` of the bare text; vLLM adds the BOS token to both."""

    form: Literal["chat", "completion", "instruct"] = "chat"
    system: str | None = None
    template: str | None = None
    """With `{context}` and `{question}`; None: both under their names, or where a row has no context the bare question."""

    @model_validator(mode="after")
    def _is_asked_once(self) -> Self:
        if self.template and "{question}" not in self.template:
            raise ValueError("template: has no {question}; add it")
        if any("<s>" in text for text in (self.template or "", self.system or "")):
            raise ValueError("must not contain <s>: vLLM begins with it already, and two of them make answers worse")
        return self

    def request(self, row: Row) -> tuple[str, dict[str, Any]]:
        """Path of the API, and what of the body holds the prompt."""
        text = self.text(row)
        if self.form == "chat":
            system = [{"role": "system", "content": self.system}] if self.system else []
            return "/v1/chat/completions", {"messages": [*system, {"role": "user", "content": text}]}
        if self.system:
            text = f"{self.system}\n\n{text}"
        return "/v1/completions", {"prompt": f"[INST] {text} [/INST]" if self.form == "instruct" else text}

    def text(self, row: Row) -> str:
        """What the model is asked, without the form around it."""
        if self.template:
            return filled(self.template, {"question": row.question, "context": row.context or ""})
        if not row.context and self.form != "completion":
            return row.question
        context = f"Context:\n{row.context}\n\n" if row.context else ""
        return f"{context}Question: {row.question}" + ("\nAnswer:" if self.form == "completion" else "")


class Sampling(Document):
    """All of vLLM's sampling parameters: what a request leaves out comes from the model's generation_config.json."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    max_tokens: Annotated[int, Field(ge=1)] = 256
    seed: int = 0
    stop: tuple[str, ...] = ()
    samples: Annotated[int, Field(ge=1, le=100)] = 1
    """Answers to each row, whose scores are averaged: they make one row."""

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples: at temperature 0 they are one answer again and again; raise the temperature")
        return self

    def body(self, sample: int) -> dict[str, Any]:
        """In the API's words."""
        return self.model_dump(exclude={"samples"}) | {"seed": self.seed + sample, "n": 1, "stop": list(self.stop)}


class Evaluation(Document):
    rows: str
    """JSON Lines; paths are relative to this file."""
    general: str | None = None
    """A second set that has nothing to do with the adapter's task, on which it is compared with the base."""
    prompt: Prompt = Prompt()
    sampling: Sampling = Sampling()
    scorers: Annotated[dict[str, AnyScorer], Field(min_length=1)]
    judge: Judge | None = None
    primary_score: str
    """Decides, on both sets."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    error_rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    refusal: str | None = None
    """A regular expression that only an answer that says it cannot answer fits; None: usual English words."""

    @model_validator(mode="after")
    def _names_its_score(self) -> Self:
        if JUDGE in self.scorers:
            raise ValueError(f"scorers: {JUDGE!r} is the name of the judge's score; rename it")
        known = [*self.scorers, *([JUDGE] if self.judge else [])]
        if self.primary_score not in known:
            raise ValueError(f"primaryScore: is not one of {', '.join(known)}")
        if self.primary_score == JUDGE and self.judge and not self.judge.labels:
            raise ValueError(
                "primaryScore: a judge never decides alone: give it `labels`, pairs of answers that people judged, or name "
                "another score"
            )
        return self


class Plan:
    """An evaluation with its files read."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidEvaluation."""
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            self.evaluation = Evaluation.model_validate_json(json.dumps(content), by_alias=True, by_name=False)
        except ValidationError as error:
            raise InvalidEvaluation(f"{path}:\n{explain(error)}") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError) as error:
            raise InvalidEvaluation(f"{path} cannot be read as an evaluation: {reason(error)}") from None
        self._path, evaluation = path, self.evaluation
        self.rows = Rows.read(path.parent / evaluation.rows)
        self.general = Rows.read(path.parent / evaluation.general) if evaluation.general else None
        labels = evaluation.judge.labels if evaluation.judge else None
        self.labels = [label for _, label in read_lines(path.parent / labels, Labelled)] if labels else []

    @property
    def files(self) -> dict[str, str]:
        """Texts of the evaluation and of what it names, by path from its folder: all that a run elsewhere needs.

        Raises InvalidEvaluation.
        """
        evaluation, judge = self.evaluation, self.evaluation.judge
        named = [self._path.name, evaluation.rows, evaluation.general, judge.labels if judge else None]
        paths = [Path(name) for name in dict.fromkeys(named) if name]
        if outside := [str(path) for path in paths if path.is_absolute() or ".." in path.parts]:
            raise InvalidEvaluation(f"{self._path} names {', '.join(outside)}: put it beside the evaluation, or below")
        return {str(path): (self._path.parent / path).read_text(encoding="utf-8") for path in paths}

    @cached_property
    def scorers_digest(self) -> str:
        """Of everything but the rows that decides a score."""
        content = self.evaluation.model_dump(mode="json", exclude={"rows", "general"})
        labels = [label.model_dump(mode="json") for label in self.labels]
        return digest_of(json.dumps([content, labels], sort_keys=True).encode())

    @property
    def notes(self) -> list[str]:
        """What is worth knowing of the scores before the run."""
        texts = (text for rows in (self.rows, self.general) if rows for row in rows.rows for text in row.references)
        by_words = [name for name, scorer in self.evaluation.scorers.items() if scorer.by_words]
        languages = unspaced_languages(texts) if by_words else []
        if not languages:
            return []
        return [
            f"{', '.join(by_words)}: {', '.join(languages)} does not separate words by spaces, "
            "so a whole sentence counts as one word there; decide by another score"
        ]
