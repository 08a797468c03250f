"""Logs, one line per event: for people, `2026-01-31T12:00:00Z INFO adapter ready adapter=a@v1`, or the same as JSON."""

import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

Format = Literal["text", "json"]
_SECRET = re.compile(r"(lsk-[A-Za-z0-9._]+-|Bearer\s+)[^\s'\"]+", re.IGNORECASE)
"""API keys, wherever they got into a message or a traceback."""


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _without_keys(super().format(record))


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `process`, `logger`, `message`, the event's own fields, and `exception` where there is one."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        told = record.msg if isinstance(record.msg, Event) else event(record.getMessage())
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "message": told.message,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Before it is JSON: what is taken out of that could take a quotation mark with it.
        return json.dumps({name: _plain(value) for name, value in ({**told.fields} | line).items()})


class Event(str):
    """As text, and in its parts."""

    message: str
    fields: Mapping[str, object]


def configure(form: Format, process: str) -> None:
    """`process` is its name in JSON."""
    text = _Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    text.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if form == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("httpx", "botocore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def event(message: str, **fields: object) -> Event:
    """`message key=value ...` on one line; values with blanks are quoted."""
    told = Event(" ".join([message, *(f"{key}={_shown(value)}" for key, value in fields.items())]))
    told.message, told.fields = message, fields
    return told


def _shown(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(character.isspace() for character in text) else text


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float | None) else _without_keys(str(value))


def _without_keys(text: str) -> str:
    return _SECRET.sub(r"\1...", text)
