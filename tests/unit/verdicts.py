"""Verdicts as evaluations make them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from loraserve.contract.evaluation import BaseIdentity, Comparison, EvaluatedVersion, Verdict

DIGEST = f"sha256:{'d' * 64}"
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def verdict_of(version: str, low: float = 0.01, **more: Any) -> Verdict:
    """On faq, against the base; `low` is the lower end of an interval of 4 points, with a margin of 2."""
    primary = Comparison(
        data=DIGEST,
        rows=900,
        clusters=900,
        candidate_score=0.8,
        score=0.75,
        interval=(low, low + 0.04),
        required_rows=(773, 1546),
        small=False,
    )
    fields = {
        "candidate": EvaluatedVersion(name="faq", version=version, digest=DIGEST),
        "base": BaseIdentity(name="acme/tiny", revision="1" * 40),
        "scorers": DIGEST,
        "primary_score": "exact",
        "margin": 0.02,
        "error_rate": 0.05,
        "primary": primary,
        "result": primary.result(0.02),
        "evaluated_at": NOW,
    }
    return Verdict.model_validate(fields | more)
