"""The account that a provider is configured for: its region, its clients, its default tags."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

from local.stand_ins.provider import InvalidInput, Properties, contains_unknown

_STRUCTURED = frozenset({"allowedAccountIds", "defaultTags"})
_SETTINGS = _STRUCTURED | {"region", "version"}


class Account:
    """Clients for the emulated AWS, made on first use. Unset until `configure` has run."""

    id = ""
    region = ""
    partition = "aws"
    default_tags: dict[str, str]

    def __init__(self) -> None:
        self.default_tags = {}
        self._session: Any = None
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()

    def configure(self, config: Properties) -> None:
        """Takes the provider's configuration. Raises InvalidInput for an unknown key or another account's credentials."""
        settings = _parse(config)
        self.region = settings.get("region") or os.environ.get("AWS_REGION") or _no_region()
        self.default_tags = (settings.get("defaultTags") or {}).get("tags") or {}
        self.id = self.client("sts").get_caller_identity()["Account"]
        allowed = [str(account) for account in settings.get("allowedAccountIds") or []]
        if allowed and self.id not in allowed:
            raise InvalidInput(
                "aws:allowedAccountIds",
                f"this stack is for account {', '.join(allowed)}, but the credentials belong to {self.id}; "
                "use the right credentials (AWS_PROFILE) or the right stack",
            )

    def client(self, service: str) -> Any:
        """The boto3 client of a service; one per service."""
        with self._lock:
            if service not in self._clients:
                self._clients[service] = self._connect(service)
            return self._clients[service]

    def arn(self, service: str, resource: str) -> str:
        """The ARN of one of this account's regional objects."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.id}:{resource}"

    def _connect(self, service: str) -> Any:
        import boto3  # importing it takes longer than everything else a no-op `up` does here

        if self._session is None:
            self._session = boto3.Session(region_name=self.region)
        return self._session.client(service, endpoint_url=_endpoint())


def _endpoint() -> str:
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        return endpoint
    raise InvalidInput(
        "AWS_ENDPOINT_URL",
        "this stand-in for the aws plugin talks to the emulated AWS only, and that is not named; start it with "
        "`make up`, or install the real plugin (`pulumi plugin install resource aws`) to reach AWS",
    )


def _parse(config: Properties) -> Properties:
    for key in config:
        if key not in _SETTINGS:
            raise InvalidInput(f"aws:{key}", f"no such setting here; known: {', '.join(sorted(_SETTINGS))}")
    return {
        key: json.loads(value) if key in _STRUCTURED and isinstance(value, str) else value
        for key, value in config.items()
        if not contains_unknown(value)
    }


def _no_region() -> str:
    raise InvalidInput("aws:region", "no region is set; add `aws:region` to the stack file, for example us-east-1")
