"""`loraserve batch`: a file of requests in OpenAI's batch format, answered below interactive traffic, written in order."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loraserve.bulk import PATIENCE_SECONDS, Connect, InvalidBatch, Journal, ask_all
from loraserve.contract.document import explain
from loraserve.errors import reason

SHOWN_PROBLEMS = 10


class Row(BaseModel):
    """One line of the input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    custom_id: Annotated[str, Field(min_length=1)]
    method: Literal["POST"] = "POST"
    url: Literal["/v1/completions", "/v1/chat/completions", "/v1/responses"]
    body: dict[str, Any]

    @property
    def model(self) -> object:
        return self.body.get("model")

    @property
    def payload(self) -> dict[str, Any]:
        return {"service_tier": "flex"} | self.body

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def read_rows(path: Path) -> list[Row]:
    """Raises InvalidBatch with every problem's line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidBatch(f"{path} cannot be read: {reason(error)}") from None
    rows, problems = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(_row(line))
            except ValueError as error:
                problems.append(f"line {number}: {error}")
    repeated = [name for name, count in Counter(row.custom_id for row in rows).items() if count > 1]
    problems += [f"custom_id {name!r} stands in several lines" for name in repeated]
    if problems or not rows:
        more = [f"and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
        raise InvalidBatch("\n  ".join([f"{path}:", *(problems[:SHOWN_PROBLEMS] or ["it has no rows"]), *more]))
    return rows


def _row(line: str) -> Row:
    try:
        row = Row.model_validate_json(line)
    except ValidationError as error:
        raise ValueError(explain(error).replace("\n", "; ")) from None
    if not isinstance(row.model, str) or row.body.get("stream"):
        raise ValueError("body: must name its `model`, and not ask for a stream")
    return row


@dataclass(frozen=True)
class Outcome:
    answered: int
    refused: int
    """Rows whose answer is an error, for good."""
    given_up: int
    """Rows that the same command would try again."""


def run(
    rows: Sequence[Row],
    output: Path,
    connect: Connect,
    key: str,
    *,
    concurrency: int,
    on_progress: Callable[[int], None] = lambda _: None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Outcome:
    """Asks for what the journal beside `output` does not hold yet, then writes all results in the rows' order.

    `on_progress` is told how many rows have their result. Raises InvalidBatch, BatchStopped and what `connect` raises.
    """
    journal_file = output.with_name(f"{output.name}.partial")
    if output.exists() and not journal_file.exists():
        raise InvalidBatch(f"{output} is there already: remove it, or name another --output")
    with Journal(journal_file) as journal:
        failures = ask_all(
            rows,
            journal,
            connect,
            key,
            concurrency=concurrency,
            on_progress=on_progress,
            patience_seconds=patience_seconds,
        )
        outcome = _write(rows, journal, failures, output)
    if not outcome.given_up:
        journal_file.unlink()
    return outcome


def _result(row: Row, answer: dict[str, Any] | None, failure: str | None) -> dict[str, Any]:
    """A line of the output."""
    response = answer and {key: answer[key] for key in ("status_code", "request_id", "body")}
    error = None if answer else {"code": "given_up", "message": failure or "it had no turn"}
    identifier = f"batch_req_{row.digest[:24]}"
    return {"id": identifier, "custom_id": row.custom_id, "response": response, "error": error}


def _write(rows: Sequence[Row], journal: Journal, failures: dict[str, str], output: Path) -> Outcome:
    """All at once: a file of that name is always whole."""
    refused = given_up = 0
    partial = output.with_name(f"{output.name}.sorting")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            answer = journal.answer(row)
            if answer is None:
                given_up += 1
            elif answer["status_code"] != 200:
                refused += 1
            file.write(json.dumps(_result(row, answer, failures.get(row.digest))) + "\n")
    partial.replace(output)
    return Outcome(len(rows) - refused - given_up, refused, given_up)
