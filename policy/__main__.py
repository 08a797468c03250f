"""The policy pack as Pulumi's engine runs it: `pulumi preview --policy-pack policy`."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import yaml
from pulumi_policy import (
    EnforcementLevel,
    PolicyPack,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
)

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))

from policy.exemptions import violations
from policy.rule import RULES, Declared, Rule

_PROJECT = Path(__file__).absolute().parents[1]


@cache
def _is_production(stack: str) -> bool:
    """By its stack file: the engine tells a pack no config. One that is not there, or says nothing, is production's."""
    file = _PROJECT / f"Pulumi.{stack}.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))["config"] if file.exists() else {}
    return config.get("loraserve:environment") != "development"


def _policy(rule: Rule) -> ResourceValidationPolicy:
    def validate(resource: ResourceValidationArgs, report: ReportViolation) -> None:
        production = _is_production(resource.urn.split(":")[2])
        declared = Declared(
            resource.resource_type, resource.props, protected=resource.opts.protect, production=production
        )
        for problem in violations(rule, declared, resource.urn):
            report(problem, None)

    return ResourceValidationPolicy(rule.name, rule.description, validate)


PolicyPack("loraserve", [_policy(rule) for rule in RULES], enforcement_level=EnforcementLevel.MANDATORY)
