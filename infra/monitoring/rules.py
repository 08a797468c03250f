"""Rules as the Prometheus operator reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from loraserve.contract.addresses import PROJECT
from loraserve.monitoring.rules import Alert, Group, Record


def prometheus_rule(
    groups: Iterable[Group], namespace: pulumi.Input[str], opts: pulumi.ResourceOptions
) -> k8s.apiextensions.CustomResource:
    """One object of all groups."""
    return k8s.apiextensions.CustomResource(
        f"{PROJECT}-rules",
        api_version="monitoring.coreos.com/v1",
        kind="PrometheusRule",
        metadata={"name": PROJECT, "namespace": namespace},
        spec=rule_file(groups),
        opts=opts,
    )


def rule_file(groups: Iterable[Group]) -> dict[str, Any]:
    """The form that Prometheus and promtool read too."""
    return {"groups": [{"name": group.name, "rules": [_rule(rule) for rule in group.rules]} for group in groups]}


def _rule(rule: Alert | Record) -> dict[str, Any]:
    if isinstance(rule, Record):
        return {"record": rule.name, "expr": rule.expression, **({"labels": dict(rule.labels)} if rule.labels else {})}
    return {
        "alert": rule.name,
        "expr": rule.expression,
        "for": rule.lasting,
        "labels": {"severity": rule.severity.value, **rule.labels},
        "annotations": {"summary": rule.summary, "runbook": rule.runbook},
    }
