"""Takes secrets out of text that leaves this machine: those that are known, and whatever has the look of one."""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "(hidden)"
_SHORTEST = 6
"""Shorter values are words, such as a user's name."""
_VALUE = r"[^\s\"',;}&]+"
_MIXED = r"(?=[\w/+=-]*[A-Z])(?=[\w/+=-]*[a-z])(?=[\w/+=-]*\d)"

_LOOKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), HIDDEN),
    (re.compile(r"\b(lsk-[\w.]+)-[\w-]{20,}"), rf"\1-{HIDDEN}"),
    (re.compile(r"\b(hf|pul|ghp|gho|ghs|github_pat|sk|xox[abp])[_-][\w-]{16,}"), rf"\1-{HIDDEN}"),
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+(\.[\w-]*)?"), HIDDEN),
    (re.compile(r"(://[^\s/:@]+):[^\s/@]+@"), rf"\1:{HIDDEN}@"),
    (re.compile(rf"\b(bearer|basic)\s+{_VALUE}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"([?&](?:X-Amz-[\w-]+|signature|sig)=)[^\s&\"']+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (
        re.compile(
            rf"((?:password|passwd|passphrase|secret|token(?!s)|credential|api[-_ ]?key|access[-_]?key)[\w-]*[\"']?\s*[:=]\s*[\"']?){_VALUE}",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(rf"(?<![\w/+=:-]){_MIXED}[\w/+-]{{40}}(?![\w/+=-])"), HIDDEN),
    (re.compile(rf"(?<![\w/+=:-]){_MIXED}[\w/+=-]{{80,}}"), HIDDEN),
)
"""Keys of ours, of hubs and of AWS, tokens, signed URLs, what a name announces, and what is random enough to be one."""


def redact(text: str, known: Iterable[str] = ()) -> str:
    """The text without them. A digest (`sha256:` and hexadecimal digits) stays: it tells versions apart."""
    for secret in sorted({one.strip() for one in known}, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, HIDDEN)
    for look, replacement in _LOOKS:
        text = look.sub(replacement, text)
    return text
