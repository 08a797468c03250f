"""Whom alerts reach, as the stack's settings."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, StringConstraints

from loraserve.contract.document import Document

ENCRYPTED = "https://encrypted.invalid"
"""Stands for what only Pulumi can decrypt."""


def _address(secret: SecretStr) -> SecretStr:
    parts = urlsplit(secret.get_secret_value())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an address, https://…")
    return secret


SecretUrl = Annotated[SecretStr, AfterValidator(_address)]
"""Who knows it may write there."""
Text = Annotated[str, StringConstraints(min_length=1)]
TopicArn = Annotated[str, StringConstraints(pattern=r"^arn:aws[a-z-]*:sns:[a-z0-9-]+:\d{12}:[A-Za-z0-9_-]{1,256}$")]
HostPort = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.-]+:[1-9]\d{0,4}$")]


class Slack(Document):
    """An incoming webhook."""

    url: SecretUrl
    channel: Text


class Email(Document):
    to: Annotated[tuple[Text, ...], Field(min_length=1)]
    sender: Text
    smarthost: HostPort
    """The server that takes the mail, with STARTTLS."""
    username: Text | None = None
    password: SecretStr | None = None


class Alerting(Document):
    """Every receiver gets every alert; empty: nobody."""

    sns_topic_arn: TopicArn | None = None
    slack: Slack | None = None
    email: Email | None = None
    webhook_url: SecretUrl | None = None
    watchdog_url: SecretUrl | None = None
    """Called every minute as long as all works: a dead man's switch elsewhere raises the alarm when the calls stay away."""

    @property
    def reaches_somebody(self) -> bool:
        return bool(self.sns_topic_arn or self.slack or self.email or self.webhook_url)

    @property
    def secrets(self) -> dict[str, str]:
        """What Alertmanager reads from files, by file."""
        found = {
            "slack-url": self.slack and self.slack.url,
            "smtp-password": self.email and self.email.password,
            "webhook-url": self.webhook_url,
            "watchdog-url": self.watchdog_url,
        }
        return {name: secret.get_secret_value() for name, secret in found.items() if secret}

    @property
    def ports(self) -> list[int]:
        """What Alertmanager calls outside of the cluster."""
        addresses = [self.slack and self.slack.url, self.webhook_url, self.watchdog_url]
        parts = [urlsplit(address.get_secret_value()) for address in addresses if address]
        ports = {part.port or (443 if part.scheme == "https" else 80) for part in parts}
        ports |= {443} if self.sns_topic_arn else set()
        ports |= {int(self.email.smarthost.rpartition(":")[2])} if self.email else set()
        return sorted(ports)


def without_encryption(value: Any) -> Any:
    """A structured setting of a stack file, with a stand-in for each encrypted part."""
    if isinstance(value, dict):
        encrypted = set(value) == {"secure"}
        return ENCRYPTED if encrypted else {key: without_encryption(inner) for key, inner in value.items()}
    return value
