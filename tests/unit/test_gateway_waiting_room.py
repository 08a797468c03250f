"""Held requests: bounded, fair between tenants, dropped when nobody waits for them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from loraserve.gateway.errors import AdapterUnavailable, Overloaded, Stopping
from loraserve.gateway.pods import Place, Pod
from loraserve.gateway.routing import Route
from loraserve.gateway.waiting_room import Ticket, WaitingRoom

FAQ, LEGAL = Route("faq", ("faq@v1",)), Route("legal", ("legal@v1",))


class Server:
    """A room in front of as many places as a test opens."""

    def __init__(self, max_count: int = 100, max_bytes: int = 1000) -> None:
        self.free = 0
        self.ready = {FAQ, LEGAL}
        self.broken: set[Route] = set()
        self.running: Counter[str] = Counter()
        self.has_share: Callable[[str, int], bool] = lambda *_: True
        self.room = WaitingRoom(
            self._place,
            running=lambda tenant: self.running[tenant],
            has_share=lambda tenant, sequences: self.has_share(tenant, sequences),
            max_count=max_count,
            max_bytes=max_bytes,
            retry_after=lambda: 42,
        )
        self.order: list[str] = []

    def _place(self, route: Route, tenant: str, sequences: int) -> Place | None:
        if route in self.broken:
            raise AdapterUnavailable("broken")
        if route not in self.ready or not self.free:
            return None
        self.free -= 1
        self.running[tenant] += sequences
        return Place(Pod("a"), route.served[0], tenant, sequences, self._release)

    def _release(self, place: Place) -> None:
        self.free += 1
        self.running[place.tenant] -= place.sequences

    def hold(self, tenant: str, count: int = 1, route: Route = FAQ, size: int = 1, sequences: int = 1) -> list[Ticket]:
        tickets = [self.room.enter(tenant, route, size, sequences) for _ in range(count)]
        for ticket in tickets:
            ticket.place.add_done_callback(lambda _: self.order.append(tenant))
        return tickets

    async def open(self, count: int) -> None:
        self.free += count
        self.room.wake()
        await asyncio.sleep(0)


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Runs a test in an event loop of its own."""

    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


@in_loop
async def test_who_finds_room_does_not_wait() -> None:
    server = Server()
    server.free = 1
    (ticket,) = server.hold("a")
    assert ticket.place.result().served == "faq@v1"
    assert server.room.count == 0


@in_loop
async def test_places_go_to_tenants_in_turn_whoever_has_more_waiting() -> None:
    server = Server()
    server.hold("greedy", 20)
    server.hold("modest", 2)
    server.hold("small", 1)
    await server.open(6)
    assert server.order.count("modest") == 2
    assert server.order.count("small") == 1
    assert server.order.count("greedy") == 3


@in_loop
async def test_one_tenants_requests_are_served_in_the_order_they_came() -> None:
    server = Server()
    first, second = server.hold("a", 2)
    await server.open(1)
    assert first.place.done()
    assert not second.place.done()


@in_loop
async def test_an_adapter_that_is_not_ready_holds_up_no_other() -> None:
    server = Server()
    server.ready = {LEGAL}
    (faq,) = server.hold("a", route=FAQ)
    (legal,) = server.hold("a", route=LEGAL)
    await server.open(2)
    assert legal.place.done()
    assert not faq.place.done()
    server.ready.add(FAQ)
    await server.open(0)
    assert faq.place.done()


@in_loop
async def test_one_tenants_adapters_are_served_in_turn() -> None:
    server = Server()
    server.hold("a", 5, route=FAQ)
    (legal,) = server.hold("a", route=LEGAL)
    await server.open(2)
    assert legal.place.done()


@in_loop
async def test_a_newcomer_does_not_overtake_its_own_tenants_line() -> None:
    server = Server()
    (first,) = server.hold("a")
    server.free = 1
    (second,) = server.hold("a")
    assert not second.place.done()
    await server.open(0)
    assert first.place.done()
    assert not second.place.done()


