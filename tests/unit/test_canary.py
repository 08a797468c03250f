"""A canary is judged by callers, who are assigned to a version: an interval of requests would be too narrow."""

from __future__ import annotations

import json
import math
import random
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loraserve.contract.samples import Sample
from loraserve.gateway import canaries
from loraserve.gateway.metrics import Metrics
from loraserve.monitoring.metrics import CANARY, CANARY_MOMENTS
from loraserve.operator.cli import main
from loraserve.operator.releases import canary
from loraserve.operator.releases.canary import Advice, Margins, Side, judge

MARGINS = Margins(errors=0.01, latency=0.1)
Calls = dict[str, tuple[int, int, float]]
"""Requests, failures and seconds by caller."""


def counted(stable: Calls, canary: Calls) -> Metrics:
    metrics = Metrics()
    metrics.declare({"faq": ["v2", "v3"], "legal": ["v1"]}, [])
    for version, calls in (("v2", stable), ("v3", canary)):
        for caller, (requests, failures, seconds) in calls.items():
            for number in range(requests):
                metrics.canaries.count("faq", version, caller, seconds / requests, number < failures)
    return metrics


def moments_of(calls: list[list[float]]) -> dict[str, float]:
    return dict(zip(CANARY_MOMENTS, canaries._moments(calls), strict=True))


