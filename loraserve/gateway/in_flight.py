"""How much memory the bodies of requests may take: in all, and of one tenant; and how many one tenant may have at once."""

from collections import Counter
from types import TracebackType
from typing import Self

from loraserve.gateway.bounds import TENANT_SHARE
from loraserve.gateway.errors import Overloaded, RateLimited

_RETRY_SECONDS = 1


class InFlight:
    def __init__(self, max_bytes: int, max_requests: int) -> None:
        self._max_bytes = max_bytes
        self._max_requests = max_requests
        self.bytes = 0
        self._by_tenant: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()

    def claim(self, tenant: str) -> "Claim":
        """Used as a context: for one request, from its body's first byte to the end of its answer."""
        return Claim(self, tenant)

    def begin(self, tenant: str) -> None:
        """Raises ApiError: each takes a connection, also while it sends nothing of its body."""
        if self._requests[tenant] >= self._max_requests * TENANT_SHARE:
            raise RateLimited("Too many of your requests are being worked on at once.", retry_after=_RETRY_SECONDS)
        self._requests[tenant] += 1

    def end(self, tenant: str) -> None:
        self._requests[tenant] -= 1
        if not self._requests[tenant]:
            del self._requests[tenant]

    def take(self, tenant: str, size: int) -> None:
        """Raises ApiError."""
        if self._by_tenant[tenant] + size > self._max_bytes * TENANT_SHARE:
            raise RateLimited("The bodies of your requests are too large together.", retry_after=_RETRY_SECONDS)
        if self.bytes + size > self._max_bytes:
            raise Overloaded("Too much is being worked on; try again later.", retry_after=_RETRY_SECONDS)
        self.bytes += size
        self._by_tenant[tenant] += size

    def give_back(self, tenant: str, size: int) -> None:
        self.bytes -= size
        self._by_tenant[tenant] -= size
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]


class Claim:
    """One request's."""

    def __init__(self, in_flight: InFlight, tenant: str) -> None:
        self._in_flight = in_flight
        self._tenant = tenant
        self._size = 0

    def grow_to(self, size: int) -> None:
        """Raises ApiError."""
        if size > self._size:
            self._in_flight.take(self._tenant, size - self._size)
            self._size = size

    def __enter__(self) -> Self:
        """Raises ApiError."""
        self._in_flight.begin(self._tenant)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._in_flight.give_back(self._tenant, self._size)
        self._in_flight.end(self._tenant)
