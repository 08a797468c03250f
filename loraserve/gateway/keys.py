"""Who may call: API keys, of which only a digest is kept, and what each of them allows.

A key is `lsk-ID-SECRET`. The id is public and finds the entry; the secret is 256 random bits, so that one SHA-256 is as
good as a slow hash. Two entries with one tenant are a rotation: both keys are valid until the old entry is removed.
"""

import hashlib
import hmac
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator

from loraserve.desired import Document, PathSegment, Sha256Hex, explain
from loraserve.errors import LoraserveError
from loraserve.gateway.errors import RateLimited, Unauthorized
from loraserve.log import event

log = logging.getLogger(__name__)

EVERY_MODEL = "*"
_PREFIX = "lsk"
_ID_BYTES = 4
_SECRET_BYTES = 32
_NO_KEY = "0" * 64


class InvalidKeys(LoraserveError):
    """The key document breaks the schema; the message names each field."""


class Key(Document):
    """One API key: an entry of the stack config, and of the Secret that the gateway mounts."""

    id: PathSegment
    tenant: PathSegment
    sha256: Sha256Hex
    """Of the whole key."""
    models: Annotated[tuple[str, ...], Field(min_length=1)] = (EVERY_MODEL,)
    """Public names; `*` stands for all."""
    requests_per_minute: Annotated[int, Field(strict=True, gt=0)] | None = None
    """Over all replicas; None: unlimited."""

    def allows(self, model: str) -> bool:
        return EVERY_MODEL in self.models or model in self.models


def create_key(tenant: str, models: tuple[str, ...], requests_per_minute: int | None) -> tuple[str, Key]:
    """A new key, to be shown once, and its entry. Raises InvalidKeys."""
    identifier = secrets.token_hex(_ID_BYTES)
    key = f"{_PREFIX}-{identifier}-{secrets.token_urlsafe(_SECRET_BYTES)}"
    try:
        entry = Key(
            id=identifier,
            tenant=tenant,
            sha256=hashlib.sha256(key.encode()).hexdigest(),
            models=models,
            requests_per_minute=requests_per_minute,
        )
    except ValidationError as error:
        raise InvalidKeys(explain(error)) from None
    return key, entry


class KeyRing(Document):
    """Every valid key."""

    schema_version: Literal[1] = 1
    keys: tuple[Key, ...] = ()

    @field_validator("keys")
    @classmethod
    def _unique_ids(cls, keys: tuple[Key, ...]) -> tuple[Key, ...]:
        for identifier, count in Counter(key.id for key in keys).items():
            if count > 1:
                raise ValueError(f"{count} keys have the id {identifier!r}; remove all but one")
        return keys

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, exclude_none=True)

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Raises InvalidKeys."""
        return cls._parsed(text, InvalidKeys)


class Keys:
    """Follows the mounted key document; a bad one never replaces a good one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: bytes | None = None
        self._problem: str | None = None
        self._by_id: dict[str, Key] = {}

    def refresh(self) -> None:
        """Reads the file; small enough to compare whole, so no swap of the mount can be missed."""
        try:
            content = self._path.read_bytes()
            if content == self._content:
                return
            ring = KeyRing.parse(content)
        except (OSError, InvalidKeys) as error:
            if str(error) != self._problem:
                log.error(event("keys refused", file=self._path, problem=error, kept=len(self._by_id)))
            self._content, self._problem = None, str(error)
        else:
            self._content, self._problem, self._by_id = content, None, {key.id: key for key in ring.keys}
            log.info(event("keys read", keys=len(self._by_id)))

    def authenticate(self, authorization: str | None) -> Key:
        """The entry of a request's key. Raises Unauthorized."""
        scheme, _, presented = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not presented:
            raise Unauthorized("No API key was given: send `Authorization: Bearer <key>`.")
        digest = hashlib.sha256(presented.strip().encode("utf-8", "surrogateescape")).hexdigest()
        key = self._by_id.get(_id_of(presented))
        # An unknown id costs the same comparison as a wrong secret.
        if hmac.compare_digest(digest, key.sha256 if key else _NO_KEY) and key:
            return key
        raise Unauthorized("This API key is not valid: check it, or ask the stack's operator for a new one.")


def _id_of(presented: str) -> str:
    parts = presented.strip().split("-", 2)
    return parts[1] if len(parts) == 3 and parts[0] == _PREFIX else ""


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
        if bucket.tokens < 1:
            raise RateLimited(
                f"This key may make {key.requests_per_minute} requests a minute.",
                retry_after=math.ceil((1 - bucket.tokens) / rate),
            )
        bucket.tokens -= 1