def exported(metrics: Metrics) -> dict[str, dict[str, float]]:
    """Sums by version and moment."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            if sample.name == CANARY:
                found.setdefault(sample.labels["version"], {})[sample.labels["moment"]] = sample.value
    return found


def sides(stable: Calls, canary: Calls) -> tuple[Side, Side]:
    sums = exported(counted(stable, canary))
    return Side("v2", sums["v2"], 1), Side("v3", sums["v3"], 1)


def callers(count: int, requests: int = 20, failures: int = 0, seconds: float = 1.0) -> Calls:
    """Whose failures and seconds differ a little."""
    return {
        f"caller {number}": (
            requests,
            failures and failures - 1 + number % 2 * 2,
            requests * seconds * (0.95 + 0.1 * (number % 2)),
        )
        for number in range(count)
    }


def test_the_gateway_exports_sums_over_callers_of_models_with_a_canary() -> None:
    metrics = counted({"a": (3, 1, 6.0), "b": (1, 0, 1.0)}, {"c": (2, 2, 4.0)})
    metrics.canaries.count("legal", "v1", "a", 1, False)
    metrics.canaries.count("faq", "base", "a", 1, False)
    expected = [2, 4, 1, 7, 10, 1, 3, 37, 19]
    assert exported(metrics) == {
        "v2": dict(zip(CANARY_MOMENTS, expected, strict=True)),
        "v3": dict(zip(CANARY_MOMENTS, [1, 2, 2, 4, 4, 4, 4, 16, 8], strict=True)),
    }


def test_sums_start_anew_with_other_versions_and_end_with_the_canary() -> None:
    metrics = counted(callers(3), callers(2))
    metrics.declare({"faq": ["v3", "v2"]}, [])
    assert exported(metrics)["v2"]["callers"] == 3
    metrics.declare({"faq": ["v2", "v4"]}, [])
    assert exported(metrics)["v2"]["callers"] == 0
    metrics.declare({"faq": ["v2"]}, [])
    assert exported(metrics) == {}


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canaries, "MOST_CALLERS", 2)
    sums = exported(counted(callers(5, requests=3), {}))
    assert (sums["v2"]["callers"], sums["v2"]["requests"]) == (2, 6)


def test_a_callers_long_name_is_not_kept() -> None:
    metrics = counted({}, {})
    tracemalloc.start()
    try:
        for number in range(50):
            metrics.canaries.count("faq", "v2", f"{number} \ud800" + "x" * 100_000, 1, False)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert exported(metrics)["v2"]["callers"] == 50
    assert kept < 1_000_000


def test_the_interval_is_that_of_callers_and_covers_the_truth() -> None:
    """Callers fail at rates of their own, 5% in the mean: an interval of requests would miss it far more often."""
    chance = random.Random(1)
    missed = of_requests = 0
    for _ in range(400):
        calls: Calls = {}
        for caller in range(40):
            requests, rate = chance.randint(5, 40), chance.choice((0.0, 0.0, 0.0, 0.2))
            calls[str(caller)] = (requests, sum(chance.random() < rate for _ in range(requests)), requests)
        side = Side("v3", moments_of([list(each) for each in calls.values()]), 1)
        share = side.mean("failures")
        low, high = side.interval("failures")
        missed += not low <= 0.05 <= high
        of_requests += abs(share - 0.05) > 1.96 * math.sqrt(share * (1 - share) / side.requests)
    assert missed / 400 < 0.12
    assert of_requests / 400 > 0.2


def test_callers_that_were_split_over_gateways_widen_the_interval_never_narrow_it() -> None:
    whole = [[20.0, failures, 1.0] for failures in (0, 1, 4, 0, 9, 2) * 5]
    halves = [[half / 2 for half in caller] for caller in whole for _ in range(2)]
    one, two = Side("v3", moments_of(whole), 1), Side("v3", moments_of(halves), 2)
    assert (one.callers, one.mean("failures")) == (two.callers, two.mean("failures"))
    assert two.interval("failures") == pytest.approx(one.interval("failures"))


@pytest.mark.parametrize(
    ("stable", "canary_", "advice", "reason"),
    [
        (callers(400), callers(400), Advice.PROMOTE, "neither errors nor latency"),
        (callers(400), callers(400, failures=2), Advice.ROLL_BACK, "errors are worse"),
        (callers(400), callers(400, seconds=1.5), Advice.ROLL_BACK, "latency is worse"),
        (callers(400), callers(30), Advice.WAIT, "whether errors are within the margin is not known"),
        (callers(400), callers(4), Advice.WAIT, "too few callers (v3 4; 10"),
    ],
    ids=["as good", "fails", "slow", "few", "too few"],
)
def test_the_advice_and_its_reason(stable: Calls, canary_: Calls, advice: Advice, reason: str) -> None:
    found = judge(*sides(stable, canary_), MARGINS)
    assert found.advice is advice
    assert reason in found.reason


def test_no_failure_at_all_is_no_certainty() -> None:
    found = judge(*sides(callers(50), callers(50)), MARGINS)
    assert found.errors is not None
    assert found.errors.high > 0.05, "50 callers without a failure may have one in twenty"


@pytest.fixture
def prometheus(monkeypatch: pytest.MonkeyPatch) -> Callable[[Metrics], None]:
    """Answers queries of what a gateway exports."""

    def serve(metrics: Metrics) -> None:
        def answer(_: object, address: str, **__: Any) -> Any:
            query = parse_qs(urlparse(address).query)["query"][0]
            if query.startswith("sum by (version, moment)"):
                assert query == f'sum by (version, moment) ({CANARY}{{model="faq"}})'
                series = [
                    ({"version": version, "moment": moment}, value)
                    for version, moments in exported(metrics).items()
                    for moment, value in moments.items()
                ]
            elif query.startswith("count"):
                series = [({}, 2.0)]
            else:
                series = [({"version": "v2"}, 1.25), ({"version": "v3"}, math.nan)]
            result = [{"metric": labels, "value": [0, str(value)]} for labels, value in series]
            return _Answer(json.dumps({"data": {"result": result}}).encode())

        monkeypatch.setattr("urllib.request.OpenerDirector.open", answer)

    return serve


class _Answer:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def __enter__(self) -> _Answer:
        return self

    def __exit__(self, *_: object) -> None: ...

    def read(self) -> bytes:
        return self._content


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command, on a stack with a canary."""
    entries = [SimpleNamespace(name="faq", version="v2", canary_percent=None)]
    entries.append(SimpleNamespace(name="faq", version="v3", canary_percent=10))
    entries.append(SimpleNamespace(name="legal", version="v1", canary_percent=None))
    monkeypatch.setattr("loraserve.planning.stack_file.read", lambda _: SimpleNamespace(adapters=entries))
    return ["canary", "faq", "--url", "http://prometheus:9090"]


