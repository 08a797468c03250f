"""Logs for people: one line per event, `2026-01-31T12:00:00Z INFO adapter ready adapter=a@v1`."""

import logging
import re
import sys
import time

_SECRET = re.compile(r"(lsk-[A-Za-z0-9._]+-|Bearer\s+)[^\s'\"]+", re.IGNORECASE)
"""API keys, wherever they got into a message or a traceback."""


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _SECRET.sub(r"\1...", super().format(record))


def configure() -> None:
    formatter = _Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("httpx", "botocore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def event(message: str, **fields: object) -> str:
    """`message key=value ...` on one line; values with blanks are quoted."""
    return " ".join([message, *(f"{key}={_shown(value)}" for key, value in fields.items())])


def _shown(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(character.isspace() for character in text) else text
