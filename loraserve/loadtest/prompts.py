"""What is asked: short and medium questions, and such with retrieved text before them. No two are the same. Pure."""

from __future__ import annotations

import random
from enum import StrEnum


class Kind(StrEnum):
    SHORT = "short"
    MEDIUM = "medium"
    RAG = "rag"


MAX_TOKENS = {Kind.SHORT: 50, Kind.MEDIUM: 100, Kind.RAG: 150}
RETRIEVED_WORDS = 300
"""About 1.3 tokens each, in most tokenizers."""
_MEDIUM_WORDS = 60
_TOKENS_BESIDE = 330
"""The answer, the question and its frame, and the last sentence, which is whole; likewise."""
_MOST_TOKENS_A_WORD = 8
"""One for each byte, which no tokenizer exceeds."""
_SUBJECTS = (
    "bucket",
    "cluster",
    "gateway",
    "queue",
    "volume",
    "policy",
    "role",
    "subnet",
    "stream",
    "table",
    "snapshot",
)
_VERBS = ("stores", "reads", "replaces", "limits", "encrypts", "replicates", "schedules", "deletes", "monitors")
_MANNERS = ("by default", "at rest", "in each region", "within minutes", "on request", "without downtime")


def prompt(kind: Kind, rng: random.Random, retrieved_words: int = RETRIEVED_WORDS) -> str:
    """An instruction in the form that Mistral-like models were tuned on. Its words come from `rng`, so prefix caches help little."""
    text = f"[INST] Case {rng.randrange(10**9)}: "
    if kind is Kind.RAG:
        text += f"Answer from this text only. {_sentences(retrieved_words, rng)} Question: "
    elif kind is Kind.MEDIUM:
        text += f"{_sentences(_MEDIUM_WORDS, rng)} Explain "
    return f"{text}how does a {rng.choice(_SUBJECTS)} work with a {rng.choice(_SUBJECTS)}? [/INST]"


def retrieved_words_for(max_model_len: int) -> int:
    """As many as fit such a context beside the question and its answer, in any tokenizer."""
    return max(1, min(RETRIEVED_WORDS, (max_model_len - _TOKENS_BESIDE) // _MOST_TOKENS_A_WORD))


def _sentences(words: int, rng: random.Random) -> str:
    said, left = list[str](), words
    while left > 0:
        subject, verb, other, manner = map(rng.choice, (_SUBJECTS, _VERBS, _SUBJECTS, _MANNERS))
        said.append(f"A {subject} {verb} every {other} {manner}.")
        left -= said[-1].count(" ") + 1
    return " ".join(said)
