"""Training in the cluster: off by default; a Job, a role and a node group that serving knows nothing of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra.training import job_name, training_policy
from loraserve.contract.training import Training
from loraserve.planning.setting_sections import TrainingJob
from loraserve.planning.settings_parser import InvalidSettings, parse
from loraserve.planning.training_target import TrainingTarget
from policy import pod_rules
from policy.rule import Declared
from tests.stack_values import stack_values
from tests.unit.declared import Program, run

ROWS = "s3://acme-data/faq/rows.jsonl"
JOB = {"name": "faq", "model": "mistral-7b-faq", "version": "v2", "settings": {"rows": ROWS, "epochs": 2}}
IMAGE = "registry.example.com/training@sha256:" + "c" * 64


def group(**changes: Any) -> dict[str, Any]:
    return {"image": IMAGE, "jobs": [JOB]} | changes


@pytest.fixture(scope="module")
def program() -> Program:
    return run("dev", training=group())


def spec(program: Program) -> dict[str, Any]:
    return program.one("batch/v1:Job").inputs["spec"]


def test_nothing_of_it_is_there_unless_it_is_asked_for() -> None:
    assert not [one for one in run("dev").resources if "training" in one.name]


def test_its_node_is_another_one_than_servings_and_none_while_nothing_is_trained(program: Program) -> None:
    nodes = {one.name: one.inputs for one in program.of_type(":NodeGroup")}
    own, serving = nodes["gpu-training-nodes"], nodes["gpu-vllm-nodes"]
    assert own["scalingConfig"] == {"minSize": 0, "desiredSize": 0, "maxSize": 1}
    assert own["taints"] == serving["taints"]
    assert own["labels"]["workload"] != serving["labels"]["workload"]
    pod = spec(program)["template"]["spec"]
    assert pod["nodeSelector"] == {"workload": own["labels"]["workload"]}
    (vllm,) = [one for one in program.of_type(":Deployment") if one.name == "vllm"]
    assert vllm.inputs["spec"]["template"]["spec"]["nodeSelector"] == {"workload": serving["labels"]["workload"]}


def test_the_autoscaler_knows_its_empty_group(program: Program) -> None:
    tags = {
        one.inputs["tag"]["key"]: one.inputs["tag"]["value"]
        for one in program.of_type(":Tag")
        if "training" in one.name
    }
    template = "k8s.io/cluster-autoscaler/node-template"
    assert tags[f"{template}/label/workload"] == "gpu-training"
    assert tags[f"{template}/resources/nvidia.com/gpu"] == "1"
    assert tags[f"{template}/resources/ephemeral-storage"] == "96Gi"


def test_a_job_trains_and_publishes_the_declared_version(program: Program) -> None:
    (container,) = spec(program)["template"]["spec"]["containers"]
    arguments = container["args"]
    assert arguments[:2] == ["train", "/etc/training/training.yaml"]
    assert arguments[-6:] == ["--model", "mistral-7b-faq", "--version", "v2", "--name", "faq"]
    assert "--keep-checkpoints" in arguments
    (files,) = [
        one.inputs["data"] for one in program.of_type(":ConfigMap") if "target.json" in one.inputs.get("data", {})
    ]
    settings = Training.model_validate_json(files["training.yaml"], by_alias=True, by_name=False)
    assert (settings.rows, settings.epochs, settings.rank) == (ROWS, 2, 16)
    target = TrainingTarget.parse(files["target.json"], AssertionError)  # pyright: ignore[reportArgumentType]
    assert target.trained_on.name == "mistralai/Mistral-7B-v0.1"
    assert target.chat_template
    assert target.instance == "g6.xlarge"


def test_a_lost_node_is_no_failure_and_rows_that_are_refused_are_not_tried_again(program: Program) -> None:
    lost, refused = spec(program)["podFailurePolicy"]["rules"]
    assert (lost["action"], lost["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (refused["action"], refused["onExitCodes"]["values"]) == ("FailJob", [1, 2])
    job = program.one("batch/v1:Job")
    assert job.ignore_changes == ["spec"], "a version is trained once, whatever our image becomes"
    assert job.inputs["metadata"]["annotations"] == {"pulumi.com/skipAwait": "true"}


def test_the_pod_keeps_the_rules_for_pods(program: Program) -> None:
    declared = Declared("kubernetes:batch/v1:Job", program.one("batch/v1:Job").inputs)
    rules = (
        pod_rules.unpinned_images,
        pod_rules.missing_limits,
        pod_rules.missing_security_context,
        pod_rules.privileged_pods,
    )
    assert [problem for rule in rules for problem in rule(declared)] == []


def test_its_role_reads_rows_and_base_and_writes_its_own_version_only() -> None:
    bucket = "arn:aws:s3:::adapters"
    document = json.loads(training_policy(bucket, [TrainingJob.model_validate(JOB)]))
    by_action = {action: one["Resource"] for one in document["Statement"] for action in one["Action"]}
    (reading,) = [one["Resource"] for one in document["Statement"] if one["Sid"] == "Read"]
    published = [f"{bucket}/llm-models/mistral-7b-faq/v2/*", f"{bucket}/lineage/llm-models/mistral-7b-faq/v2/*"]
    assert by_action["s3:PutObject"] == [f"{bucket}/training/*", *published]
    assert reading == [
        "arn:aws:s3:::acme-data/faq/rows.jsonl",
        f"{bucket}/base-models/*",
        f"{bucket}/training/*",
        *published,
    ]
    assert "s3:DeleteObject" not in by_action


def test_nobody_reaches_its_pod_and_it_reaches_https_only(program: Program) -> None:
    (out,) = [one.inputs["spec"] for one in program.of_type(":NetworkPolicy") if one.name == "training-out"]
    assert out["podSelector"] == {"matchLabels": {"app": "training"}}
    assert out["egress"][0]["ports"] == [{"port": 443, "protocol": "TCP"}]
    assert spec(program)["template"]["metadata"]["labels"] == {"app": "training"}


def test_its_image_is_built_only_where_none_is_named(program: Program) -> None:
    assert not [one for one in program.of_type(":Image") if "training" in one.name]
    (built,) = [one for one in run("dev", training=group(image=None)).of_type(":Image") if "training" in one.name]
    assert built.inputs["dockerfile"] == {"location": "images/training/Containerfile"}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"jobs": [JOB | {"settings": {"rows": "rows.jsonl"}}]}, "give s3://bucket/key"),
        ({"jobs": [JOB | {"settings": {"rows": ROWS, "evaluations": ["a.yaml"]}}]}, "are files of yours"),
        ({"jobs": [JOB, JOB]}, "a version is trained once"),
        ({"jobs": [JOB | {"settings": {"rows": ROWS, "rank": 0}}]}, "rank"),
        ({"instanceType": "g4dn.xlarge"}, "instanceType g5.xlarge"),
        ({"instanceType": "t3.large"}, "has no GPU"),
        ({"instanceType": "g6.12xlarge"}, "a training uses one GPU"),
        (
            {"image": "registry.example.com/training:latest"},
            "training.image registry.example.com/training:latest names no digest",
        ),
    ],
)
def test_a_training_that_cannot_be_is_refused_in_preview(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidSettings, match=problem):
        parse(stack_values("dev", training=group(**changes)))


def test_a_base_that_moves_or_that_the_gate_would_refuse_is_refused() -> None:
    moving = {"name": "acme/other", "revision": "main"}
    with pytest.raises(InvalidSettings, match="moves: give the full commit hash") as refused:
        parse(stack_values("dev", acceptedBaseIds=["mistralai/Mistral-7B-v0.1"], trainingBase=moving))
    assert "is none of acceptedBaseIds" in str(refused.value)


def test_a_name_of_kubernetes_tells_versions_apart() -> None:
    names = {job_name(TrainingJob.model_validate(JOB | {"version": version})) for version in ("v2", "V2", "v.2")}
    assert len(names) == 3
    longest = job_name(TrainingJob.model_validate(JOB | {"name": "a" * 63}))
    assert len(longest) <= 63
