"""From the name that a client calls to the versions that may answer."""

from __future__ import annotations

from collections import Counter

import pytest

from loraserve.contract.base_model import Base
from loraserve.contract.desired_state import Adapter, DesiredState
from loraserve.gateway.errors import NoSuchModel
from loraserve.gateway.routing import ANY_OTHER, Routes
from tests.unit.gateway_world import BASE, adapter

CALLERS = [f"tenant user-{number}" for number in range(1000)]


def routes(*adapters: Adapter) -> Routes:
    return Routes(DesiredState(base=Base(name=BASE), bucket="adapters", adapters=adapters))


def test_a_public_name_is_the_declared_version() -> None:
    assert routes(adapter("faq", "v7")).resolve("faq", "a").served == ("faq@v7", ANY_OTHER)


def test_the_base_model_answers_to_its_own_name() -> None:
    assert routes(adapter()).resolve(BASE, "a").served == (BASE,)


def test_a_version_can_be_named_and_is_then_never_another_one() -> None:
    route = routes(adapter("faq", "v1"), adapter("faq", "v2", canary_percent=10)).resolve("faq@v2", "a")
    assert (route.model, route.served) == ("faq", ("faq@v2",))


@pytest.mark.parametrize("name", ["nope", "faq@v2", "faq@", "@v1", "", "FAQ", "faq@v1@v1"])
def test_what_is_not_declared_does_not_exist(name: str) -> None:
    with pytest.raises(NoSuchModel):
        routes(adapter("faq", "v1")).resolve(name, "a")


def test_a_canary_gets_its_share_of_the_callers_and_each_stays_on_its_side() -> None:
    both = routes(adapter("faq", "v2", canary_percent=10), adapter("faq", "v1"))
    first = [both.resolve("faq", caller).served[0] for caller in CALLERS]

    assert first == [both.resolve("faq", caller).served[0] for caller in CALLERS]
    assert 60 < Counter(first)["faq@v2"] < 140


def test_a_caller_may_be_named_anything_that_json_can_say() -> None:
    both = routes(adapter("faq", "v2", canary_percent=10), adapter("faq", "v1"))
    assert both.resolve("faq", "team-a \ud800").model == "faq"


def test_a_larger_share_moves_nobody_back() -> None:
    small = routes(adapter("faq", "v1"), adapter("faq", "v2", canary_percent=10))
    large = routes(adapter("faq", "v1"), adapter("faq", "v2", canary_percent=50))
    moved = [caller for caller in CALLERS if small.resolve("faq", caller).served[0] == "faq@v2"]
    assert moved
    assert all(large.resolve("faq", caller).served[0] == "faq@v2" for caller in moved)


def test_a_canary_that_is_not_ready_leaves_its_callers_to_the_stable_version_and_gets_no_others() -> None:
    both = routes(adapter("faq", "v1"), adapter("faq", "v2", canary_percent=50))
    served = {both.resolve("faq", caller).served for caller in CALLERS}
    assert served == {("faq@v2", "faq@v1", ANY_OTHER), ("faq@v1", ANY_OTHER, "faq@v2")}


def test_two_adapters_do_not_put_the_same_callers_into_their_canaries() -> None:
    both = routes(
        adapter("faq", "v1"),
        adapter("faq", "v2", canary_percent=10),
        adapter("legal", "v1"),
        adapter("legal", "v2", canary_percent=10),
    )
    in_both = [
        caller
        for caller in CALLERS
        if both.resolve("faq", caller).served[0] == "faq@v2" and both.resolve("legal", caller).served[0] == "legal@v2"
    ]
    assert len(in_both) < 40


def test_an_adapter_that_falls_back_keeps_its_name_in_metrics() -> None:
    declared = routes(adapter("faq", fallback="base"))
    route = declared.resolve("faq", "a")
    assert route.falls_back
    fallback = declared.fallback(route)
    assert (fallback.model, fallback.served, fallback.falls_back) == ("faq", (BASE,), False)
