"""What a change of each setting touches on a deployed dev stack, one at a time and without refresh.

docs/changes.md has a row for each; `python -m tests.engine.setting_changes` prints them. The program is declared twice, under
mocks, and what differs is what is touched: what is replaced by it follows from what the plugins say of each property.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from infra.errors import ConfigError
from local.stand_ins.aws.plugin import TYPES
from loraserve.contract.keys import create_key
from tests.engine.chart_repository import RECEIPT
from tests.stack_values import CHECKOUT, PRODUCTION_CHOICES, adapter
from tests.unit.declared import Program, run

DOCUMENT = CHECKOUT / "docs" / "changes.md"
_SHAPE = {
    "hiddenSize": 4096,
    "intermediateSize": 14336,
    "numHiddenLayers": 32,
    "numAttentionHeads": 32,
    "numKeyValueHeads": 8,
    "headDim": 128,
    "vocabSize": 32000,
    "weightsGib": 3.98,
}
DEPLOYED: dict[str, Any] = {
    "adapters": [adapter("one")],
    "baseModelRevision": PRODUCTION_CHOICES["baseModelRevision"],
    "baseModelShape": _SHAPE,
    "gpuNvmeRaid0": False,
    "inferenceReplicas": 1,
    "publicAccessCidrs": ["203.0.113.0/24"],
    "retainAdapters": True,
    "systemNodeCount": 2,
}
"""On top of Pulumi.dev.yaml: what stands, so that each setting can be changed alone."""
_LAST: dict[str, Any] = {
    "cluster": "loraserve-dev",
    "region": "eu-central-1",
    "vpcCidr": "10.0.0.0/16",
    "prometheusVolumeGib": 0.0,
}
_ZONES = {"zones": ["eu-central-1a", "eu-central-1b"]}
_GPU = {"gpuInstanceType": "g6.xlarge", "gpuRootVolumeGib": 100.0, "gpuNvmeRaid0": False}
_LAST |= {"nodes": {"system": {"systemInstanceType": "t3a.medium"} | _ZONES, "GPU": _GPU | _ZONES}}
_, _KEY = create_key("team-a", ("one",), 600)
_VERBS = {"create": "+", "update": "~", "delete": "-", "replace": "±"}
_REPLACED_ON = {kind.token: kind.replace_on for kind in TYPES}
REFUSED = "refused"
_MADE_BY = {
    "kubernetes:helm.sh/v4:Chart": re.compile(rf"kubernetes:core/v1:ConfigMap (\S+):\S+/{RECEIPT}\S+"),
    "eks:index:Cluster": re.compile(r"aws:eks/\w+:\w+ (loraserve-dev)-eks\S+"),
}
"""Components, and how the names of what they make begin with their own."""

CHANGES: Mapping[str, Any] = {
    "environment": "production",
    "deletionProtection": True,
    "retainAdapters": False,
    "publisherRole": True,
    "stateBucket": "state/team",
    "stateKeyArn": "arn:aws:kms:eu-central-1:123456789012:key/0123",
    "clusterStack": "prod",
    "vpcCidr": "10.8.0.0/16",
    "availabilityZoneCount": 3,
    "availabilityZones": ["eu-central-1a", "eu-central-1b"],
    "nat": "gateway",
    "clusterAccess": [{"name": "ops", "principalArn": "arn:aws:iam::123456789012:role/ops"}],
    "publicAccessCidrs": ["198.51.100.0/24"],
    "privateAccessCidrs": ["192.168.0.0/24"],
    "controlPlaneLogs": ["api"],
    "systemInstanceType": "t3.medium",
    "systemNodeCount": 3,
    "gpuInstanceType": "g6.2xlarge",
    "gpuMinSize": 1,
    "gpuMaxSize": 3,
    "gpuIdleMinutes": 15,
    "gpuRootVolumeGib": 120,
    "gpuNvmeRaid0": True,
    "gpuWarmPool": True,
    "gpuSpot": True,
    "baseModel": "mistralai/Mistral-7B-v0.1",
    "baseModelRevision": "f" * 40,
    "baseModelShape": _SHAPE | {"weightsGib": 4.1},
    "startCache": {"version": "v1", "digest": "sha256:" + "b" * 64, "sizeBytes": 180 * 1024**2},
    "startCacheWriter": True,
    "baseModelMirror": {"version": "v1", "digest": "sha256:" + "a" * 64, "sizeBytes": 4 * 1024**3},
    "acceptedBaseIds": ["mistralai/Mistral-7B-v0.1"],
    "trainingBase": {"name": "mistralai/Mistral-7B-v0.1", "revision": "f" * 40},
    "training": {
        "image": "registry.example.com/training@sha256:" + "c" * 64,
        "jobs": [{"name": "faq", "model": "faq", "version": "v2", "settings": {"rows": "s3://acme-data/rows.jsonl"}}],
    },
    "maxModelLen": 2048,
    "gpuMemoryUtilization": "0.85",
    "adapterSlots": 8,
    "chatTemplateFile": str(CHECKOUT / "LICENSE"),
    "baseModelHasChatTemplate": False,
    "toolCallParser": "mistral",
    "reasoningParser": "mistral",
    "vllmExtraArgs": ["--max-num-seqs=64"],
    "hubToken": "a secret of the config",
    "inferenceReplicas": 2,
    "longestGenerationSeconds": 150,
    "startupBudgetMinutes": 25,
    "scalingEnabled": False,
    "inferenceMaxReplicas": 2,
    "requestsPerReplica": 50,
    "gatewayReplicas": 3,
    "gatewayWaitSeconds": 330,
    "gpuHoursPerDay": 8,
    "gatewayKeys": [_KEY.model_dump(mode="json", by_alias=True)],
    "gatewayClientNamespaces": ["apps"],
    "gatewayCertificateArn": "arn:aws:acm:eu-central-1:123456789012:certificate/0123",
    "adapters": [adapter("one"), adapter("two")],
    "remoteWrite": {
        "url": "https://prometheus.example.com/push",
        "username": "1",
        "password": "a secret of the config",
    },
    "logFormat": "json",
    "tracesEndpoint": "http://collector.observability.svc:4318",
    "podLogDays": 30,
    "addonsEnabled": False,
    "monitoringEnabled": False,
    "prometheusVolumeGib": 10,
    "chartRepository": "https://charts.example.com",
    "vllmImage": "registry.example.com/vllm-openai:v0.32.0",
    "loraserveImage": "registry.example.com/loraserve@sha256:" + "b" * 64,
    "evaluations": [
        {"adapter": "one", "file": str(CHECKOUT / "tests" / "evaluation" / "faq.yaml"), "schedule": "0 3 * * 0"}
    ],
    "loadTest": "phases",
    "budget": {"dollarsPerMonth": 300, "emails": ["ops@example.com"]},
    "objectives": {"one": {"availability": 0.999}},
    "alerting": {
        "snsTopicArn": "arn:aws:sns:eu-central-1:123456789012:alerts",
        "webhookUrl": "https://pager.example.com/x",
    },
    "local": {"vllmDevice": "cpu"},
}


APPLIED = (
    *("environment", "publisherRole", "stateBucket", "stateKeyArn", "nat", "systemInstanceType", "systemNodeCount"),
    *("gpuMinSize", "gpuMaxSize", "gpuIdleMinutes", "gpuRootVolumeGib", "gpuNvmeRaid0", "gpuSpot"),
    *("baseModel", "baseModelRevision", "maxModelLen", "gpuMemoryUtilization", "adapterSlots"),
    *("chatTemplateFile", "baseModelHasChatTemplate", "toolCallParser", "reasoningParser"),
    *("inferenceMaxReplicas", "requestsPerReplica", "longestGenerationSeconds", "startupBudgetMinutes"),
    *("gatewayReplicas", "gatewayWaitSeconds", "gpuHoursPerDay", "logFormat", "prometheusVolumeGib"),
    *("vllmImage", "loraserveImage", "tracesEndpoint", "podLogDays"),
)
"""Settings that can all be changed in one `up` which another can follow: what they touch adds up."""
PREVIEWED = (
    *("deletionProtection", "retainAdapters", "gpuWarmPool", "startCacheWriter", "inferenceReplicas"),
    *("gatewayCertificateArn", "loadTest", "addonsEnabled", "scalingEnabled", "monitoringEnabled"),
)
"""Those that would stand in the way of what follows, or ask for what the emulated AWS has not."""


def added_up(rows: Iterable[str]) -> set[str]:
    """What several rows touch: what one replaces or deletes another cannot only change."""
    words = {word for row in rows for word in row.split(", ") if word}
    return {word for word in words if word[0] != "~" or not {f"±{word[1:]}", f"-{word[1:]}"} & words}


def declared(**changes: Any) -> Program:
    """The program on the stack that stands, with these settings changed. Raises ConfigError."""
    secrets = [key for key in ("hubToken", "alerting", "remoteWrite") if key in changes]
    return run("dev", last_outputs=_LAST, secrets=secrets, **(DEPLOYED | changes))


def touched(before: Program, after: Program) -> str:
    """What differs, as one line; components are left out."""
    return spelled({" ".join(key): op for key, op in _operations(_custom(before), _custom(after))})


def spelled(operations: Mapping[str, str]) -> str:
    """Operations by `type name` as one line, `~Kind name`."""
    words = [
        f"{_VERBS[op]}{name.partition(' ')[0].rpartition(':')[2]} {name.partition(' ')[2]}"
        for name, op in operations.items()
    ]
    return ", ".join(sorted(words, key=lambda word: (word[1:], word[0])))


def of_the_engine(operations: Mapping[str, str]) -> str:
    """What the engine did or would do, as one line; what a component has made of its inputs is the component's."""
    found: dict[str, str] = {}
    for name, op in operations.items():
        component = next((f"{made} {of[1]}" for made, rule in _MADE_BY.items() if (of := rule.fullmatch(name))), None)
        if component:
            found.setdefault(component, "update")
        elif not name.startswith(("loraserve:", "pulumi:")):
            found[name] = op
    return spelled(found)


