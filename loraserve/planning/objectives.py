"""What callers of a model may expect, for burn-rate alerts."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, TypeAdapter

from loraserve.contract.document import Document

FIRST_TOKEN_BOUNDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
"""Seconds: the bounds of the gateway's histogram, of which an objective must be one to be told from its neighbours."""


def _bound(seconds: float) -> float:
    if seconds not in FIRST_TOKEN_BOUNDS:
        raise ValueError(
            f"must be one of {', '.join(f'{bound:g}' for bound in FIRST_TOKEN_BOUNDS)}: a bound that is measured"
        )
    return seconds


class Objective(Document):
    """Over 30 days."""

    availability: float = Field(default=0.99, gt=0, lt=1)
    """Share of the requests that must not fail through no fault of the caller."""
    first_token_seconds: Annotated[float, AfterValidator(_bound)] = 5
    first_token_share: float = Field(default=0.95, gt=0, lt=1)
    """Share of the streams whose first token must come within `first_token_seconds`."""


def parse(text: bytes) -> dict[str, Objective]:
    """By model, of a JSON object. Raises ValueError."""
    return TypeAdapter(dict[str, Objective]).validate_json(text)