@in_loop
async def test_who_leaves_is_forgotten() -> None:
    server = Server()
    first, second = server.hold("a", 2)
    server.room.leave(first)
    await server.open(1)
    assert second.place.done()
    assert (server.room.count, server.room.bytes, server.free) == (0, 0, 0)


@in_loop
async def test_a_place_that_comes_too_late_is_given_back() -> None:
    server = Server()
    (ticket,) = server.hold("a")
    await server.open(1)
    assert server.free == 0
    server.room.leave(ticket)
    assert server.free == 1


@in_loop
async def test_the_room_is_bounded_by_number() -> None:
    server = Server(max_count=4)
    server.hold("a", 2)
    server.hold("b", 2)
    with pytest.raises(Overloaded) as refused:
        server.hold("c")
    assert refused.value.headers()["Retry-After"] == "42"


@in_loop
async def test_the_room_is_bounded_by_bytes() -> None:
    server = Server(max_bytes=10)
    server.hold("a", size=5)
    server.hold("b", size=3)
    with pytest.raises(Overloaded, match="Too many requests"):
        server.hold("c", size=3)
    server.hold("c", size=2)


@in_loop
async def test_one_tenant_cannot_fill_the_room_with_few_large_requests() -> None:
    server = Server(max_bytes=10)
    server.hold("greedy", 2, size=2)
    with pytest.raises(Overloaded, match="your requests"):
        server.hold("greedy", size=2)
    server.hold("modest", size=5)


@in_loop
async def test_who_has_least_running_is_next_whatever_a_request_costs() -> None:
    server = Server()
    server.hold("heavy", 5, sequences=8)
    server.hold("light", 20)
    await server.open(10)
    assert server.order.count("heavy") == 2
    assert server.order[:2] == ["heavy", "light"], "both had nothing: in turn"


@in_loop
async def test_who_has_its_share_waits_and_lets_others_by() -> None:
    server = Server()
    server.has_share = lambda tenant, sequences: tenant != "greedy" or server.running[tenant] + sequences <= 4
    await server.open(8)
    assert [ticket.place.done() for ticket in server.hold("greedy", 3, sequences=2)] == [True, True, False]
    assert [ticket.place.done() for ticket in server.hold("modest", 6)] == [True] * 6
    server.hold("modest")
    await server.open(1)
    assert server.order[-1] == "modest", "although greedy came first, and has less running"


@in_loop
async def test_one_tenant_cannot_fill_the_room() -> None:
    server = Server(max_count=10)
    server.hold("greedy", 5)
    with pytest.raises(Overloaded, match="your requests"):
        server.hold("greedy")
    server.hold("modest")


@in_loop
async def test_who_waits_for_what_turns_out_hopeless_is_told() -> None:
    server = Server()
    (ticket,) = server.hold("a")
    server.broken = {FAQ}
    server.room.wake()
    with pytest.raises(AdapterUnavailable):
        ticket.place.result()
    assert server.room.count == 0


@in_loop
async def test_a_closing_room_sends_everybody_away_and_still_serves_who_need_not_wait() -> None:
    server = Server()
    (ticket,) = server.hold("a")
    server.room.close(Stopping("bye", retry_after=1))
    with pytest.raises(Stopping):
        ticket.place.result()
    with pytest.raises(Stopping):
        server.hold("b")
    server.free = 1
    assert server.hold("b")[0].place.done()


@in_loop
async def test_what_waits_is_counted_by_model_and_by_tenant() -> None:
    server = Server()
    server.hold("a", 2)
    server.hold("b", 1)
    server.hold("b", 4, route=LEGAL)
    assert server.room.waiting() == {"faq": 3, "legal": 4}
    assert server.room.waiting_by_tenant() == {"a": 2, "b": 5}


def test_a_retry_after_is_within_what_clients_obey() -> None:
    asked = [cast(str, Overloaded("x", retry_after=seconds).headers()["Retry-After"]) for seconds in (0.1, 30, 400)]
    assert asked == ["1", "30", "60"]
