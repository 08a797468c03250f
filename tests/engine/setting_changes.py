"""What a change of each setting touches on a deployed dev stack, one at a time and without refresh.

The engine previews every row in test_life_of_a_stack.py. docs/changes.md has the same rows for people.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraserve.contract.keys import create_key
from tests.stack_values import CHECKOUT, PRODUCTION_CHOICES, adapter

DOCUMENT = CHECKOUT / "docs" / "changes.md"
DEPLOYED: dict[str, Any] = {
    "adapters": [adapter("one")],
    "baseModelRevision": PRODUCTION_CHOICES["baseModelRevision"],
    "gpuNvmeRaid0": False,
    "inferenceReplicas": 1,
    "publicAccessCidrs": ["203.0.113.0/24"],
    "systemNodeCount": 2,
}
"""On top of Pulumi.dev.yaml: what stands, so that each setting can be changed alone."""
CHARTS_ELSEWHERE = "the same charts from another address"
_, _KEY = create_key("team-a", ("one",), 600)
_VERBS = {"create": "+", "update": "~", "delete": "-", "replace": "±"}


@dataclass(frozen=True)
class Change:
    """Of one setting to `to`; what it touches, as `~Kind name`, or in which words it is refused."""

    to: Any
    touched: str = ""
    refused: str = ""


CHANGES: Mapping[str, Change] = {
    "environment": Change("production"),
    "deletionProtection": Change(True),
    "retainAdapters": Change(False),
    "vpcCidr": Change("10.8.0.0/16", refused="loraserve:vpcCidr 10.8.0.0/16 is another than the 10.0.0.0/16"),
    "availabilityZoneCount": Change(3),
    "availabilityZones": Change(["eu-central-1a", "eu-central-1b"]),
    "nat": Change("gateway"),
    "clusterAccess": Change([{"name": "ops", "principalArn": "arn:aws:iam::123456789012:role/ops"}]),
    "publicAccessCidrs": Change(["198.51.100.0/24"]),
    "privateAccessCidrs": Change(["192.168.0.0/24"]),
    "controlPlaneLogs": Change(["api"]),
    "systemInstanceType": Change("t3.medium"),
    "systemNodeCount": Change(3),
    "gpuInstanceType": Change("g6.2xlarge"),
    "gpuMinSize": Change(1),
    "gpuMaxSize": Change(3),
    "gpuIdleMinutes": Change(15),
    "gpuRootVolumeGib": Change(120),
    "gpuNvmeRaid0": Change(True),
    "gpuWarmPool": Change(True),
    "baseModel": Change("TheBloke/Mistral-7B-v0.1-AWQ"),
    "baseModelRevision": Change("f" * 40),
    "baseModelShape": Change(
        {
            "hiddenSize": 4096,
            "intermediateSize": 14336,
            "numHiddenLayers": 32,
            "numAttentionHeads": 32,
            "numKeyValueHeads": 8,
            "headDim": 128,
            "weightsGib": 4.1,
        }
    ),
    "baseModelMirror": Change({"version": "v1", "digest": "sha256:" + "a" * 64, "sizeBytes": 4 * 1024**3}),
    "acceptedBaseIds": Change(["mistralai/Mistral-7B-v0.1"]),
    "maxModelLen": Change(2048),
    "gpuMemoryUtilization": Change("0.85"),
    "chatTemplateFile": Change("LICENSE"),
    "baseModelHasChatTemplate": Change(False),
    "toolCallParser": Change("mistral"),
    "reasoningParser": Change("mistral"),
    "hubToken": Change("a secret of the config"),
    "inferenceReplicas": Change(2),
    "longestGenerationSeconds": Change(150),
    "startupBudgetMinutes": Change(25),
    "scalingEnabled": Change(False),
    "inferenceMaxReplicas": Change(2),
    "requestsPerReplica": Change(50),
    "gatewayReplicas": Change(3),
    "gatewayWaitSeconds": Change(330),
    "gatewayKeys": Change([_KEY.model_dump(mode="json", by_alias=True)]),
    "gatewayClientNamespaces": Change(["apps"]),
    "gatewayCertificateArn": Change("arn:aws:acm:eu-central-1:123456789012:certificate/0123"),
    "adapters": Change([adapter("one"), adapter("two")]),
    "addonsEnabled": Change(False),
    "monitoringEnabled": Change(False),
    "prometheusVolumeGib": Change(10),
    "chartRepository": Change(CHARTS_ELSEWHERE),
    "vllmImage": Change("registry.example.com/vllm-openai:v0.32.0"),
    "loraserveImage": Change("registry.example.com/loraserve@sha256:" + "b" * 64),
    "local": Change({"vllmDevice": "cpu"}),
}


def summary(touched: Mapping[str, str]) -> str:
    """Operations by `type name` as one line: types without their package, what is many of a kind as one."""
    words = {f"{_VERBS[op]}{_short(name)}" for name, op in touched.items() if not name.startswith("pulumi:")}
    return ", ".join(sorted(words, key=lambda word: (word[1:], word[0])))


def _short(name: str) -> str:
    kind, _, name = name.partition(" ")
    kind = kind.rpartition(":")[2]
    return f"{kind} {name}"


def documented(path: Path = DOCUMENT) -> dict[str, str]:
    """What the document says is touched, by setting."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| (.*?) \|", path.read_text(), flags=re.MULTILINE)
    return dict(rows)
