"""Many requests to one gateway: so many at once, again after a failure that may pass, each answer kept as it comes."""

import fcntl
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import urllib3

from loraserve.contract.served_name import ServedName
from loraserve.errors import LoraserveError
from loraserve.planning.cold_start import PATIENCE_SECONDS

ANSWER_SECONDS = PATIENCE_SECONDS
"""Without a byte; the gateway holds a request of a sleeping model for most of it."""
PATIENCE_SECONDS = 1800
"""Without one more answer, to any request, before what is left is given up."""
_TEMPORARY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_PAUSE_SECONDS = 2.0
"""After a temporary failure that names no time itself."""

Connect = Callable[[], AbstractContextManager[str]]
"""Makes a way to the gateway and gives its URL, without /v1; a lost way is made anew."""


class InvalidBatch(LoraserveError):
    """The requests cannot be sent as they are; nothing was."""


class BatchStopped(LoraserveError):
    """No request can be answered; those answers that came are kept."""


class Request(Protocol):
    @property
    def digest(self) -> str:
        """Of all that it asks: an answer to a request that was changed since is none."""
        ...

    @property
    def model(self) -> object: ...

    @property
    def url(self) -> str:
        """The path, such as /v1/completions."""
        ...

    @property
    def payload(self) -> dict[str, Any]: ...


R = TypeVar("R", bound=Request)


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
            self._places[json.loads(line)["request"]] = place
            place += len(line)
        self._file.truncate(place)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, request: Request) -> bool:
        return request.digest in self._places

    def add(self, request: Request, answer: dict[str, Any]) -> None:
        self._places[request.digest] = self._file.seek(0, 2)
        self._file.write(json.dumps({"request": request.digest, "answer": answer}).encode() + b"\n")
        self._file.flush()

    def answer(self, request: Request) -> dict[str, Any] | None:
        if request not in self:
            return None
        self._file.seek(self._places[request.digest])
        return json.loads(self._file.readline())["answer"]


def ask_all(
    requests: Sequence[R],
    journal: Journal,
    connect: Connect,
    key: str,
    *,
    concurrency: int,
    on_progress: Callable[[int], None] = lambda _: None,
    patience_seconds: float = PATIENCE_SECONDS,
    check: Callable[[R, dict[str, Any]], None] = lambda *_: None,
) -> dict[str, str]:
    """In rounds, each over one connection, until every request has its answer or nothing moves. Returns why not, by digest.

    `on_progress` is told how many have theirs; `check` is shown each answer before it is kept. Raises InvalidBatch,
    BatchStopped and what `connect` and `check` raise.
    """
    failures: dict[str, str] = {}
    moved_at = time.monotonic()
    while left := [request for request in requests if request not in journal]:
        done = len(requests) - len(left)
        on_progress(done)
        with connect() as url:
            for request, answer in _Round(url, key, left, concurrency).results():
                if isinstance(answer, _Failure):
                    failures[request.digest] = answer.reason
                    continue
                check(request, answer)
                journal.add(request, answer)
                moved_at = time.monotonic()
                done += 1
                on_progress(done)
        if time.monotonic() - moved_at > patience_seconds:
            break
        if done < len(requests):
            time.sleep(_PAUSE_SECONDS)
    return failures


@dataclass(frozen=True)
class _Failure:
    """No answer yet; another attempt may get one."""

    reason: str
    pause_seconds: float = _PAUSE_SECONDS
    is_lost: bool = False
    """The connection is; the others' will be too."""


class _Round(Generic[R]):
    """Asks for requests, so many at once, until each had its turn or the connection is lost."""

    def __init__(self, url: str, key: str, requests: Sequence[R], concurrency: int) -> None:
        self._url = url
        self._requests = requests
        self._http = urllib3.PoolManager(
            maxsize=concurrency,
            retries=False,
            timeout=urllib3.Timeout(connect=10, read=ANSWER_SECONDS),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        self._waiting: queue.SimpleQueue[R] = queue.SimpleQueue()
        for request in requests:
            self._waiting.put(request)
        self._answers: queue.SimpleQueue[tuple[R, dict[str, Any] | _Failure] | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._workers = min(concurrency, len(requests))

    def results(self) -> Iterator[tuple[R, dict[str, Any] | _Failure]]:
        """As they come. Raises InvalidBatch, BatchStopped."""
        if failure := self._check():
            yield self._requests[0], failure
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
        """That the key is good and the models are there, before all requests fail for it."""
        try:
            answer = self._http.request("GET", f"{self._url}/v1/models")
        except urllib3.exceptions.HTTPError as error:
            return _lost(error)
        if answer.status in _TEMPORARY:
            return _Failure(f"the gateway answered {answer.status}")
        if answer.status != 200:
            raise BatchStopped(_message(answer.data) or f"what answers at {self._url} is no gateway ({answer.status})")
        there = {model["id"] for model in answer.json()["data"]}
        if missing := {
            str(request.model) for request in self._requests if not {request.model, _adapter(request)} & there
        }:
            raise InvalidBatch(
                f"this key may not call, or nobody declares, {', '.join(sorted(missing))}: choose from {', '.join(sorted(there))}"
            )
        return None

    def _work(self) -> None:
        try:
            while not self._over.is_set():
                request = self._waiting.get_nowait()
                answer = self._ask(request)
                self._answers.put((request, answer))
                if isinstance(answer, _Failure):
                    if answer.is_lost:
                        self._over.set()
                    self._over.wait(answer.pause_seconds)
        except queue.Empty:
            pass
        finally:
            self._answers.put(None)

    def _ask(self, request: Request) -> dict[str, Any] | _Failure:
        body, began = json.dumps(request.payload).encode(), time.monotonic()
        try:
            answer = self._http.request("POST", f"{self._url}{request.url}", body=body)
        except urllib3.exceptions.HTTPError as error:
            return _lost(error)
        if answer.status in _TEMPORARY:
            told = answer.headers.get("Retry-After", "")
            reason = _message(answer.data) or f"the gateway answered {answer.status}"
            return _Failure(reason, float(told) if told.isdecimal() else _PAUSE_SECONDS)
        return {
            "status_code": answer.status,
            "request_id": answer.headers.get("X-Request-Id"),
            "body": _json(answer.data),
            "served": answer.headers.get("X-Loraserve-Model"),
            "fallback": answer.headers.get("X-Loraserve-Fallback"),
            "seconds": round(time.monotonic() - began, 4),
        }


def _adapter(request: Request) -> str:
    return ServedName(str(request.model)).adapter


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
