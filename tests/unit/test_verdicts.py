"""A verdict: bound to what was evaluated, consistent in itself, and in the bucket only ever added to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from loraserve.catalog.bucket import Bucket
from loraserve.catalog.evaluations import read_verdicts, write_verdict
from loraserve.contract.evaluation import (
    BaseIdentity,
    Comparison,
    EvaluatedVersion,
    InvalidVerdict,
    Override,
    Result,
    Verdict,
    verdict_key,
)
from tests.unit.adapters_and_vllm import BUCKET

pytest_plugins = ["tests.unit.catalog_fixtures"]

DIGEST = "sha256:" + "a" * 64
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def comparison(low: float = -0.01, high: float = 0.03, **more: Any) -> Comparison:
    fields = {
        "data": DIGEST,
        "rows": 1000,
        "clusters": 1000,
        "candidate_score": 0.81,
        "score": 0.8,
        "interval": (low, high),
        "required_rows": (773, 773),
        "small": False,
    }
    return Comparison.model_validate(fields | more)


def verdict(**more: Any) -> Verdict:
    fields = {
        "candidate": EvaluatedVersion(name="faq", version="v3", digest=DIGEST),
        "base": BaseIdentity(name="mistralai/Mistral-7B-v0.1", revision="main"),
        "scorers": DIGEST,
        "primary_score": "exact_match",
        "margin": 0.02,
        "error_rate": 0.05,
        "primary": comparison(),
        "result": Result.PASS,
        "evaluated_at": NOW,
    }
    return Verdict.model_validate(fields | more)


@pytest.mark.parametrize(
    ("low", "high", "result"),
    [(-0.019, 0.03, "pass"), (-0.021, 0.03, "inconclusive"), (-0.3, -0.021, "fail"), (-0.02, -0.01, "inconclusive")],
)
def test_the_interval_and_the_margin_decide(low: float, high: float, result: str) -> None:
    assert comparison(low, high).result(0.02) == result


@pytest.mark.parametrize(
    ("general", "result"), [((-0.01, 0.01), "pass"), ((-0.1, 0.1), "inconclusive"), ((-0.2, -0.1), "fail")]
)
def test_both_comparisons_have_to_pass(general: tuple[float, float], result: str) -> None:
    assert verdict(general=comparison(*general), result=result).allows_release is (result == "pass")


def test_a_result_that_its_own_numbers_contradict_is_no_verdict() -> None:
    with pytest.raises(ValidationError, match="is 'fail' by the intervals"):
        verdict(primary=comparison(-0.3, -0.2), result=Result.PASS)


def test_an_interval_of_width_0_is_no_verdict() -> None:
    with pytest.raises(ValidationError, match="must have a width"):
        comparison(0, 0)


def test_an_override_lets_through_what_did_not_pass_and_says_who_and_why() -> None:
    blocked = {"primary": comparison(-0.3, -0.2), "result": Result.FAIL}
    override = Override(reason="the old version leaks names", by="arn:aws:iam::1:role/pipeline")
    assert not verdict(**blocked).allows_release
    assert verdict(**blocked, override=override).allows_release
    with pytest.raises(ValidationError, match="nothing to override"):
        verdict(override=override)
    with pytest.raises(ValidationError, match="reason"):
        Override(reason=" ", by="somebody")


def test_verdicts_are_added_and_read_oldest_first(bucket: Bucket) -> None:
    newer, older = verdict(), verdict(evaluated_at=NOW - timedelta(days=1))
    keys = [write_verdict(bucket, each) for each in (newer, older, newer)]
    assert read_verdicts(bucket, "faq", "v3") == [older, newer]
    assert keys[0] == keys[2] != keys[1]
    assert read_verdicts(bucket, "faq", "v4") == []


def test_what_somebody_put_in_a_verdicts_place_is_named(bucket: Bucket, s3: Any) -> None:
    key = verdict_key("faq", "v4", DIGEST)
    s3.put_object(Bucket=BUCKET, Key=key, Body=verdict().to_json())
    with pytest.raises(InvalidVerdict, match=rf"{key} is no verdict that `loraserve evaluate` wrote on faq@v4"):
        read_verdicts(bucket, "faq", "v4")
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"{}")
    with pytest.raises(InvalidVerdict, match=r"it is no verdict:\ncandidate: is missing"):
        read_verdicts(bucket, "faq", "v4")
