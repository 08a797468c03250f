"""One answer, and what is wrong with it whatever its score."""

import re
from dataclasses import dataclass
from typing import Any

from loraserve.evaluation.rows import Row

EMPTY, WHITESPACE = "empty", "whitespace"
FOLLOW_UP = "invented follow-up question"
TRUNCATED = "truncated"
REFUSED = "refused with context"
UNFOUNDED = "answered without context"
ERROR = "error"
FAILURES = (EMPTY, WHITESPACE, FOLLOW_UP, TRUNCATED, REFUSED, UNFOUNDED, ERROR)

_FOLLOW_UP = re.compile(
    r"^\W*(question|q|user|human|instruction|follow-?up question)\s*\d*\s*[:?]|\[INST\]|<\|im_start\|>user|<\|user\|>",
    re.IGNORECASE | re.MULTILINE,
)
_SOURCE = r"(context|documents?|text|passage|information|sources?)"
_REFUSAL = re.compile(
    rf"\b{_SOURCE}\b[^.]{{0,40}}(\bnot\b|n't\b|\bno\b)"
    r"|(\bnot|n't) (mentioned|provided|specified|stated|contained|found|given|covered|answered)\b"
    rf"|\b(no|not enough|insufficient) (such |relevant |further )?{_SOURCE}\b"
    r"|\b(do not|don't|cannot|can't|can not|could not|couldn't|unable to|not able to) (be )?(know|answer|determine|say|tell)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Answer:
    text: str
    finish_reason: str | None = None
    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None
    """Why there is no answer to this request, for good."""

    @classmethod
    def of(cls, response: dict[str, Any]) -> "Answer":
        """What `bulk` kept of it."""
        body, seconds = response["body"], response["seconds"]
        if response["status_code"] != 200:
            message = body.get("error", {}).get("message") if isinstance(body, dict) else None
            return cls("", seconds=seconds, error=message or f"status {response['status_code']}")
        choice, usage = body["choices"][0], body.get("usage") or {}
        text = choice["message"].get("content") if "message" in choice else choice.get("text")
        return cls(
            text or "",
            choice.get("finish_reason"),
            seconds,
            usage.get("prompt_tokens") or 0,
            usage.get("completion_tokens") or 0,
        )

    def refuses(self, pattern: str | None) -> bool:
        """Says that it cannot answer; `pattern` in the place of usual English words."""
        return (re.compile(pattern, re.IGNORECASE) if pattern else _REFUSAL).search(self.text) is not None

    def failures(self, row: Row, refusal: str | None) -> list[str]:
        found = {
            ERROR: self.error is not None,
            EMPTY: self.error is None and not self.text,
            WHITESPACE: bool(self.text) and not self.text.strip(),
            FOLLOW_UP: _FOLLOW_UP.search(self.text) is not None,
            TRUNCATED: self.finish_reason == "length",
        }
        if self.text.strip():
            refuses = self.refuses(refusal)
            found |= {REFUSED: row.answerable and refuses, UNFOUNDED: not (row.answerable or refuses)}
        return [kind for kind in FAILURES if found.get(kind)]
