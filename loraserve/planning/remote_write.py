"""Where Prometheus sends its samples too, as a setting of the stack."""

from __future__ import annotations

from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, StringConstraints, model_validator

from loraserve.contract.document import Document


class RemoteWrite(Document):
    """A store that takes Prometheus' remote-write protocol, such as Grafana Cloud, Mimir or Thanos."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^/\s]+")]
    username: Annotated[str, Field(min_length=1)] | None = None
    password: SecretStr | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password belong together: give both or none")
        return self

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)
