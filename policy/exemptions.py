"""What this project declares although a rule forbids it, and why: the one place for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from policy import aws_rules, pod_rules
from policy.rule import Check, Declared, Rule


@dataclass(frozen=True)
class Exemption:
    """These rules do not hold where the URN has this shape (`*` is anything)."""

    rules: tuple[Check, ...]
    urn: str
    reason: str

    def covers(self, rule: Rule, urn: str) -> bool:
        return rule.check in self.rules and fnmatchcase(urn, self.urn)


_IN_A_CHART = "*kubernetes:helm.sh/v4:Chart$*"

EXEMPTIONS = (
    Exemption(
        (pod_rules.privileged_pods,),
        "*loraserve:infra:PodLogs$kubernetes:apps/v1:DaemonSet::*",
        "it reads two folders of its node, read-only and without root: a sidecar in each pod would be the other way to its logs",
    ),
    Exemption(
        (aws_rules.load_balancers_without_reason,),
        "*loraserve:infra:InternalEndpoint$aws:lb/loadBalancer:LoadBalancer::*",
        "the way in from the VPC, asked for by gatewayCertificateArn: it is internal, and its security group admits the VPC only",
    ),
    Exemption(
        (
            pod_rules.missing_limits,
            pod_rules.missing_probes,
            pod_rules.missing_security_context,
            pod_rules.privileged_pods,
        ),
        _IN_A_CHART,
        "pods of charts are their authors': versions are pinned, values bound what they let one bound, and the exporters and the "
        "device plugin look at their nodes for a living, in namespaces of their own",
    ),
)


def violations(rule: Rule, declared: Declared, urn: str) -> Iterator[str]:
    """What is wrong by this rule and is not exempt."""
    if not any(exemption.covers(rule, urn) for exemption in EXEMPTIONS):
        yield from rule.check(declared)
