"""Text as scorers compare it."""

import re
import unicodedata
from collections.abc import Iterable, Mapping

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORD = re.compile(r"[^\W_]+")
_UNSPACED = {
    "CJK": "Chinese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "THAI": "Thai",
    "LAO": "Lao",
    "KHMER": "Khmer",
    "MYANMAR": "Burmese",
    "TIBETAN": "Tibetan",
}
"""Scripts that put no spaces between words, as the names of their characters begin, and whose they are."""


def normalised(text: str) -> str:
    """In SQuAD's order: lower case, punctuation, English articles, spaces."""
    lowered = "".join(char for char in text.lower() if not unicodedata.category(char).startswith(("P", "S")))
    return " ".join(_ARTICLES.sub(" ", lowered).split())


def filled(template: str, parts: Mapping[str, str]) -> str:
    """Puts each part in the place of its `{name}`, in one pass: what a part itself contains stays."""
    return re.sub(r"\{(\w+)\}", lambda found: parts.get(found[1], found[0]), template)


def words(text: str) -> list[str]:
    """Letters and digits of any script, not of English only; nothing is stemmed."""
    return _WORD.findall(text.lower())


def unspaced_languages(texts: Iterable[str]) -> list[str]:
    """Which languages in these texts cannot be split into words by spaces."""
    scripts = {unicodedata.name(char, "").partition(" ")[0] for char in set("".join(texts))}
    return sorted({_UNSPACED[script] for script in scripts if script in _UNSPACED})
