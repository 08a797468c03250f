"""Which pod gets a request: only what its agent has ready and said lately, at home where there is room."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import pytest

from loraserve.contract.agent_state import AdapterStatus, AgentState, State
from loraserve.gateway.errors import AdapterUnavailable
from loraserve.gateway.pods import DOUBT_SECONDS, FRESH_SECONDS, SLOW_SECONDS, Pod, Pods, endpoints
from loraserve.gateway.routing import ANY_OTHER, Route
from tests.unit.gateway_world import BASE, endpoint_slice

FAQ = Route("faq", ("faq@v2", ANY_OTHER))


class Fleet:
    """Pods without a network."""

    def __init__(self, concurrency: int = 100) -> None:
        self.now = 0.0
        self.pods = Pods(cast(Any, None), 0, concurrency, clock=lambda: self.now)

    def add(self, address: str, **states: State) -> Pod:
        """`faq_v1=State.READY` and so on; an awake pod."""
        statuses = []
        for key, state in states.items():
            name, _, version = key.partition("_")
            statuses.append(AdapterStatus(name=name, version=version, state=state, reason="why"))
        pod = Pod(address)
        self.pods._pods[address] = pod
        pod.hear(AgentState(base=BASE, adapters=tuple(statuses), loaded=(), ready=True), self.now)
        return pod

    def served(self, route: Route) -> str | None:
        place = self.pods.place(route)
        return place and place.served


def test_the_wanted_version_goes_before_the_one_that_it_replaces() -> None:
    fleet = Fleet()
    fleet.add("a", faq_v1=State.READY, faq_v2=State.LOADING)
    assert fleet.served(FAQ) == "faq@v1"
    fleet.add("b", faq_v1=State.DRAINING, faq_v2=State.READY)
    assert fleet.served(FAQ) == "faq@v2"


def test_a_canary_does_not_get_everybody_while_the_stable_version_is_swapped() -> None:
    fleet = Fleet()
    stable = Route("faq", ("faq@v3", ANY_OTHER, "faq@v2"))
    fleet.add("a", faq_v1=State.READY, faq_v2=State.READY, faq_v3=State.LOADING)
    assert fleet.served(stable) == "faq@v1"
    fleet.add("b", faq_v2=State.READY, faq_v3=State.READY)
    assert fleet.served(stable) == "faq@v3"


@pytest.mark.parametrize("state", [state for state in State if state not in (State.READY, State.QUARANTINED)])
def test_only_what_is_ready_gets_requests(state: State) -> None:
    fleet = Fleet()
    fleet.add("a", faq_v2=state)
    assert fleet.served(FAQ) is None


def test_a_named_version_waits_rather_than_being_another() -> None:
    fleet = Fleet()
    fleet.add("a", faq_v1=State.READY, faq_v2=State.LOADING)
    assert fleet.served(Route("faq", ("faq@v2",))) is None


def test_kv_cache_use_is_the_mean_over_the_pods_that_tell_it() -> None:
    fleet = Fleet()
    assert fleet.pods.kv_cache_usage == 0
    for name, usage in (("a", 0.5), ("b", 0.75), ("c", None)):
        pod = fleet.add(name)
        pod.state = pod.state.model_copy(update={"kv_cache_usage": usage})
    assert fleet.pods.kv_cache_usage == 0.625


def test_another_adapters_version_is_never_taken() -> None:
    fleet = Fleet()
    fleet.add("a", **{"faq-x_v1": State.READY})
    assert fleet.served(FAQ) is None


def test_what_an_agent_said_too_long_ago_does_not_count() -> None:
    fleet = Fleet()
    pod = fleet.add("a", faq_v2=State.READY)
    fleet.now = FRESH_SECONDS + 0.1
    assert fleet.served(FAQ) is None
    pod.hear(pod.state, fleet.now)
    assert fleet.served(FAQ) == "faq@v2"


def test_an_agent_that_only_answers_slowly_is_not_asleep_for_a_while() -> None:
    fleet = Fleet()
    pod = fleet.add("a", faq_v2=State.READY)
    pod.slow = True
    fleet.now = SLOW_SECONDS
    assert fleet.served(FAQ) == "faq@v2"
    fleet.now += 0.1
    assert fleet.served(FAQ) is None


def test_a_vllm_that_has_not_answered_its_agent_for_long_gets_nothing() -> None:
    fleet = Fleet()
    pod = fleet.add("a", faq_v2=State.READY)
    pod.hear(pod.state.model_copy(update={"age": SLOW_SECONDS}), fleet.now)
    assert fleet.served(FAQ) == "faq@v2"
    pod.hear(pod.state.model_copy(update={"age": SLOW_SECONDS + 1}), fleet.now)
    assert fleet.served(FAQ) is None
    assert fleet.pods.awake, "it is no start from zero"


def test_an_agent_whose_vllm_is_silent_has_nothing_ready() -> None:
    fleet = Fleet()
    pod = fleet.add("a", faq_v2=State.READY)
    pod.hear(pod.state.model_copy(update={"loaded": None}), fleet.now)
    assert fleet.served(FAQ) is None
    assert fleet.served(Route(BASE, (BASE,))) is None


def test_waiting_is_pointless_where_every_pod_has_it_in_quarantine() -> None:
    fleet = Fleet()
    fleet.add("a", faq_v2=State.QUARANTINED)
    with pytest.raises(AdapterUnavailable, match="faq@v2 is quarantined: why"):
        fleet.served(FAQ)
    fleet.add("b", faq_v2=State.FETCHING)
    assert fleet.served(FAQ) is None


def test_a_quarantined_new_version_leaves_the_old_one_serving() -> None:
    fleet = Fleet()
    fleet.add("a", faq_v1=State.READY, faq_v2=State.QUARANTINED)
    assert fleet.served(FAQ) == "faq@v1"


def test_vllms_own_answer_counts_for_more_than_its_agents_for_a_while() -> None:
    fleet = Fleet()
    fleet.add("a", faq_v2=State.READY)
    place = fleet.pods.place(FAQ)
    assert place
    fleet.pods.refused(place)
    assert fleet.served(FAQ) is None
    fleet.now = DOUBT_SECONDS + 0.1
    assert fleet.served(FAQ) == "faq@v2"


def test_an_adapter_stays_on_its_pod_while_load_is_even() -> None:
    fleet = Fleet()
    for address in "abc":
        fleet.add(address, faq_v2=State.READY)
    used = Counter()
    for _ in range(20):
        place = fleet.pods.place(FAQ)
        assert place
        with place:
            used[place.pod.address] += 1
    assert len(used) == 1


def test_adapters_spread_over_pods_and_move_little_when_one_goes() -> None:
    fleet = Fleet()
    names = [f"n{number}" for number in range(60)]
    for address in "abc":
        fleet.add(address, **{f"{name}_v1": State.READY for name in names})

    def homes() -> dict[str, str]:
        found = {}
        for name in names:
            place = fleet.pods.place(Route(name, (f"{name}@v1",)))
            assert place
            with place:
                found[name] = place.pod.address
        return found

    before = homes()
    assert min(Counter(before.values()).values()) > 8
    del fleet.pods._pods["c"]
    after = homes()
    assert all(after[name] == home for name, home in before.items() if home != "c")


def test_a_busy_home_does_not_keep_everything() -> None:
    fleet = Fleet()
    for address in "abc":
        fleet.add(address, faq_v2=State.READY)
    places = [fleet.pods.place(FAQ) for _ in range(60)]
    busy = Counter(place.pod.address for place in places if place)
    assert sum(busy.values()) == 60
    assert max(busy.values()) <= 26


def test_a_pod_takes_no_more_than_its_share_of_this_replica() -> None:
    fleet = Fleet(concurrency=8)
    fleet.add("a", faq_v2=State.READY)
    fleet.pods.replicas = 2
    places = [fleet.pods.place(FAQ) for _ in range(6)]
    assert sum(place is not None for place in places) == 4
    assert places[0]
    with places[0]:
        pass
    assert fleet.pods.place(FAQ)


def test_one_tenant_leaves_some_places_to_others() -> None:
    fleet = Fleet(concurrency=32)
    for address in "ab":
        fleet.add(address, faq_v2=State.READY)
    fleet.pods.replicas = 2
    assert fleet.pods.has_share("greedy", 64), "one request may be as wide as it likes"
    for _ in range(26):
        assert fleet.pods.has_share("greedy", 2)
        fleet.pods.place(FAQ, "greedy")
    assert not fleet.pods.has_share("greedy", 3)
    for _ in range(2):
        assert fleet.pods.has_share("greedy", 1)
        fleet.pods.place(FAQ, "greedy")
    assert not fleet.pods.has_share("greedy", 1)
    assert fleet.pods.has_share("modest", 1)
    assert fleet.pods.place(FAQ, "modest")


def test_an_ending_pod_is_no_endpoint() -> None:
    assert list(endpoints([endpoint_slice("vllm-service", ["a", "b"], terminating=("a",))])) == [("b", True)]


def test_a_slice_without_endpoints_is_an_empty_one() -> None:
    assert list(endpoints([{"metadata": {"name": "x"}, "endpoints": None}, {"metadata": {"name": "y"}}])) == []