Inputs = Mapping[tuple[str, str], dict[str, Any]]


def _custom(program: Program) -> Inputs:
    return {(item.type, item.name): item.inputs for item in program.resources if not item.type.startswith("loraserve:")}


def _operations(old: Inputs, new: Inputs) -> Iterator[tuple[tuple[str, str], str]]:
    for key in old.keys() | new.keys():
        if key not in old:
            yield key, "create"
        elif key not in new:
            yield key, "delete"
        elif old[key] != new[key]:
            changed = {name for name in old[key].keys() | new[key].keys() if old[key].get(name) != new[key].get(name)}
            yield key, "replace" if changed & _REPLACED_ON.get(key[0], frozenset()) else "update"


def counted(row: str) -> str:
    """How many a row creates, changes, deletes and replaces, such as `+2 ~1`."""
    verbs = [word[0] for word in row.split(", ") if word]
    return " ".join(f"{verb}{verbs.count(verb)}" for verb in _VERBS.values() if verb in verbs) or "0"


def rows() -> Iterator[tuple[str, str]]:
    """Every setting with what its change touches."""
    before = declared()
    for setting, value in CHANGES.items():
        try:
            yield setting, touched(before, declared(**{setting: value}))
        except ConfigError:
            yield setting, REFUSED


def documented() -> dict[str, str]:
    """What the document says is touched, by setting."""
    return {
        setting: "" if row == "nothing" else row.split(":")[0] if row.startswith(REFUSED) else row
        for setting, _, row in _table()
    }


def documented_counts() -> dict[str, str]:
    """And how many, by setting."""
    return {setting: counts for setting, counts, _ in _table()}


def documented_runs() -> dict[str, str]:
    """What whole runs count, as `told` has it, by their names."""
    return dict(re.findall(r"^\| (\w+ `(?:up|destroy)`) \| ([^|]+) \|$", DOCUMENT.read_text(), flags=re.MULTILINE))


def _table() -> list[tuple[str, str, str]]:
    return re.findall(r"^\| `(\w+)` \| ([^|]*) \| (.*) \|$", DOCUMENT.read_text(), flags=re.MULTILINE)


def told(counts: Mapping[str, int]) -> str:
    """What the engine has counted in one run, such as `303 same`."""
    return ", ".join(f"{count} {op}" for op, count in sorted(counts.items()) if count)


if __name__ == "__main__":
    for setting, row in rows():
        print(f"| `{setting}` | {counted(row.replace(REFUSED, ''))} | {row or 'nothing'} |", flush=True)
