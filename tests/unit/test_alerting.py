"""Whom alerts reach: the settings, what Alertmanager is told, and that no secret leaves its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from infra import names
from infra.charts import KUBE_PROMETHEUS_STACK
from infra.errors import ConfigError
from infra.monitoring.alertmanager import CONSEQUENCES, configuration
from infra.monitoring.stack import forwards
from loraserve.monitoring import rules
from loraserve.planning.advice import advice
from loraserve.planning.alerting import Alerting
from loraserve.planning.settings_parser import InvalidSettings, parse
from tests.alertmanager_config import OPERATOR_OF_CHART, Configuration
from tests.stack_values import stack_values
from tests.unit.declared import Program, declare

TOPIC = "arn:aws:sns:eu-west-1:123456789012:loraserve-alerts"
SLACK = {"channel": "#ops", "url": "https://hooks.slack.com/services/T0/B0/very-secret"}
EMAIL = {
    "to": ["ops@example.com", "boss@example.com"],
    "sender": "loraserve@example.com",
    "smarthost": "smtp.example.com:587",
    "username": "loraserve",
    "password": "smtp-very-secret",
}
ALL: dict[str, Any] = {
    "snsTopicArn": TOPIC,
    "slack": SLACK,
    "email": EMAIL,
    "webhookUrl": "https://pager.example.com/very-secret",
    "watchdogUrl": "https://hc.example.com:8443/very-secret",
}
EACH = [{key: value} for key, value in ALL.items()]


def told(settings: dict[str, Any]) -> dict[str, Any]:
    return configuration(Alerting.model_validate(settings))


@pytest.fixture(scope="module")
def program() -> Program:
    return declare("dev", alerting=ALL, secrets=["alerting"])


@pytest.mark.parametrize("settings", [{}, *EACH, ALL], ids=lambda settings: "+".join(settings) or "nobody")
def test_the_operator_takes_the_configuration(settings: dict[str, Any]) -> None:
    Configuration.model_validate(told(settings))


def test_a_field_that_the_operator_does_not_know_is_found() -> None:
    config = told(ALL)
    config["receivers"][1]["slack_configs"][0]["update_message"] = True  # Alertmanager 0.32 knows it
    with pytest.raises(ValidationError, match="update_message"):
        Configuration.model_validate(config)


def test_the_record_is_of_the_charts_operator() -> None:
    assert OPERATOR_OF_CHART.keys() == {KUBE_PROMETHEUS_STACK.version}


def reaching(config: dict[str, Any], **labels: str) -> dict[str, Any]:
    """The route that an alert takes, with what it inherits."""
    own = {key: value for key, value in config["route"].items() if key != "routes"}
    for route in config["route"]["routes"]:
        for matcher in route["matchers"]:
            name, _, value = matcher.replace("=~", "=").partition("=")
            if labels.get(name) in value.strip('"').split("|"):
                return own | route
    return own


def test_each_receiver_gets_every_alert_and_what_is_critical_comes_first() -> None:
    config = told(ALL)
    (operators,) = (receiver for receiver in config["receivers"] if receiver["name"] == "operators")
    assert set(operators) == {"name", "sns_configs", "slack_configs", "email_configs", "webhook_configs"}
    critical, warning = (reaching(config, alertname="A", severity=severity) for severity in ("critical", "warning"))
    assert critical["receiver"] == warning["receiver"] == "operators"
    assert (critical["group_wait"], warning["group_wait"]) == ("10s", "1m")
    assert reaching(config, alertname="InfoInhibitor", severity="none")["receiver"] == "nobody"


def test_a_dead_mans_switch_is_called_every_minute_and_by_nothing_but_the_watchdog() -> None:
    route = reaching(told(ALL), alertname="Watchdog", severity="none")
    assert (route["receiver"], route["group_wait"], route["group_interval"]) == ("watchdog", "0s", "1m")
    assert route["repeat_interval"] == "30s", "as long as the interval, it would be called every other minute"
    assert reaching(told({"slack": SLACK}), alertname="Watchdog", severity="none")["receiver"] == "nobody"
    alone = told({"watchdogUrl": ALL["watchdogUrl"]})
    assert reaching(alone, alertname="A", severity="critical")["receiver"] == "nobody"


def test_what_silences_others_and_what_is_silenced_are_alerts_that_there_are() -> None:
    groups = rules.groups({}, cost=None)
    known = {rule.name for group in groups for rule in group.rules if isinstance(rule, rules.Alert)}
    for cause, (consequences, _) in CONSEQUENCES.items():
        assert {cause, *consequences.split("|")} <= known


def test_no_secret_stands_anywhere_but_in_its_own_secret(program: Program) -> None:
    holders = {r.name for r in program.resources if "very-secret" in json.dumps(r.inputs, default=str)}
    assert holders == {"alertmanager-receivers"}
    assert not [message for message in program.messages if "very-secret" in message]
    secret = program.one("core/v1:Secret", "alertmanager-receivers").inputs
    files = {f"/etc/alertmanager/secrets/alertmanager-receivers/{file}" for file in secret["stringData"]}
    config = program.one("core/v1:Secret", "alertmanager-kube-prometheus-stack-alertmanager").inputs["stringData"]
    assert set(config) == {"alertmanager.yaml"}
    assert files == set(file_names(json.loads(config["alertmanager.yaml"])))
    chart = program.one("helm.sh/v4:Chart", "kube-prometheus-stack").inputs["values"]["alertmanager"]
    assert chart["alertmanagerSpec"]["secrets"] == ["alertmanager-receivers"]


def file_names(config: Any) -> list[str]:
    if isinstance(config, dict):
        own = [value for key, value in config.items() if key.endswith("_file")]
        return own + [name for value in config.values() for name in file_names(value)]
    return [name for value in config for name in file_names(value)] if isinstance(config, list) else []


def test_a_secret_in_clear_is_refused() -> None:
    with pytest.raises(ConfigError, match="pulumi config set --secret --path alerting") as refused:
        declare("dev", alerting={"slack": SLACK})
    assert "very-secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"slack": {"channel": "#ops", "url": "hooks.slack.com/very-secret"}},
            "alerting.slack.url: must be an address",
        ),
        ({"snsTopicArn": "alerts"}, "alerting.snsTopicArn"),
        ({"email": EMAIL | {"smarthost": "smtp.example.com"}}, "alerting.email.smarthost"),
        ({"webhookURL": "https://very-secret"}, "alerting.webhookURL: is not a known key"),
        ({"slack": "https://very-secret"}, "alerting.slack: "),
        ("https://very-secret", "alerting: "),
    ],
)
def test_what_alertmanager_could_not_use_is_refused_with_its_key_and_never_shown(settings: Any, problem: str) -> None:
    with pytest.raises(InvalidSettings, match=problem) as refused:
        parse(stack_values("dev", alerting=settings))
    assert "very-secret" not in str(refused.value)


def test_a_stack_whose_alerts_reach_nobody_is_told_so() -> None:
    assert any(message.startswith("alerts reach nobody") for message in declare("dev").messages)
    assert not any(
        "reach nobody" in told for told in advice(parse(stack_values("dev", alerting={"snsTopicArn": TOPIC})))
    )
    assert not any("reach nobody" in told for told in advice(parse(stack_values("dev", monitoringEnabled=False))))


def test_alertmanager_may_publish_to_its_topic_and_do_nothing_else(program: Program) -> None:
    policy = json.loads(program.one("iam/rolePolicy:RolePolicy", "loraserve-dev-alertmanager").inputs["policy"])
    (statement,) = policy["Statement"]
    assert (statement["Effect"], statement["Action"], statement["Resource"]) == ("Allow", "sns:Publish", TOPIC)
    trust = program.one("iam/role:Role", "loraserve-dev-alertmanager").inputs["assumeRolePolicy"]
    assert f"system:serviceaccount:{names.MONITORING_NAMESPACE}:alertmanager" in trust
    values = program.one("helm.sh/v4:Chart", "kube-prometheus-stack").inputs["values"]["alertmanager"]
    (container,) = values["alertmanagerSpec"]["containers"]
    assert {"AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_REGION"} <= {e["name"] for e in container["env"]}
    assert values["serviceAccount"]["name"] == "alertmanager"
    assert not declare("dev").of_type("alertmanager")


def test_the_outputs_say_how_to_get_to_prometheus_and_alertmanager() -> None:
    assert forwards() == {
        "prometheus": "kubectl --namespace ai-platform port-forward service/prometheus-operated 9090",
        "alertmanager": "kubectl --namespace ai-platform port-forward service/alertmanager-operated 9093",
    }


# Samples beyond the stack.


def test_samples_go_to_a_store_with_a_login_that_stands_in_its_own_secret() -> None:
    target = {"url": "https://prometheus.example.com:8443/push", "username": "12345", "password": "very-secret"}
    program = declare("dev", remoteWrite=target, secrets=["remoteWrite"])
    holders = {r.name for r in program.resources if "very-secret" in json.dumps(r.inputs, default=str)}
    assert holders == {"remote-write"}
    values = program.one("helm.sh/v4:Chart", "kube-prometheus-stack").inputs["values"]["prometheus"]
    (remote,) = values["prometheusSpec"]["remoteWrite"]
    login = program.one("core/v1:Secret", "remote-write").inputs["stringData"]
    assert remote["url"] == target["url"]
    assert {ref["key"] for ref in remote["basicAuth"].values()} == set(login)
    (out,) = program.one(":NetworkPolicy", "monitoring-prometheus-remote-write").inputs["spec"]["egress"]
    assert [port["port"] for port in out["ports"]] == [8443]
    assert "169.254.169.254/32" in out["to"][0]["ipBlock"]["except"]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"url": "prometheus.example.com"}, "remoteWrite.url"),
        ({"url": "https://x.example.com", "password": "very-secret"}, "username and password belong together"),
        ({"url": "https://x.example.com", "pasword": "very-secret"}, "remoteWrite.pasword: is not a known key"),
    ],
)
def test_a_store_that_cannot_be_reached_or_used_is_refused(settings: Any, problem: str) -> None:
    with pytest.raises(InvalidSettings, match=problem) as refused:
        parse(stack_values("dev", remoteWrite=settings))
    assert "very-secret" not in str(refused.value)
