"""Parts of a file on their way: several at a time, added up for who watches, and known again from an earlier attempt."""

import hashlib
import queue
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from loraserve.catalog.files import FileEntry, OnProgress

WORKERS = 8
"""Parts of one file in flight."""


class Tally:
    """Adds up what the threads of one transfer have done."""

    def __init__(self, name: str, total: int, progress: OnProgress) -> None:
        self._name = name
        self._total = total
        self._progress = progress
        self._lock = threading.Lock()
        self._done = 0

    def start(self) -> None:
        self._done = 0

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._progress(self._name, self._done, self._total)

    def finish(self) -> None:
        if self._done < self._total:
            self.add(self._total - self._done)


def in_parallel(action: Callable[[int], None], items: Iterable[int]) -> None:
    """Waits for all; the first failure stops the rest. An executor's threads would hold up the end of the process."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    failures: list[BaseException] = []

    def work() -> None:
        while not failures:
            try:
                action(waiting.get_nowait())
            except queue.Empty:
                return
            except BaseException as error:
                failures.append(error)

    threads = [
        threading.Thread(target=work, name="transfer", daemon=True) for _ in range(min(WORKERS, waiting.qsize()))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def read_span(path: Path, span: range) -> bytes:
    """A part of a file."""
    with path.open("rb") as file:
        file.seek(span.start)
        return file.read(len(span))


def digest_of_span(path: Path, span: range) -> str:
    """Its SHA-256, in hex."""
    return hashlib.sha256(read_span(path, span)).hexdigest()


def is_part(path: Path, entry: FileEntry, number: int, etag: str) -> bool:
    """Whether an uploaded part holds these bytes; with SSE-S3 a part's ETag is its MD5."""
    if number > len(entry.parts):
        return False
    content = read_span(path, entry.span(number - 1))
    return etag.strip('"') == hashlib.md5(content, usedforsecurity=False).hexdigest()
