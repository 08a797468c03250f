"""Every AWS type that any stack emits, with every setting on, is known to each list of types."""

from __future__ import annotations

import inspect
from typing import Any

import pulumi_aws
import pytest

from local.stand_ins.aws.plugin import TYPES
from tests.aws_objects import MAKERS
from tests.aws_types import EKS_COMPONENT, FOUND_ELSEWHERE, NEVER_LEFT
from tests.engine.setting_changes import CHANGES, DEPLOYED
from tests.unit.declared import Program, declare

LEFT_AS_SHIPPED = {
    "environment": "a label",
    "clusterStack": "a stack in another one's cluster declares less: test_place.py",
    "retainAdapters": "off only takes away what keeps objects",
    **dict.fromkeys(("addonsEnabled", "monitoringEnabled", "scalingEnabled"), "on as shipped"),
    **dict.fromkeys(("vllmImage", "loraserveImage"), "an image of one's own takes the place of what is built"),
    "nat": "an instance in dev, gateways in prod",
    "local": "the program `local` has it",
}
"""Settings that are not changed in EVERYTHING, each with its reason."""
EVERYTHING: dict[str, Any] = {
    "secrets": ["hubToken", "alerting", "remoteWrite"],
    **{setting: value for setting, value in {**DEPLOYED, **CHANGES}.items() if setting not in LEFT_AS_SHIPPED},
    "gpuNvmeRaid0": False,
}


@pytest.fixture(scope="module")
def programs() -> list[Program]:
    return [declare("dev"), declare("prod"), declare("local"), declare("dev", **EVERYTHING)]


@pytest.fixture(scope="module")
def emitted(programs: list[Program]) -> set[str]:
    """Types with a namespace of the aws plugin; the component's children are registered by its own plugin."""
    types = {resource.type for program in programs for resource in program.resources} | EKS_COMPONENT.keys()
    return {kind for kind in types if kind.startswith("aws:")}


def test_every_setting_is_on_in_one_of_the_programs() -> None:
    assert EVERYTHING.keys() - {"secrets"} | LEFT_AS_SHIPPED.keys() == CHANGES.keys()


def test_the_stand_in_serves_what_is_emitted_and_nothing_else(emitted: set[str]) -> None:
    assert {kind.token for kind in TYPES} == emitted


def test_the_finder_of_leftovers_knows_what_is_emitted_or_says_why_not(emitted: set[str]) -> None:
    assert MAKERS.keys() | NEVER_LEFT.keys() | FOUND_ELSEWHERE.keys() == emitted


def test_whatever_has_tags_names_its_stack(programs: list[Program]) -> None:
    for program in programs:
        stack = program.resources[0].urn.split(":")[2]
        for resource in program.resources:
            if takes_tags(resource.type):
                assert resource.inputs.get("tags", {}).get("loraserve/stack") == stack, resource.urn


def takes_tags(kind: str) -> bool:
    """By the SDK's class; the component's tags go to all its children."""
    if not kind.startswith("aws:"):
        return kind == "eks:index:Cluster"
    module, name = kind.removeprefix("aws:").split("/")[0], kind.rpartition(":")[2]
    return "tags" in inspect.signature(getattr(getattr(pulumi_aws, module), name)._internal_init).parameters


def test_what_aws_makes_for_the_stack_names_it_too(programs: list[Program]) -> None:
    tag = {"loraserve/stack": "dev"}
    everything = programs[-1]
    for template in everything.of_type("ec2/launchTemplate:LaunchTemplate"):
        tagged = {item["resourceType"]: item["tags"] for item in template.inputs["tagSpecifications"]}
        assert tagged.keys() == {"instance", "volume", "network-interface"}
        assert all(tag.items() <= tags.items() for tags in tagged.values())
    assert everything.one("ec2/instance:Instance").inputs["rootBlockDevice"]["tags"] == tag
    driver = everything.one("eks/addon:Addon", "loraserve-dev-aws-ebs-csi-driver")
    assert '"extraVolumeTags": {"loraserve/stack": "dev"}' in driver.inputs["configurationValues"]
    access = everything.one("eks:index:Cluster").inputs["accessEntries"]
    assert all(entry["tags"] == tag for entry in access.values())
