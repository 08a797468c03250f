"""Alertmanager: who is told what, and once.

The Prometheus operator reads its configuration strictly, with the fields of Alertmanager 0.31, and says only in its own log that it
refuses one: there is no pod then. tests/alertmanager_config.py has those fields.
"""

from __future__ import annotations

import json
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.charts import KUBE_PROMETHEUS_STACK, bounded
from infra.iam import AUDIENCE, TOKEN_DIR, TOKEN_FILE, TOKEN_SECONDS, TOKEN_VOLUME, policy, web_identity
from infra.names import ALERTMANAGER
from loraserve.planning.alerting import Alerting
from loraserve.planning.pod_resources import Requests

_CONFIG = f"alertmanager-{KUBE_PROMETHEUS_STACK.name}-alertmanager"
"""The Secret in which the operator looks, by the name that the chart gives to the Alertmanager."""
_SECRETS = "alertmanager-receivers"
SECRETS_FOLDER = f"/etc/alertmanager/secrets/{_SECRETS}"
"""Where the operator mounts them."""
_RESOURCES, _MEMORY_LIMIT_MIB = Requests(10, 64), 256
_OPERATORS, _NOBODY, _WATCHDOG = "operators", "nobody", "watchdog"
_SLACK_TEXT = (
    "{{ range .Alerts }}*{{ .Labels.severity }}* {{ .Annotations.summary }} {{ .Annotations.description }}\n"
    "{{ .Annotations.runbook }}{{ .Annotations.runbook_url }}\n{{ end }}"
)
CONSEQUENCES = {
    "AvailabilityBurnsFast": ("AvailabilityBurnsSlowly", ["model"]),
    "FirstTokenBurnsFast": ("FirstTokenBurnsSlowly", ["model"]),
    "GpuNodeDoesNotArrive": ("VllmNotScraped|ColdStartOverBudget", []),
    "VllmDoesNotAnswer": ("AgentOutOfSync|VllmNotScraped", []),
    "GatewayDown": ("ScalingFails", []),
}
"""What needs no message of its own while its cause has one, and the labels that both must share."""

_SAME_BUT_WORSE = {
    "source_matchers": ['severity="critical"'],
    "target_matchers": ['severity="warning"'],
    "equal": ["alertname", "namespace"],
}


def publish_to(topic_arn: str) -> str:
    """Publish to this topic, and nothing else."""
    return policy({"Sid": "Alert", "Effect": "Allow", "Action": "sns:Publish", "Resource": topic_arn})


def configuration(alerting: Alerting) -> dict[str, Any]:
    """Alertmanager's own; secrets are named by their files."""
    return {
        "global": {"resolve_timeout": "5m"},
        "route": _route(alerting),
        "inhibit_rules": [
            _SAME_BUT_WORSE,
            *(_inhibit(cause, *rest) for cause, rest in CONSEQUENCES.items()),
        ],
        "receivers": _receivers(alerting),
        "templates": [],
    }


def _route(alerting: Alerting) -> dict[str, Any]:
    """One message for all alerts of a name; what is critical comes at once, and again after an hour."""
    watchdog = {
        "receiver": _WATCHDOG,
        "matchers": ['alertname="Watchdog"'],
        "group_wait": "0s",
        "group_interval": "1m",
        # Less than the interval: with as much, the call a minute ago is a moment too young, and only every second one is made.
        "repeat_interval": "30s",
    }
    return {
        "receiver": _OPERATORS if alerting.reaches_somebody else _NOBODY,
        "group_by": ["alertname"],
        "group_wait": "1m",
        "group_interval": "5m",
        "repeat_interval": "12h",
        "routes": [
            *([watchdog] if alerting.watchdog_url else []),
            {"receiver": _NOBODY, "matchers": ['severity=~"none|info"']},
            {"matchers": ['severity="critical"'], "group_wait": "10s", "repeat_interval": "1h"},
        ],
    }


def _inhibit(cause: str, consequences: str, shared: list[str]) -> dict[str, Any]:
    return {
        "source_matchers": [f'alertname="{cause}"'],
        "target_matchers": [f'alertname=~"{consequences}"'],
        "equal": shared,
    }


def _receivers(alerting: Alerting) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": _NOBODY}]
    if alerting.reaches_somebody:
        found.append({"name": _OPERATORS} | _ways_to(alerting))
    if alerting.watchdog_url:
        found.append({"name": _WATCHDOG, "webhook_configs": [_webhook("watchdog-url", resolved=False)]})
    return found


def _ways_to(alerting: Alerting) -> dict[str, Any]:
    ways: dict[str, Any] = {}
    if arn := alerting.sns_topic_arn:
        region = arn.split(":")[3]
        ways["sns_configs"] = [{"send_resolved": True, "topic_arn": arn, "sigv4": {"region": region}}]
    if slack := alerting.slack:
        told = {"channel": slack.channel, "text": _SLACK_TEXT}
        ways["slack_configs"] = [{"send_resolved": True, "api_url_file": _file("slack-url")} | told]
    if email := alerting.email:
        login = {"auth_username": email.username} if email.username else {}
        login |= {"auth_password_file": _file("smtp-password")} if email.password else {}
        mail = {"to": ", ".join(email.to), "from": email.sender, "smarthost": email.smarthost}
        ways["email_configs"] = [{"send_resolved": True, "require_tls": True} | mail | login]
    if alerting.webhook_url:
        ways["webhook_configs"] = [_webhook("webhook-url", resolved=True)]
    return ways


def _webhook(secret: str, *, resolved: bool) -> dict[str, Any]:
    return {"send_resolved": resolved, "url_file": _file(secret)}


def _file(secret: str) -> str:
    return f"{SECRETS_FOLDER}/{secret}"


def create_secrets(
    alerting: Alerting, namespace: pulumi.Input[str], opts: pulumi.ResourceOptions
) -> list[k8s.core.v1.Secret]:
    """The configuration, and what its receivers keep to themselves."""
    contents = {_CONFIG: {"alertmanager.yaml": json.dumps(configuration(alerting))}}
    if alerting.secrets:
        contents[_SECRETS] = alerting.secrets
    return [
        k8s.core.v1.Secret(
            name,
            metadata={"name": name, "namespace": namespace},
            string_data={file: pulumi.Output.secret(content) for file, content in files.items()},
            opts=opts,
        )
        for name, files in contents.items()
    ]


def alertmanager_values(alerting: Alerting, region: str, role_arn: pulumi.Input[str] | None) -> dict[str, Any]:
    """Chart values; `role_arn` is of who may publish to the SNS topic."""
    spec: dict[str, Any] = {
        "useExistingSecret": True,
        "automountServiceAccountToken": False,
        "resources": bounded(_RESOURCES, _MEMORY_LIMIT_MIB),
    }
    if alerting.secrets:
        spec["secrets"] = [_SECRETS]
    if role_arn is not None:
        token = {"audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": TOKEN_FILE}
        variables = web_identity(role_arn) | {"AWS_REGION": region}
        spec |= {
            "volumes": [{"name": TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}}],
            "volumeMounts": [{"name": TOKEN_VOLUME, "mountPath": TOKEN_DIR, "readOnly": True}],
            # Merged by name into the operator's container.
            "containers": [{"name": "alertmanager", "env": [{"name": k, "value": v} for k, v in variables.items()]}],
        }
    account = {"name": ALERTMANAGER, "automountServiceAccountToken": False}
    return {"enabled": True, "serviceAccount": account, "alertmanagerSpec": spec}
