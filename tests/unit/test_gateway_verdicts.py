"""The last verdict of each declared version, as the gateway exports it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from loraserve.catalog.bucket import Bucket, CatalogUnavailable
from loraserve.catalog.evaluations import write_verdict
from loraserve.contract.evaluation import Override
from loraserve.gateway.metrics import Metrics
from loraserve.gateway.verdicts import Verdicts
from tests.unit.verdicts import NOW, verdict_of

pytest_plugins = ["tests.unit.catalog_fixtures"]

WORSE = -0.07
SERIES = "loraserve_gateway_evaluation_"


class World:
    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.metrics = Metrics()
        self.versions: dict[str, list[str]] = {"faq": ["v1", "v2"], "acme/tiny": []}
        self._verdicts = Verdicts(bucket, self.metrics, lambda: self.versions)

    def exported(self) -> list[str]:
        asyncio.run(self._verdicts.refresh())
        text = self.metrics.exposition().decode()
        return [line.removeprefix(SERIES) for line in text.splitlines() if line.startswith(SERIES)]


@pytest.fixture
def world(bucket: Bucket) -> World:
    return World(bucket)


def test_nothing_is_exported_of_a_version_that_nobody_evaluated(world: World) -> None:
    assert world.exported() == []


def test_both_scores_the_result_and_the_time_are_exported(world: World) -> None:
    write_verdict(world.bucket, verdict_of("v2"))
    *exported, when = world.exported()
    assert exported == [
        'score{model="faq",of="version",version="v2"} 0.8',
        'score{model="faq",of="compared with",version="v2"} 0.75',
        'failed{model="faq",version="v2"} 0.0',
    ]
    name, value = when.split()
    assert (name, float(value)) == ('timestamp_seconds{model="faq",version="v2"}', NOW.timestamp())


@pytest.mark.parametrize(
    ("more", "failed"),
    [
        ({}, 1),
        ({"override": Override(reason="the rows are wrong", by="arn:aws:iam::123456789012:user/lead")}, 0),
        ({"low": -0.03}, 0),
    ],
    ids=["worse", "worse, and let through", "inconclusive"],
)
def test_only_what_is_worse_and_was_not_let_through_has_failed(world: World, more: dict[str, Any], failed: int) -> None:
    write_verdict(world.bucket, verdict_of("v2", **{"low": WORSE} | more))
    assert f'failed{{model="faq",version="v2"}} {failed}.0' in world.exported()


def test_a_version_that_is_no_longer_declared_goes(world: World) -> None:
    write_verdict(world.bucket, verdict_of("v2"))
    assert world.exported()
    world.versions = {"faq": ["v1"]}
    assert world.exported() == []


def test_what_cannot_be_read_keeps_its_last_value(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write_verdict(world.bucket, verdict_of("v2"))
    before = world.exported()

    def unavailable(*_: object) -> None:
        raise CatalogUnavailable("S3 is down")

    monkeypatch.setattr("loraserve.gateway.verdicts.last_verdict", unavailable)
    assert world.exported() == before


def test_a_verdict_is_read_once_and_a_newer_one_takes_its_place(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write_verdict(world.bucket, verdict_of("v2", evaluated_at=NOW - timedelta(days=7)))
    before = world.exported()
    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "read", lambda *_: pytest.fail("it never changes"))
        assert world.exported() == before
    write_verdict(world.bucket, verdict_of("v2", low=WORSE))
    assert 'failed{model="faq",version="v2"} 1.0' in world.exported()
