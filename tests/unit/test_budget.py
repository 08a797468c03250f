"""The AWS budget: whom it tells of what, and that there is none unasked."""

from __future__ import annotations

import pytest

from loraserve.planning.settings_parser import InvalidSettings, parse
from tests.stack_values import stack_values
from tests.unit.declared import declare

BUDGET = {"dollarsPerMonth": 300, "emails": ["ops@example.com", "boss@example.com"]}


def test_a_budget_writes_to_everybody_before_and_when_it_is_spent() -> None:
    inputs = declare("dev", budget=BUDGET).one("budgets/budget:Budget").inputs
    assert (inputs["limitAmount"], inputs["limitUnit"], inputs["timeUnit"]) == ("300.00", "USD", "MONTHLY")
    told = {(each["threshold"], each["notificationType"]) for each in inputs["notifications"]}
    assert told == {(80, "ACTUAL"), (100, "FORECASTED"), (100, "ACTUAL")}
    assert all(each["subscriberEmailAddresses"] == BUDGET["emails"] for each in inputs["notifications"])


def test_without_the_setting_there_is_none() -> None:
    assert not declare("dev").of_type("budgets/budget:Budget")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"emails": []}, "budget.emails"),
        ({"emails": ["ops"]}, r"budget.emails\[0\]"),
        ({"dollarsPerMonth": 0}, "budget.dollarsPerMonth"),
        ({"euros": 1}, "budget.euros"),
    ],
    ids=["nobody to write to", "no address", "nothing", "unknown"],
)
def test_a_budget_that_tells_nobody_is_refused(change: dict[str, object], problem: str) -> None:
    with pytest.raises(InvalidSettings, match=problem):
        parse(stack_values("dev", budget=BUDGET | change))