def test_the_command_shows_both_sides_and_what_to_do(
    prometheus: Callable[[Metrics], None], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    prometheus(counted(callers(900), callers(100, failures=3)))

    assert main(words) == 3

    told = capsys.readouterr().out
    assert "stable v2" in told
    assert "canary v3" in told
    assert "2,000 (10.0%)" in told
    assert re.search(r"callers, at least +450 +50", told)
    assert "1.25" in told
    assert told.splitlines()[-1] == "roll back: errors are worse than the margin allows"

    assert main([*words, "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["advice"], found["canary"]["failed"], found["canary"]["callers"]) == ("roll back", 0.15, 50)
    assert found["errors"]["low"] < 0.15 < found["errors"]["high"]


def sampled(faults: int, callers: int = 40) -> tuple[Side, Side]:
    """Five answers of each caller, of the canary's so many with a fault."""

    def sums(faults: int) -> dict[str, float]:
        squares = {"requests_squared": 25, "faults_squared": faults**2, "faults_requests": 5 * faults}
        of_one = {"callers": 1, "requests": 5, "faults": faults} | squares
        return {what: callers * value for what, value in of_one.items()}

    return Side("v2", sums(0), 1), Side("v3", sums(faults), 1)


def test_worse_answers_roll_a_canary_back_that_is_as_fast_and_fails_as_seldom() -> None:
    both = sides(callers(500, seconds=1.0), callers(500, seconds=0.9))
    assert judge(*both, MARGINS).advice is Advice.PROMOTE
    found = judge(*both, MARGINS, sampled(1))
    assert (found.advice, found.reason) == (Advice.ROLL_BACK, "quality is worse than the margin allows")
    assert found.plain()["quality"]["value"] == pytest.approx(0.2)
    assert judge(*both, MARGINS, sampled(0)).advice is Advice.WAIT, "40 callers without a fault may hide 7 points"
    few = judge(*both, MARGINS, sampled(0, callers=9))
    assert few.reason == "too few callers (v2 9 sampled and v3 9 sampled; 10 of each are the least)"


def test_the_command_reads_samples_where_a_bucket_is_named(
    prometheus: Callable[[Metrics], None],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prometheus(counted(callers(900), callers(900)))
    asked = {"tenant": "a", "model": "faq", "question": '"?"'}
    taken = [
        Sample(caller=str(caller), version=version, answer=answer, **asked)
        for version, answer in (("v2", "yes"), ("v3", ""))
        for caller in range(40)
    ]
    monkeypatch.setattr("loraserve.catalog.samples.read", lambda bucket, name: (bucket.name, name) and iter(taken))

    assert main([*words, "--bucket", "adapters"]) == 3

    told = capsys.readouterr().out
    assert re.search(r"answers sampled +40 of 40 callers +40 of 40 callers", told)
    assert re.search(r"with a fault +0.00% +100.00% +100.00%, 92", told)
    assert told.splitlines()[-1] == "roll back: quality is worse than the margin allows"


def test_a_canary_that_nobody_called_is_said_so(
    prometheus: Callable[[Metrics], None], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    prometheus(counted(callers(9), {}))
    assert main(words) == 1
    assert "Prometheus knows no request of faq@v3" in capsys.readouterr().err
    assert main([words[0], "legal", *words[2:]]) == 1
    assert "names no canary of legal" in capsys.readouterr().err


def test_what_is_no_prometheus_is_said_so(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words[-1] = "http://127.0.0.1:9"
    assert main(words) == 1
    assert "http://127.0.0.1:9 does not answer as Prometheus does" in capsys.readouterr().err


def test_student() -> None:
    """Against the table: t(9) 2.262, t(30) 2.042."""
    assert canary._student(9) == pytest.approx(2.262, abs=0.001)
    assert canary._student(30) == pytest.approx(2.042, abs=0.001)
    assert canary._student(10_000) == pytest.approx(1.96, abs=0.001)
