"""The usage ledger: what tenants used outlives the gateway that counted it, and their budgets are measured by it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest

from loraserve.catalog import usage
from loraserve.catalog.bucket import Bucket, CatalogUnavailable
from loraserve.contract.keys import create_key
from loraserve.contract.usage import Used
from loraserve.gateway.errors import BudgetSpent
from loraserve.gateway.ledger import Ledger, process_name
from loraserve.gateway.record import Record
from loraserve.operator.cli import main
from tests.unit.adapters_and_vllm import BUCKET
from tests.unit.gateway_world import World, adapter, chat, world

pytest_plugins = ("tests.unit.catalog_fixtures",)
pytestmark = pytest.mark.usefixtures("few_clients")

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
TODAY = NOON.date()


class Clock:
    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def at(bucket: Bucket, tmp_path: Path) -> Iterator[World]:
    assert bucket
    with world(tmp_path, usage_bucket=BUCKET, pod_name="gateway-1") as made:
        made.pods[0].holds("faq@v1")
        made.start(adapter())
        made.wait_for_status("ready")
        yield made


def ledger(bucket: Bucket, clock: Clock, process: str = "gateway-a-1") -> Ledger:
    return Ledger(bucket, process, lambda: True, now=clock)


def answered(tenant: str = "team-a", prompt: int = 7, completion: int = 3, served: str = "faq@v1") -> Record:
    record = Record(path="/v1/completions", request_id="r", tenant=tenant, model="faq", served=served)
    record.prompt_tokens, record.completion_tokens = prompt, completion
    return record


def key(tokens: int | None = 100) -> Any:
    return create_key("team-a", ("*",), None, tokens_per_month=tokens)[1]


def sums(bucket: Bucket, day: date = TODAY) -> dict[tuple[str, str, str], tuple[int, int, int]]:
    found: dict[tuple[str, str, str], tuple[int, int, int]] = {}
    for used in (used for counted_on, used in usage.read_month(bucket, day) if counted_on == day):
        at = (used.tenant, used.model, used.version)
        before = found.get(at, (0, 0, 0))
        found[at] = (
            before[0] + used.requests,
            before[1] + used.prompt_tokens,
            before[2] + used.completion_tokens,
        )
    return found


def test_what_was_used_is_in_the_bucket_when_the_gateway_has_stopped(at: World, bucket: Bucket) -> None:
    at.post(chat())
    at.post(chat(stream=True))
    at.post(chat("nope"))
    at.stop_gateway()
    assert sums(bucket, datetime.now(UTC).date()) == {("team-a", "faq", "v1"): (2, 7 + 7, 3 + 5)}


def test_counts_add_up_over_writes_restarts_and_replicas(bucket: Bucket, clock: Clock) -> None:
    first, second = ledger(bucket, clock), ledger(bucket, clock, "gateway-b-1")
    for _ in range(3):
        first.count(answered())
        asyncio.run(first.write())
    second.count(answered(served="base-model"))
    second.count(answered("team-b"))
    asyncio.run(second.write())
    again = ledger(bucket, clock, "gateway-a-2")
    again.count(answered())
    asyncio.run(again.write())
    assert sums(bucket) == {
        ("team-a", "faq", "v1"): (4, 28, 12),
        ("team-a", "faq", "base"): (1, 7, 3),
        ("team-b", "faq", "v1"): (1, 7, 3),
    }


def test_each_days_use_stands_under_its_day_and_what_is_idle_writes_nothing(bucket: Bucket, clock: Clock) -> None:
    counting = ledger(bucket, clock)
    counting.count(answered())
    clock.now += timedelta(days=1)
    counting.count(answered("team-b"))
    asyncio.run(counting.write())
    asyncio.run(counting.write())
    assert set(sums(bucket)) == {("team-a", "faq", "v1")}
    assert set(sums(bucket, clock.now.date())) == {("team-b", "faq", "v1")}
    assert len(bucket.objects("usage/")) == 2


@pytest.mark.parametrize("arrived", [False, True])
def test_a_write_that_failed_loses_nothing_and_counts_nothing_twice(
    bucket: Bucket, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, arrived: bool
) -> None:
    """Also where the bytes arrived, and the answer did not."""
    add, unwritten = bucket.add, list[bool]()
    counting = Ledger(bucket, "gateway-a-1", lambda: True, unwritten.append, clock)

    def fail(key: str, content: bytes) -> None:
        if arrived:
            add(key, content)
        raise CatalogUnavailable("S3 is away")

    counting.count(answered())
    monkeypatch.setattr(bucket, "add", fail)
    asyncio.run(counting.write())
    assert "usage cannot be written problem='S3 is away'" in caplog.text
    monkeypatch.undo()
    asyncio.run(counting.write())
    assert sums(bucket) == {("team-a", "faq", "v1"): (1, 7, 3)}
    assert unwritten == [True, False]


def test_an_object_is_written_once(bucket: Bucket) -> None:
    bucket.add("usage/2026-11-28/p/00000001.json", b"first")
    bucket.add("usage/2026-11-28/p/00000001.json", b"second")
    assert bucket.read("usage/2026-11-28/p/00000001.json", 100) == b"first"


def test_what_vllm_never_saw_is_no_use(bucket: Bucket, clock: Clock) -> None:
    counting = ledger(bucket, clock)
    refused = Record(path="/v1/completions", request_id="r", tenant="team-a", outcome="rate_limit_exceeded")
    failed = answered(prompt=0, completion=0)
    failed.outcome = "upstream_error"
    dropped = answered()
    dropped.outcome = "client_gone"
    for record in (refused, failed, dropped):
        counting.count(record)
    asyncio.run(counting.write())
    assert sums(bucket) == {("team-a", "faq", "v1"): (1, 7, 3)}, "whoever hangs up has used what was produced"


def test_two_processes_never_have_one_name() -> None:
    first = process_name("gateway-1")
    while (second := process_name("gateway-1")) == first:
        pass
    assert first < second


# Budgets.


def test_a_budget_is_spent_over_all_replicas_and_renewed_with_the_month(bucket: Bucket, clock: Clock) -> None:
    clock.now = datetime(2026, 11, 2, 12, tzinfo=UTC)
    mine, other = ledger(bucket, clock), ledger(bucket, clock, "gateway-b-1")
    other.count(answered(prompt=50, completion=10))
    asyncio.run(other.write())
    clock.now += timedelta(days=3)
    other.count(answered(prompt=20, completion=10))
    asyncio.run(other.write())
    mine.count(answered())
    mine.check(key())
    mine._others.refresh(clock.now)
    with pytest.raises(BudgetSpent, match=r"100 tokens .* \(100 counted\).*2026-12-01"):
        mine.check(key())
    mine.check(key(101))
    mine.check(key(None))
    clock.now = datetime(2026, 12, 1, tzinfo=UTC)
    mine.check(key())
    mine._others.refresh(clock.now)
    mine.check(key())


def test_days_that_are_over_are_read_once(bucket: Bucket, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    other, mine = ledger(bucket, clock, "gateway-b-1"), ledger(bucket, clock)
    other.count(answered())
    asyncio.run(other.write())
    asked: list[str] = []
    objects = bucket.objects
    monkeypatch.setattr(bucket, "objects", lambda prefix: asked.append(prefix) or objects(prefix))
    clock.now += timedelta(days=1)
    mine._others.refresh(clock.now)
    assert len(asked) == 29
    asked.clear()
    mine._others.refresh(clock.now)
    assert asked == ["usage/2026-11-29"]
    with pytest.raises(BudgetSpent):
        mine.check(key(10))


def test_who_has_spent_a_budget_gets_what_openais_client_takes_for_it_and_tries_no_more(at: World) -> None:
    spent = at.add_key("team-b", tokens_per_month=5)
    at.wait_until(lambda: at.post(chat(), spent).status_code != 401)
    at.pods[0].requests.clear()
    with openai.OpenAI(base_url=f"{at.url}/v1", api_key=spent) as client:
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model="faq", messages=[{"role": "user", "content": "Hi"}])
        assert refused.value.code == "insufficient_quota"
        assert not at.pods[0].requests
        assert client.models.list().data, "what costs nothing is still answered"
    assert 'outcome="insufficient_quota"' in at.inner("/metrics").text
    assert at.post(chat()).status_code == 200


# The bill.


@pytest.fixture
def opened(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """What the command opens: a client of its own costs a second."""
    monkeypatch.setattr("loraserve.catalog.bucket.Bucket", lambda name: {BUCKET: bucket}[name])
    return bucket


def test_a_month_is_a_table_for_spreadsheets(opened: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    def used(tenant: str, prompt: int, completion: int) -> Used:
        counted = {"requests": 1, "prompt_tokens": prompt, "completion_tokens": completion}
        return Used(tenant=tenant, model="faq", version="v1", **counted)

    usage.write(opened, date(2026, 11, 1), "gateway-a-1", 1, [used("team-a", 20, 20)])
    usage.write(opened, date(2026, 11, 30), "gateway-a-1", 2, [used("team-a", 10, 10), used("team-b", 50, 0)])
    usage.write(opened, date(2026, 11, 30), "gateway-b-1", 1, [used("team-a", 0, 0)])
    usage.write(opened, date(2026, 12, 1), "gateway-a-1", 3, [used("team-a", 9, 9)])
    assert main(["usage", "--bucket", BUCKET, "--month", "2026-11", "--csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "day,tenant,model,version,requests,prompt_tokens,completion_tokens,gpu_share",
        "2026-11-01,team-a,faq,v1,1,20,20,0.5",
        "2026-11-30,team-a,faq,v1,2,10,10,0.25",
        "2026-11-30,team-b,faq,v1,1,50,0,0.25",
    ]
    assert main(["usage", "--bucket", BUCKET, "--month", "2026-11", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["tenant"] == "team-a"
    assert main(["usage", "--bucket", BUCKET, "--month", "2026-11"]) == 0
    table = capsys.readouterr().out
    assert "75.0%" in table
    assert "25.0%" in table
    cost = ["usage", "--bucket", BUCKET, "--month", "2026-11", "--dollars", "260"]
    assert main(cost) == 0
    table = capsys.readouterr().out
    assert "195.00" in table
    assert "65.00" in table
    assert main([*cost, "--csv"]) == 0
    assert [line.split(",")[-1] for line in capsys.readouterr().out.splitlines()] == [
        "dollars",
        "130.0",
        "65.0",
        "65.0",
    ]


@pytest.mark.usefixtures("opened")
def test_a_month_without_use_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", "--bucket", BUCKET, "--month", "2020-02", "--csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
