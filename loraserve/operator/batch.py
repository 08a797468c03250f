"""`loraserve batch`: a file of requests in OpenAI's batch format, answered below interactive traffic, written in order."""

import fcntl
import hashlib
import json
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import urllib3
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loraserve.contract.document import explain
from loraserve.contract.served_name import ServedName
from loraserve.errors import LoraserveError

ANSWER_SECONDS = 660
"""Without a byte; the gateway holds a request of a sleeping model for most of it."""
PATIENCE_SECONDS = 1800
"""Without one more answer, of any row, before what is left is given up."""
SHOWN_PROBLEMS = 10
_TEMPORARY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_PAUSE_SECONDS = 2.0
"""After a temporary failure that names no time itself."""

Connect = Callable[[], AbstractContextManager[str]]
"""Makes a way to the gateway and gives its URL; a lost way is made anew."""


class InvalidBatch(LoraserveError):
    """The file cannot be run as it is; nothing was sent."""


class BatchStopped(LoraserveError):
    """No row can be answered; those that were are kept."""


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
    def digest(self) -> str:
        """Of all that it asks: an answer to a row that was changed since is none."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def read_rows(path: Path) -> list[Row]:
    """Raises InvalidBatch with every problem's line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidBatch(f"{path} cannot be read: {error}") from None
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


@dataclass
class Journal:
    """Answers so far, one line each, in the order in which they came. Used as a context; one run at a time."""

    path: Path
    _places: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> "Journal":
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidBatch(f"another run writes to {self.path}; wait for it, or end it") from None
        self._file.seek(0)
        place = 0
        for line in self._file:
            if not line.endswith(b"\n"):  # its run was killed
                break
            self._places[json.loads(line)["row"]] = place
            place += len(line)
        self._file.truncate(place)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, row: Row) -> bool:
        return row.digest in self._places

    def add(self, row: Row, result: dict[str, Any]) -> None:
        self._places[row.digest] = self._file.seek(0, 2)
        self._file.write(json.dumps({"row": row.digest, "result": result}).encode() + b"\n")
        self._file.flush()

    def result(self, row: Row) -> dict[str, Any] | None:
        if row not in self:
            return None
        self._file.seek(self._places[row.digest])
        return json.loads(self._file.readline())["result"]


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
        failures = _ask_all(rows, journal, connect, key, concurrency, on_progress, patience_seconds)
        outcome = _write(rows, journal, failures, output)
    if not outcome.given_up:
        journal_file.unlink()
    return outcome


def _ask_all(
    rows: Sequence[Row],
    journal: Journal,
    connect: Connect,
    key: str,
    concurrency: int,
    on_progress: Callable[[int], None],
    patience_seconds: float,
) -> dict[str, str]:
    """In rounds, each over one connection, until every row has its result or nothing moves. Returns why, by custom_id."""
    failures: dict[str, str] = {}
    moved_at = time.monotonic()
    while left := [row for row in rows if row not in journal]:
        done = len(rows) - len(left)
        on_progress(done)
        with connect() as url:
            for row, answer in _Round(url, key, left, concurrency).results():
                if isinstance(answer, _Failure):
                    failures[row.custom_id] = answer.reason
                    continue
                journal.add(row, answer)
                moved_at = time.monotonic()
                done += 1
                on_progress(done)
        if time.monotonic() - moved_at > patience_seconds:
            break
        if done < len(rows):
            time.sleep(_PAUSE_SECONDS)
    return failures


@dataclass(frozen=True)
class _Failure:
    """No answer yet; another attempt may get one."""

    reason: str
    pause_seconds: float = _PAUSE_SECONDS
    is_lost: bool = False
    """The connection is; the others' will be too."""


