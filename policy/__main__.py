"""The policy pack as Pulumi's engine runs it: `pulumi preview --policy-pack policy`."""

from __future__ import annotations

import sys
from pathlib import Path

import pulumi
from pulumi_policy import (
    EnforcementLevel,
    PolicyPack,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from policy.exemptions import violations
from policy.rule import RULES, Declared, Rule

_PRODUCTION = pulumi.Config("loraserve").get("environment") != "development"


def _policy(rule: Rule) -> ResourceValidationPolicy:
    def validate(resource: ResourceValidationArgs, report: ReportViolation) -> None:
        declared = Declared(
            resource.resource_type, resource.props, protected=resource.opts.protect, production=_PRODUCTION
        )
        for problem in violations(rule, declared, resource.urn):
            report(problem, None)

    return ResourceValidationPolicy(rule.name, rule.description, validate)


PolicyPack("loraserve", [_policy(rule) for rule in RULES], enforcement_level=EnforcementLevel.MANDATORY)
