"""Alertmanager's configuration as the Prometheus operator at v0.90.1 reads it: strictly, an unknown field is an error.

Written by hand from its pkg/alertmanager/types.go and from what amcfg.go and Alertmanager 0.31.1 refuse; sections that the program does
not write are left out, so that a field of theirs is an error here too. A raised chart needs its operator's read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

OPERATOR_OF_CHART = {"83.7.0": "v0.90.1"}
Duration = Annotated[str, StringConstraints(pattern=r"^(0|\d+(ms|[smhdwy]))$")]
Matchers = list[Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_]\w*(=|!=|=~|!~)\".+\"$")]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Global(_Strict):
    resolve_timeout: Duration


class Route(_Strict):
    receiver: str = ""
    group_by: list[str] = []
    matchers: Matchers = []
    continue_: bool = Field(False, alias="continue")
    routes: list[Route] = []
    group_wait: Annotated[str, StringConstraints(pattern=r"^\d+[smh]$")] | None = None
    group_interval: Annotated[str, StringConstraints(pattern=r"^[1-9]\d*[smh]$")] | None = None
    repeat_interval: Annotated[str, StringConstraints(pattern=r"^[1-9]\d*[smh]$")] | None = None

    def receivers(self) -> Iterator[str]:
        if self.receiver:
            yield self.receiver
        for route in self.routes:
            yield from route.receivers()


class InhibitRule(_Strict):
    source_matchers: Matchers
    target_matchers: Matchers
    equal: list[str] = []


class Webhook(_Strict):
    send_resolved: bool
    url: str = ""
    url_file: str = ""
    max_alerts: int = 0
    timeout: Duration | None = None


class Slack(_Strict):
    send_resolved: bool
    api_url: str = ""
    api_url_file: str = ""
    channel: str
    title: str = ""
    text: str = ""


class Email(_Strict):
    send_resolved: bool
    to: Annotated[str, StringConstraints(min_length=1)]
    sender: Annotated[str, Field(alias="from", min_length=1)]
    smarthost: Annotated[str, StringConstraints(pattern=r"^\S+:\d+$")]
    auth_username: str = ""
    auth_password_file: str = ""
    require_tls: bool


class SigV4(_Strict):
    region: str
    role_arn: str = ""


class Sns(_Strict):
    send_resolved: bool
    sigv4: SigV4
    topic_arn: str
    subject: str = ""
    message: str = ""


class Receiver(_Strict):
    name: Annotated[str, StringConstraints(min_length=1)]
    slack_configs: list[Slack] = []
    webhook_configs: list[Webhook] = []
    email_configs: list[Email] = []
    sns_configs: list[Sns] = []


class Configuration(_Strict):
    global_: Global = Field(alias="global")
    route: Route
    inhibit_rules: list[InhibitRule]
    receivers: list[Receiver]
    templates: list[str]

    @model_validator(mode="after")
    def _consistent(self) -> Configuration:
        """A root without conditions that has a receiver; every receiver once, and there."""
        names = [receiver.name for receiver in self.receivers]
        if not self.route.receiver or self.route.matchers or self.route.continue_:
            raise ValueError("the root route has a receiver, and neither matchers nor `continue`")
        if len(names) != len(set(names)):
            raise ValueError(f"receivers with one name: {names}")
        if unknown := set(self.route.receivers()) - set(names):
            raise ValueError(f"no such receivers: {unknown}")
        return self
