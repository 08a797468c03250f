"""Sampled answers: only of tenants who agree, only of a model with a canary, never in the way of an answer, never in a log."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loraserve.catalog import samples
from loraserve.catalog.bucket import Bucket, CatalogUnavailable
from loraserve.contract.keys import Key, create_key
from loraserve.contract.samples import Sample
from loraserve.gateway.record import Record
from loraserve.gateway.samples import MOST_BYTES, NOT_WRITTEN, TOO_LARGE, TOO_MANY, WRITTEN, Samples
from loraserve.gateway.seen import LARGEST_BYTES
from loraserve.operator.releases.canary import NotJudged
from loraserve.operator.releases.canary_samples import scorers_of, sides
from tests.unit.adapters_and_vllm import BUCKET
from tests.unit.gateway_world import World, adapter, chat, world

pytest_plugins = ("tests.unit.catalog_fixtures",)
pytestmark = pytest.mark.usefixtures("few_clients")

VERSIONS = {"faq": ["v1", "v2"], "legal": ["v1"]}
ANSWER = json.dumps({"choices": [{"index": 0, "message": {"content": "Yes."}, "finish_reason": "stop"}]}).encode()


@pytest.fixture
def at(bucket: Bucket, tmp_path: Path) -> Iterator[World]:
    assert bucket
    with world(tmp_path, usage_bucket=BUCKET, pod_name="gateway-1") as made:
        made.pods[0].holds("faq@v1", "faq@v2", "legal@v1")
        yield made


def test_what_agreeing_tenants_ask_a_model_with_a_canary_is_kept_and_nothing_else(
    at: World, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    agrees = at.add_key("agrees", sample_percent=100)
    at.start(adapter(), adapter(version="v2", canary_percent=50), adapter("legal"))
    at.wait_for_status("ready")
    caplog.set_level(logging.DEBUG)

    whole = at.post(chat(user="one"), agrees)
    at.post(chat(user="two", stream=True), agrees)
    at.post(chat("faq@v1"), agrees)  # was not assigned to it
    at.post(chat("legal"), agrees)
    at.post(chat("nope"), agrees)
    at.post(chat())
    at.stop_gateway()

    found = {sample.caller: sample for sample in samples.read(bucket, "faq")}
    assert len(found) == 2
    assert list(samples.read(bucket, "legal")) == []
    one, two = sorted(
        found.values(), key=lambda sample: sample.answer != whole.json()["choices"][0]["message"]["content"]
    )
    assert (one.tenant, one.model, json.loads(one.question)) == ("agrees", "faq", chat()["messages"])
    assert f"faq@{one.version}" == whole.headers["X-Loraserve-Model"]
    assert (one.finish_reason, two.finish_reason) == ("stop", "stop")
    assert two.answer
    assert two.answer not in caplog.text


def record(caller: str = "agrees one", served: str = "faq@v1", path: str = "/v1/chat/completions") -> Record:
    return Record(path=path, request_id="r", tenant="agrees", caller=caller, model="faq", served=served)


def agreeing(percent: float | None = 100) -> Key:
    return create_key("agrees", ("*",), None, sample_percent=percent)[1]


class Counted:
    def __init__(self, bucket: Bucket, **more: Any) -> None:
        self.outcomes: Counter[str] = Counter()
        self.samples = Samples(bucket, "gateway-1", lambda: VERSIONS, self._count, **more)

    def _count(self, outcome: str, number: int) -> None:
        self.outcomes[outcome] += number

    def ask(self, answer: bytes = ANSWER, question: bytes = b'"prompt": "?"', **of: Any) -> None:
        asked = record(**of)
        asked.seen = self.samples.begin(agreeing(), asked, question)
        asked.see(answer)
        self.samples.end(asked)

    def write(self) -> None:
        asyncio.run(self.samples.write())


def test_the_share_is_the_tenants_own(bucket: Bucket) -> None:
    sampling = Counted(bucket, chance=lambda: 0.1).samples
    chosen = [sampling.begin(agreeing(percent), record(), b"") is not None for percent in (None, 5, 10, 11, 100)]
    assert chosen == [False, False, False, True, True]


def test_what_is_large_is_lost_and_counted_and_takes_no_memory(bucket: Bucket) -> None:
    counted = Counted(bucket)
    counted.ask(answer=b"x" * LARGEST_BYTES)
    counted.ask(question=b"x" * LARGEST_BYTES)
    assert counted.outcomes == {TOO_LARGE: 2}
    assert counted.samples._bytes == 0
    counted.write()
    assert list(samples.read(bucket, "faq")) == []


def test_more_than_a_few_megabytes_never_wait(bucket: Bucket) -> None:
    counted = Counted(bucket)
    begun = [counted.samples.begin(agreeing(), record(), b"") for _ in range(2 * MOST_BYTES // LARGEST_BYTES)]
    assert sum(seen is not None for seen in begun) == MOST_BYTES // LARGEST_BYTES
    assert counted.outcomes == {TOO_MANY: MOST_BYTES // LARGEST_BYTES}


def test_what_s3_does_not_take_is_lost_and_counted(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise CatalogUnavailable("no")

    counted = Counted(bucket)
    monkeypatch.setattr(bucket, "add", refuse)
    counted.ask()
    counted.write()
    monkeypatch.undo()
    counted.ask()
    counted.write()
    assert counted.outcomes == {NOT_WRITTEN: 1, WRITTEN: 1}
    assert counted.samples._bytes == 0
    assert len(list(samples.read(bucket, "faq"))) == 1


def test_an_answer_of_a_form_of_its_own_costs_no_other_sample(bucket: Bucket) -> None:
    counted = Counted(bucket)
    counted.ask(answer=b'{"choices": [1]}')
    counted.ask(question=b'"messages": [{"content": "\\ud800"}]')
    counted.ask(answer=b"{" * 10_000)
    counted.write()
    assert counted.outcomes == {NOT_WRITTEN: 2, WRITTEN: 1}


def test_the_base_in_an_adapters_stead_a_failure_and_other_pages_are_no_samples(bucket: Bucket) -> None:
    counted = Counted(bucket)
    counted.ask(served="base-model")
    counted.ask(path="/v1/responses")
    failed = record()
    failed.seen = counted.samples.begin(agreeing(), failed, b"")
    failed.outcome = "upstream_error"
    counted.samples.end(failed)
    counted.write()
    assert counted.outcomes == {}


def sample(version: str, caller: int, answer: str = "k41", reason: str = "stop") -> Sample:
    return Sample(
        tenant="agrees",
        caller=str(caller),
        model="faq",
        version=version,
        question='"?"',
        answer=answer,
        finish_reason=reason,
    )


def test_a_fault_is_an_answer_without_its_form(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "?", "reference": "k41"}\n')
    scorers = {
        "form": {"kind": "regex", "pattern": "^[a-z][0-9]{2}$"},
        "right": {"kind": "normalised-match"},
        "has": {"kind": "regex", "pattern": "{reference}"},
    }
    plan = {"rows": "rows.jsonl", "scorers": scorers, "primaryScore": "right"}
    (tmp_path / "evaluation.yaml").write_text(json.dumps(plan))
    taken = scorers_of(tmp_path / "evaluation.yaml")
    assert len(taken) == 1, "the others say nothing without a reference"
    bad = [sample("v2", 1, "code?"), sample("v2", 1, ""), sample("v2", 2, reason="length"), sample("v2", 3, "m07")]
    stable, canary = sides("faq", [sample("v1", 9), *bad], ("v1", "v2"), taken)
    assert (stable.mean("faults"), canary.mean("faults")) == (0, 0.75)
    assert (canary.callers, canary.requests, canary.sums["faults_requests"]) == (3, 4, 2 * 2 + 1)
    with pytest.raises(NotJudged, match=r"no sample of faq@v2.*samplePercent"):
        sides("faq", [sample("v1", 9)], ("v1", "v2"), taken)
