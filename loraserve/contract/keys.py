"""API keys, of which only a digest is kept, and what each of them allows: the entries of the stack's config, and the
document that the gateway reads.

A key is `lsk-ID-SECRET`. The id is public and finds the entry; the secret is 256 random bits, so that one SHA-256 is as
good as a slow hash. Two entries with one tenant are a rotation: both keys are valid until the old entry is removed. Limits are the
tenant's, so that its entries have the same ones.
"""

import hashlib
import secrets
from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, ValidationError, field_validator

from loraserve.contract.document import Document, PathSegment, Sha256Hex, explain
from loraserve.errors import LoraserveError

EVERY_MODEL = "*"
_PREFIX = "lsk"
_ID_BYTES = 4
_SECRET_BYTES = 32


Limit = Annotated[int, Field(strict=True, gt=0)] | None


class InvalidKeys(LoraserveError):
    """The key document breaks the schema; the message names each field."""


class Key(Document):
    """One API key: an entry of the stack config, and of the Secret that the gateway mounts."""

    id: Annotated[PathSegment, Field(pattern=r"^[^-]+$")]
    """Without a hyphen, which ends it in the key."""
    tenant: PathSegment
    sha256: Sha256Hex
    """Of the whole key."""
    models: Annotated[tuple[str, ...], Field(min_length=1)] = (EVERY_MODEL,)
    """Public names; `*` stands for all."""
    requests_per_minute: Limit = None
    """Of the tenant, over all its keys and all replicas; None: unlimited. Sequences count: `n` for every prompt."""
    tokens_per_minute: Limit = None
    """Likewise; read and written ones."""
    tokens_per_month: Limit = None
    """Likewise, of a calendar month (UTC)."""
    sample_percent: Annotated[float, Field(gt=0, le=100)] | None = None
    """Of the tenant's questions to a model with a canary, with their answers, that are kept for a week to judge it; None: nothing."""
    expires_at: AwareDatetime | None = None
    """From then on the key is refused; None: never."""

    def allows(self, model: str) -> bool:
        return EVERY_MODEL in self.models or model in self.models


def create_key(
    tenant: str,
    models: tuple[str, ...],
    requests_per_minute: int | None,
    tokens_per_minute: int | None = None,
    expires_at: str | None = None,
    tokens_per_month: int | None = None,
    sample_percent: float | None = None,
) -> tuple[str, Key]:
    """A new key, to be shown once, and its entry. Raises InvalidKeys."""
    identifier = "k" + secrets.token_hex(_ID_BYTES)  # some YAML readers take 03427940 and 12e45678 for numbers
    key = key_of(identifier, secrets.token_urlsafe(_SECRET_BYTES))
    try:
        entry = Key.model_validate(
            {
                "id": identifier,
                "tenant": tenant,
                "sha256": digest_of_key(key),
                "models": models,
                "requests_per_minute": requests_per_minute,
                "tokens_per_minute": tokens_per_minute,
                "tokens_per_month": tokens_per_month,
                "sample_percent": sample_percent,
                "expires_at": expires_at,
            }
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

    def summary(self) -> dict[str, object]:
        """For the log."""
        return {"keys": len(self.keys)}

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Raises InvalidKeys."""
        return cls._parsed(text, InvalidKeys)


def key_of(identifier: str, secret: str) -> str:
    """The key itself. Raises ValueError where `identifier` has a hyphen: nobody could tell where it ends."""
    if "-" in identifier:
        raise ValueError(f"the id {identifier!r} of a key has a hyphen")
    return f"{_PREFIX}-{identifier}-{secret}"


def id_of(presented: str) -> str:
    """The public part of a key; empty where it is none."""
    parts = presented.strip().split("-", 2)
    return parts[1] if len(parts) == 3 and parts[0] == _PREFIX else ""


def digest_of_key(presented: str) -> str:
    """What an entry keeps of a key."""
    return hashlib.sha256(presented.strip().encode("utf-8", "surrogateescape")).hexdigest()
