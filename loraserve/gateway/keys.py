"""Who may call, and how often: the mounted key document, and each key's share of requests."""

import hmac
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loraserve.contract.keys import Key, KeyRing, digest_of_key, id_of
from loraserve.contract.last_good import LastGood
from loraserve.gateway.errors import RateLimited, Unauthorized

_NO_KEY = "0" * 64
_ONE = 1 - 1e-9
"""Who comes back exactly when told must not be refused for a rounding error."""


class Keys:
    """Follows the mounted key document."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ring = LastGood("keys", KeyRing.parse)
        self._by_id: dict[str, Key] = {}

    def refresh(self) -> None:
        if self._ring.refresh(self._path.read_bytes) and self._ring.value:
            self._by_id = {key.id: key for key in self._ring.value.keys}

    @property
    def problem(self) -> str | None:
        """Why the newest document is not followed."""
        return self._ring.problem

    @property
    def tenants(self) -> frozenset[str]:
        return frozenset(key.tenant for key in self._by_id.values())

    @property
    def known(self) -> bool:
        """Whether a readable document was there."""
        return self._ring.value is not None

    def authenticate(self, authorization: str | None) -> Key:
        """The entry of a request's key. Raises Unauthorized."""
        scheme, _, presented = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not presented:
            raise Unauthorized("No API key was given: send `Authorization: Bearer <key>`.")
        digest = digest_of_key(presented)
        key = self._by_id.get(id_of(presented))
        # An unknown id costs the same comparison as a wrong secret.
        if hmac.compare_digest(digest, key.sha256 if key else _NO_KEY) and key:
            return key
        raise Unauthorized("This API key is not valid: check it, or ask the stack's operator for a new one.")


@dataclass
class _Bucket:
    """Requests that may be made now, and when that was counted."""

    tokens: float
    at: float


class RateLimits:
    """A token bucket per key, one minute's worth deep. Every replica grants an equal share of the limit."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key: Key, replicas: int) -> None:
        """Raises RateLimited, with the time until the next request is allowed."""
        if key.requests_per_minute is None:
            return
        depth = max(1.0, key.requests_per_minute / replicas)
        rate = key.requests_per_minute / replicas / 60
        now = self._clock()
        bucket = self._buckets.setdefault(key.id, _Bucket(depth, now))
        bucket.tokens = min(depth, bucket.tokens + (now - bucket.at) * rate)
        bucket.at = now
        if bucket.tokens < _ONE:
            raise RateLimited(
                f"This key may make {key.requests_per_minute} requests a minute.",
                retry_after=math.ceil((1 - bucket.tokens) / rate),
            )
        bucket.tokens -= 1
