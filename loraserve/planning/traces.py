"""Where spans are sent, as a setting of the stack."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_IN_CLUSTER = re.compile(r"[a-z0-9-]+\.(?P<namespace>[a-z0-9-]+)\.svc(\.cluster\.local)?")


def endpoint(address: str | None) -> str | None:
    """The base address of a collector's OTLP over HTTP. Raises ValueError."""
    if address is None:
        return None
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError(
            "must be the address of a collector that takes OTLP over HTTP, such as http://collector.observability.svc:4318"
        )
    return address.rstrip("/")


def port(address: str) -> int:
    parts = urlsplit(address)
    return parts.port or (443 if parts.scheme == "https" else 80)


def namespace(address: str) -> str | None:
    """Of a collector in the cluster, which is called `service.namespace.svc`; None: it is outside."""
    found = _IN_CLUSTER.fullmatch(urlsplit(address).hostname or "")
    return found["namespace"] if found else None


def traces_url(address: str) -> str:
    return f"{address}/v1/traces"
