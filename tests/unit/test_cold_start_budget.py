"""One budget of a start from zero: what the documents say and what the gateway does are the same."""

from __future__ import annotations

import re

from local.paths import CHECKOUT
from loraserve.gateway.bounds import Bounds
from loraserve.gateway.cold_start import PHASES
from loraserve.monitoring.rules import groups
from loraserve.planning.cold_start import (
    BUDGET,
    CACHED_FROM_ZERO,
    CACHED_ON_WARM_NODE,
    FROM_ZERO,
    HOLD_SECONDS,
    ON_WARM_NODE,
    PATIENCE_SECONDS,
    WITH_START_CACHE,
)
from loraserve.planning.settings_parser import parse
from tests.stack_values import stack_values


def test_the_document_is_the_table() -> None:
    text = (CHECKOUT / "docs/cold-start.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| (\d+-\d+) \| (\w+) \| (.+) \|$", text, re.MULTILINE)
    assert rows == [(p.name, f"{p.low:g}-{p.high:g}", p.kind, p.source) for p in (*BUDGET, WITH_START_CACHE)]
    for sums in ((FROM_ZERO, CACHED_FROM_ZERO), (ON_WARM_NODE, CACHED_ON_WARM_NODE)):
        assert " | ".join(f"**{one.low:g}-{one.high:g}**" for one in sums) in text
    assert f"holds a request for {HOLD_SECONDS} s" in text


def test_what_else_tells_of_a_start_tells_the_same_and_that_it_is_modelled() -> None:
    for document in ("README.md", "docs/gateway.md"):
        text = " ".join((CHECKOUT / document).read_text().split())
        assert FROM_ZERO.minutes in text
        assert ON_WARM_NODE.minutes in text
        assert "modelled" in text
    readme = " ".join((CHECKOUT / "README.md").read_text().split())
    kept = [one.minutes.removesuffix(" minutes") for one in (CACHED_FROM_ZERO, CACHED_ON_WARM_NODE)]
    assert f"{kept[0]} and {kept[1]}; modelled" in readme


def test_the_document_says_which_target_is_missed() -> None:
    text = (CHECKOUT / "docs/cold-start.md").read_text()
    assert FROM_ZERO.low > CACHED_FROM_ZERO.low > 142
    assert ON_WARM_NODE.low > 60 > CACHED_ON_WARM_NODE.low
    for best in (FROM_ZERO, ON_WARM_NODE, CACHED_FROM_ZERO):
        assert f"{best.low:g} at best" in text


def test_the_first_request_is_held_until_the_slowest_start_to_be_expected_is_over() -> None:
    assert parse(stack_values("dev")).hold_seconds >= FROM_ZERO.high
    assert parse(stack_values("dev", gatewayWaitSeconds=90)).hold_seconds == 90
    assert FROM_ZERO.high < HOLD_SECONDS < PATIENCE_SECONDS
    assert FROM_ZERO.low < Bounds().cold_start_seconds < FROM_ZERO.high


def test_the_alert_is_about_the_same_budget() -> None:
    (alert,) = (rule for group in groups({}, cost=None) for rule in group.rules if rule.name == "ColdStartOverBudget")
    assert alert.expression.endswith(f"> {FROM_ZERO.high:g}")


def test_every_row_is_part_of_a_phase_that_is_measured() -> None:
    assert {phase.seen_as for phase in BUDGET} <= set(PHASES)
    assert all(phase.low <= phase.high and phase.source for phase in BUDGET)