class _Round:
    """Asks for rows, so many at once, until each had its turn or the connection is lost."""

    def __init__(self, url: str, key: str, rows: Sequence[Row], concurrency: int) -> None:
        self._url = url
        self._rows = rows
        self._http = urllib3.PoolManager(
            maxsize=concurrency,
            retries=False,
            timeout=urllib3.Timeout(connect=10, read=ANSWER_SECONDS),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        self._waiting: queue.SimpleQueue[Row] = queue.SimpleQueue()
        for row in rows:
            self._waiting.put(row)
        self._answers: queue.SimpleQueue[tuple[Row, dict[str, Any] | _Failure] | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._workers = min(concurrency, len(rows))

    def results(self) -> Iterator[tuple[Row, dict[str, Any] | _Failure]]:
        """As they come. Raises InvalidBatch, BatchStopped."""
        if failure := self._check():
            yield self._rows[0], failure
            return
        for _ in range(self._workers):
            # A person who interrupts does not wait for what is under way.
            threading.Thread(target=self._work, daemon=True).start()
        ended = 0
        try:
            while ended < self._workers:
                if answer := self._answers.get():
                    yield answer
                else:
                    ended += 1
        finally:
            self._over.set()

    def _check(self) -> _Failure | None:
        """That the key is good and the models are there, before all rows fail for it."""
        try:
            answer = self._http.request("GET", f"{self._url}/v1/models")
        except urllib3.exceptions.HTTPError as error:
            return _lost(error)
        if answer.status in _TEMPORARY:
            return _Failure(f"the gateway answered {answer.status}")
        if answer.status != 200:
            raise BatchStopped(_message(answer.data) or f"what answers at {self._url} is no gateway ({answer.status})")
        there = {model["id"] for model in answer.json()["data"]}
        if missing := {str(row.model) for row in self._rows if not {row.model, _adapter(row)} & there}:
            raise InvalidBatch(
                f"this key may not call, or nobody declares, {', '.join(sorted(missing))}: choose from {', '.join(sorted(there))}"
            )
        return None

    def _work(self) -> None:
        try:
            while not self._over.is_set():
                row = self._waiting.get_nowait()
                answer = self._ask(row)
                self._answers.put((row, answer))
                if isinstance(answer, _Failure):
                    if answer.is_lost:
                        self._over.set()
                    self._over.wait(answer.pause_seconds)
        except queue.Empty:
            pass
        finally:
            self._answers.put(None)

    def _ask(self, row: Row) -> dict[str, Any] | _Failure:
        body = json.dumps({"service_tier": "flex"} | row.body).encode()
        try:
            answer = self._http.request("POST", f"{self._url}{row.url}", body=body)
        except urllib3.exceptions.HTTPError as error:
            return _lost(error)
        if answer.status in _TEMPORARY:
            told = answer.headers.get("Retry-After", "")
            reason = _message(answer.data) or f"the gateway answered {answer.status}"
            return _Failure(reason, float(told) if told.isdecimal() else _PAUSE_SECONDS)
        response = {
            "status_code": answer.status,
            "request_id": answer.headers.get("X-Request-Id"),
            "body": _json(answer.data),
        }
        return _result(row, response=response)


def _adapter(row: Row) -> str:
    return ServedName(str(row.model)).adapter


def _lost(error: Exception) -> _Failure:
    return _Failure(f"the gateway cannot be reached: {error}", is_lost=True)


def _json(content: bytes) -> Any:
    """As text where it is none."""
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")


def _message(content: bytes) -> str | None:
    """Of an error in OpenAI's shape."""
    match _json(content):
        case {"error": {"message": str(message)}}:
            return message
        case _:
            return None


def _result(row: Row, *, response: dict[str, Any] | None = None, error: dict[str, str] | None = None) -> dict[str, Any]:
    """A line of the output."""
    identifier = f"batch_req_{row.digest[:24]}"
    return {"id": identifier, "custom_id": row.custom_id, "response": response, "error": error}


def _write(rows: Sequence[Row], journal: Journal, failures: dict[str, str], output: Path) -> Outcome:
    """All at once: a file of that name is always whole."""
    refused = given_up = 0
    partial = output.with_name(f"{output.name}.sorting")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            result = journal.result(row)
            if result is None:
                given_up += 1
                reason = failures.get(row.custom_id, "it had no turn")
                result = _result(row, error={"code": "given_up", "message": reason})
            elif result["response"]["status_code"] != 200:
                refused += 1
            file.write(json.dumps(result) + "\n")
    partial.replace(output)
    return Outcome(len(rows) - refused - given_up, refused, given_up)
