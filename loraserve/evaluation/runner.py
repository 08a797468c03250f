"""Asks base, candidate and the version in production the same rows; each answer is kept as it comes."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from loraserve.bulk import PATIENCE_SECONDS, BatchStopped, Connect, Journal, Request, ask_all
from loraserve.errors import LoraserveError
from loraserve.evaluation.answers import Answer
from loraserve.evaluation.definition import Evaluation, Plan
from loraserve.evaluation.judge import Judge, JudgeRequest, Opinion, Pair
from loraserve.evaluation.rows import Row, Rows

_FOR_GOOD = frozenset({401, 403, 404})
"""Answers that tell of all requests to this model, not of the row."""


R = TypeVar("R", bound=Request)


class Incomplete(LoraserveError):
    """Some rows have no answer yet; the same command asks for them again."""

    transient = True


class Role(StrEnum):
    BASE = "base"
    CANDIDATE = "candidate"
    PRODUCTION = "production"
    REPEAT = "candidate again"
    """The A/A run: what differs between this and `candidate` is noise."""


@dataclass(frozen=True)
class Endpoint:
    connect: Connect
    key: str


@dataclass(frozen=True)
class Subject:
    """`model` is what the API calls it; `identity`: of its weights, so that no answer of others is taken for its own."""

    role: Role
    model: str
    identity: str
    endpoint: Endpoint | None = None
    """None: the stack that is asked."""


@dataclass(frozen=True)
class RowRequest:
    """One row, asked of one subject."""

    subject: Subject
    row: Row
    sample: int
    evaluation: Evaluation

    @property
    def model(self) -> str:
        return self.subject.model

    @property
    def url(self) -> str:
        return self.evaluation.prompt.request(self.row)[0]

    @property
    def payload(self) -> dict[str, Any]:
        """Below interactive traffic: an evaluation makes no caller wait."""
        prompt = self.evaluation.prompt.request(self.row)[1]
        sampling = self.evaluation.sampling.body(self.sample)
        return {"model": self.model, "service_tier": "flex"} | prompt | sampling

    @property
    def digest(self) -> str:
        asked = [self.subject.role is Role.REPEAT, self.subject.identity, self.sample, self.url, self.payload]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


Answered = Mapping[Role, Sequence[tuple[Answer, ...]]]
"""Per subject, in the rows' order, each row's samples."""


@dataclass(frozen=True)
class Asking:
    """Of what `plan` wants to know; answers are kept in `journal`."""

    plan: Plan
    endpoint: Endpoint
    journal: Path
    concurrency: int
    on_progress: Callable[[str, int, int], None] = lambda *_: None
    """Told what is being asked, how many have their answer, and of how many."""
    patience_seconds: float = PATIENCE_SECONDS

    def rows(self, what: str, rows: Rows, subjects: Sequence[Subject]) -> Answered:
        """Raises Incomplete, BatchStopped, InvalidBatch and what `connect` raises."""
        requests = {
            subject.role: [
                tuple(RowRequest(subject, row, sample, self.plan.evaluation) for sample in range(self._samples))
                for row in rows.rows
            ]
            for subject in subjects
        }
        # All subjects' answers to a row are asked together: what changes with time, changes for all.
        flat = [one for of_row in zip(*requests.values(), strict=True) for samples in of_row for one in samples]
        responses = {}
        for endpoint in dict.fromkeys(subject.endpoint for subject in subjects):
            there = [request for request in flat if request.subject.endpoint is endpoint]
            told = f"{what}, elsewhere" if endpoint else what
            responses |= self._ask(told, endpoint or self.endpoint, there, _check)
        return {
            role: [tuple(Answer.of(responses[one.digest]) for one in samples) for samples in each]
            for role, each in requests.items()
        }

    def opinions(self, judge: Judge, base: Subject, key: str | None, pairs: Sequence[Pair]) -> list[Opinion]:
        """Of the judge: the base model or another of this stack, or an outside service with a key of its own.

        Raises as `rows` does.
        """
        sampling = self.plan.evaluation.sampling.model_copy(update={"temperature": 0.0, "max_tokens": judge.max_tokens})
        body = sampling.body(0) | {"service_tier": "flex", "stop": ()}
        endpoint = self.endpoint if judge.model else base.endpoint or self.endpoint
        if judge.url:
            root = judge.url.rstrip("/").removesuffix("/v1")
            endpoint = Endpoint(lambda: nullcontext(root), key or "")
            body = {"temperature": 0, "max_tokens": judge.max_tokens}
        requests = {
            pair: [
                JudgeRequest(pair, swapped, judge.model or base.model, tuple(body.items())) for swapped in (False, True)
            ]
            for pair in pairs
            if pair.a != pair.b
        }
        responses = self._ask("judging", endpoint, [one for both in requests.values() for one in both])
        texts = {pair: [Answer.of(responses[one.digest]).text for one in both] for pair, both in requests.items()}
        return [Opinion.of(*texts[pair]) if pair in texts else Opinion("tie", 0, turned=False) for pair in pairs]

    @property
    def _samples(self) -> int:
        return self.plan.evaluation.sampling.samples

    def _ask(
        self,
        what: str,
        endpoint: Endpoint,
        requests: Sequence[R],
        check: Callable[[R, dict[str, Any]], None] = lambda *_: None,
    ) -> dict[str, dict[str, Any]]:
        with Journal(self.journal) as journal:
            failures = ask_all(
                requests,
                journal,
                endpoint.connect,
                endpoint.key,
                concurrency=self.concurrency,
                check=check,
                on_progress=lambda done: self.on_progress(what, done, len(requests)),
                patience_seconds=self.patience_seconds,
            )
            found = {request.digest: journal.answer(request) for request in requests}
        missing = [digest for digest, answer in found.items() if answer is None]
        if missing:
            raise Incomplete(
                f"{len(missing)} of {len(requests)} answers are missing ({failures.get(missing[0], 'they had no turn')}); the "
                "same command asks for them again"
            )
        return {digest: answer for digest, answer in found.items() if answer}


def _check(request: RowRequest, response: dict[str, Any]) -> None:
    """That the subject itself answered. Raises BatchStopped."""
    if response["status_code"] in _FOR_GOOD:
        raise BatchStopped(
            f"{request.model} cannot be asked: {Answer.of(response).error} A version that is compared has to be declared in the "
            "stack that is asked; of one name the second is its canary"
        )
    served = response["served"]
    if response["fallback"] or served not in (None, request.model):
        raise BatchStopped(f"{served} answered in the place of {request.model}; see `loraserve status`, then ask again")
