"""Who may call, and how much: the mounted key document, and what each tenant may use in a minute."""

import hmac
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from loraserve.contract.keys import Key, KeyRing, digest_of_key, id_of
from loraserve.contract.last_good import LastGood
from loraserve.gateway.completion import Cost
from loraserve.gateway.errors import RateLimited, Unauthorized

_NO_KEY = "0" * 64
_ROUNDING = 1e-9
"""Who comes back exactly when told must not be refused for a rounding error."""


class Keys:
    """Follows the mounted key document."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ring = LastGood("keys", KeyRing.parse)
        self._by_id: dict[str, Key] = {}

    def refresh(self) -> bool:
        """Whether there was a change."""
        if not self._ring.refresh(self._path.read_bytes) or not self._ring.value:
            return False
        self._by_id = {key.id: key for key in self._ring.value.keys}
        return True

    @property
    def problem(self) -> str | None:
        """Why the newest document is not followed."""
        return self._ring.problem

    @property
    def tenants(self) -> frozenset[str]:
        return frozenset(key.tenant for key in self._by_id.values())

    @property
    def ends(self) -> dict[tuple[str, str], datetime]:
        """When the keys end that do, by tenant and id."""
        return {(key.tenant, key.id): key.expires_at for key in self._by_id.values() if key.expires_at}

    @property
    def has_budgets(self) -> bool:
        return any(key.tokens_per_month is not None for key in self._by_id.values())

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
        if not hmac.compare_digest(digest, key.sha256 if key else _NO_KEY) or not key:
            raise Unauthorized("This API key is not valid: check it, or ask the stack's operator for a new one.")
        if key.expires_at and key.expires_at <= datetime.now(UTC):
            raise Unauthorized(f"This API key expired at {key.expires_at}: ask the stack's operator for a new one.")
        return key


@dataclass
class _Bucket:
    """A limit per minute, one minute deep: what may be spent now, and when that was counted."""

    left: float
    at: float
    depth: float = 0
    rate: float = 0
    """A second."""

    def refill(self, per_minute: float, now: float) -> None:
        self.depth, self.rate = max(1.0, per_minute), per_minute / 60
        self.left = min(self.depth, self.left + (now - self.at) * self.rate)
        self.at = now

    def lacks(self, amount: float) -> float:
        """Seconds until so much may be spent."""
        return max(0.0, (amount - _ROUNDING - self.left) / self.rate)


REQUESTS, TOKENS = "requests", "tokens"


class RateLimits:
    """Token buckets per tenant. Every replica grants an equal share of the limit."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def admit(self, key: Key, replicas: int) -> None:
        """Takes one request and one token, before anything is known of it. Raises RateLimited, with the time to wait."""
        self._take(key, replicas, {REQUESTS: 1, TOKENS: 1})

    def charge(self, key: Key, cost: Cost, replicas: int) -> None:
        """Takes the rest of what it costs. Raises RateLimited."""
        self._take(key, replicas, {REQUESTS: cost.sequences, TOKENS: max(1, cost.tokens)}, taken=1)

    def settle(self, key: Key, estimated: int, used: int) -> None:
        """Sets right what was charged, once vLLM has counted."""
        if bucket := self._buckets.get((key.tenant, TOKENS)):
            bucket.left += min(max(1, estimated), bucket.depth) - used

    def headers(self, key: Key, replicas: int) -> dict[str, str]:
        """What this replica still grants, in OpenAI's headers."""
        told: dict[str, str] = {}
        for what, bucket in self._of(key, replicas).items():
            told[f"x-ratelimit-limit-{what}"] = f"{bucket.depth:.0f}"
            told[f"x-ratelimit-remaining-{what}"] = str(max(0, int(bucket.left)))
            told[f"x-ratelimit-reset-{what}"] = f"{math.ceil((bucket.depth - bucket.left) / bucket.rate)}s"
        return told

    def _take(self, key: Key, replicas: int, cost: dict[str, int], taken: int = 0) -> None:
        """What costs more than a bucket holds takes a full one."""
        buckets = self._of(key, replicas)
        amounts = {what: min(cost[what], bucket.depth) - taken for what, bucket in buckets.items()}
        for what, bucket in buckets.items():
            if wait := bucket.lacks(amounts[what]):
                limit = key.requests_per_minute if what == REQUESTS else key.tokens_per_minute
                raise RateLimited(f"You may use {limit} {what} a minute.", retry_after=math.ceil(wait))
        for what, bucket in buckets.items():
            bucket.left -= amounts[what]

    def _of(self, key: Key, replicas: int) -> dict[str, _Bucket]:
        """The tenant's buckets, as they are now."""
        now, found = self._clock(), {}
        for what, limit in ((REQUESTS, key.requests_per_minute), (TOKENS, key.tokens_per_minute)):
            if limit is not None:
                share = limit / replicas
                bucket = found[what] = self._buckets.setdefault((key.tenant, what), _Bucket(max(1.0, share), now))
                bucket.refill(share, now)
        return found
