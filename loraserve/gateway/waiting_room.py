"""Holds requests that no pod can take now: bounded, and fair between tenants."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from loraserve.gateway.bounds import TENANT_SHARE
from loraserve.gateway.errors import ApiError, Overloaded
from loraserve.gateway.pods import Place
from loraserve.gateway.routing import Route


@dataclass(eq=False)
class Ticket:
    """One held request."""

    tenant: str
    route: Route
    size: int
    sequences: int
    place: asyncio.Future[Place] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(eq=False)
class _Queue:
    """What one tenant waits for: a line per route, as one adapter must not hold up another."""

    lines: dict[Route, deque[Ticket]] = field(default_factory=dict)
    count: int = 0
    bytes: int = 0


class WaitingRoom:
    """`find_place` gives a request its place, None where it has to wait, or raises ApiError.

    `running` is what a tenant has running: who has least is next; `has_share` is whether it may have so much more.
    """

    def __init__(
        self,
        find_place: Callable[[Route, str, int], Place | None],
        *,
        running: Callable[[str], int],
        max_count: int,
        max_bytes: int,
        retry_after: Callable[[], float],
        has_share: Callable[[str, int], bool] = lambda *_: True,
    ) -> None:
        self._find_place = find_place
        self._running = running
        self._has_share = has_share
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._retry_after = retry_after
        self._queues: OrderedDict[str, _Queue] = OrderedDict()
        """The tenant that was served longest ago comes first."""
        self._closed: ApiError | None = None
        self.count = 0
        self.bytes = 0

    def enter(self, tenant: str, route: Route, size: int, sequences: int = 1) -> Ticket:
        """A ticket, whose place may be there at once. Raises ApiError. Who does not take the place must leave."""
        ticket = Ticket(tenant, route, size, sequences)
        queue = self._queues.get(tenant)
        if (queue is None or route not in queue.lines) and self._has_share(tenant, sequences):  # nobody is before it
            self._serve(ticket)
            if ticket.place.done():
                return ticket
        self._refuse_overflow(queue, size)
        queue = self._queues.setdefault(tenant, _Queue())
        queue.lines.setdefault(route, deque()).append(ticket)
        self._count(queue, ticket, 1)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Drops a ticket that nobody waits for any more; a place that it got in the same moment is given back."""
        queue = self._queues.get(ticket.tenant)
        if queue and ticket in queue.lines.get(ticket.route, ()):
            queue.lines[ticket.route].remove(ticket)
            self._tidy(ticket.tenant, queue, ticket.route)
            self._count(queue, ticket, -1)
        if not ticket.place.cancel() and not ticket.place.cancelled() and not ticket.place.exception():
            ticket.place.result().__exit__()

    def wake(self) -> None:
        """Hands out what places there are, each to the tenant that has least running, among equals in turn."""
        full: set[Route] = set()
        while any(self._serve_one(tenant, full) for tenant in sorted(self._queues, key=self._running)):
            pass

    def close(self, error: ApiError) -> None:
        """Sends everybody away, and who would have to wait from now on."""
        self._closed = error
        for queue in self._queues.values():
            for line in queue.lines.values():
                for ticket in line:
                    ticket.place.set_exception(error)
        self._queues.clear()
        self.count = self.bytes = 0

    def waiting(self) -> Counter[str]:
        """Held requests by model."""
        held: Counter[str] = Counter()
        for queue in self._queues.values():
            for route, line in queue.lines.items():
                held[route.model] += len(line)
        return held

    def waiting_by_tenant(self) -> dict[str, int]:
        """The same by tenant."""
        return {tenant: queue.count for tenant, queue in self._queues.items()}

    def _serve_one(self, tenant: str, full: set[Route]) -> bool:
        """Whether a request of this tenant got its place; learns where there are none."""
        queue = self._queues[tenant]
        for route, line in list(queue.lines.items()):
            ticket = line[0]
            if route in full or not self._has_share(tenant, ticket.sequences):
                continue
            self._serve(ticket)
            if not ticket.place.done():
                full.add(route)
            else:
                line.popleft()
                self._queues.move_to_end(tenant)
                queue.lines[route] = queue.lines.pop(route)  # the other lines are next
                self._tidy(tenant, queue, route)
                self._count(queue, ticket, -1)
                return True
        return False

    def _serve(self, ticket: Ticket) -> None:
        try:
            place = self._find_place(ticket.route, ticket.tenant, ticket.sequences)
        except ApiError as error:
            ticket.place.set_exception(error)
        else:
            if place:
                ticket.place.set_result(place)

    def _tidy(self, tenant: str, queue: _Queue, route: Route) -> None:
        if not queue.lines[route]:
            del queue.lines[route]
        if not queue.lines:
            del self._queues[tenant]

    def _count(self, queue: _Queue, ticket: Ticket, sign: int) -> None:
        queue.count += sign
        queue.bytes += sign * ticket.size
        self.count += sign
        self.bytes += sign * ticket.size

    def _refuse_overflow(self, queue: _Queue | None, size: int) -> None:
        if self._closed:
            raise self._closed
        if self.count >= self._max_count or self.bytes + size > self._max_bytes:
            raise Overloaded("Too many requests are waiting; try again later.", retry_after=self._retry_after())
        own_count, own_bytes = (queue.count, queue.bytes) if queue else (0, 0)
        if own_count >= self._max_count * TENANT_SHARE or own_bytes + size > self._max_bytes * TENANT_SHARE:
            raise Overloaded("Too many of your requests are waiting.", retry_after=self._retry_after())
