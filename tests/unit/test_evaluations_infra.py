"""Evaluations in the cluster as the program declares them: off unless asked for, and able to do nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra import names
from infra.errors import ConfigError
from loraserve.contract.gateway_settings import GatewaySettings
from loraserve.contract.keys import KeyRing, digest_of_key, id_of
from loraserve.evaluation.definition import Plan
from loraserve.operator.releases.evaluation_commands import evaluate
from tests.stack_values import CHECKOUT, adapter
from tests.unit.declared import ISSUER, Program, declare, environment_in_pod

FILE = str(CHECKOUT / "tests" / "evaluation" / "faq.yaml")
WEEKLY = "0 3 * * 0"
NAME = "evaluation-aws-rag-qa"


def with_evaluation(**more: Any) -> Program:
    return declare("dev", adapters=[adapter()], evaluations=[{"adapter": "aws-rag-qa", "file": FILE} | more])


@pytest.fixture(scope="module")
def weekly() -> Program:
    return with_evaluation(schedule=WEEKLY)


def cron_job(program: Program) -> dict[str, Any]:
    return program.one("batch/v1:CronJob", NAME).inputs["spec"]


def template(program: Program) -> dict[str, Any]:
    return cron_job(program)["jobTemplate"]["spec"]["template"]


def container(program: Program) -> dict[str, Any]:
    (only,) = template(program)["spec"]["containers"]
    return only


def test_without_it_nothing_is_there_and_the_gateway_looks_for_no_verdict() -> None:
    program = declare("dev", adapters=[adapter()])
    assert not program.of_type("batch/v1:CronJob")
    assert not [each for each in program.resources if names.EVALUATOR in each.name]
    pod = program.one("apps/v1:Deployment", names.GATEWAY).inputs["spec"]["template"]["spec"]
    assert not GatewaySettings.from_environment(environment_in_pod(pod["containers"][0])).reads_verdicts


def test_it_runs_by_schedule_one_at_a_time(weekly: Program) -> None:
    spec = cron_job(weekly)
    assert (spec["schedule"], spec["timeZone"], spec["suspend"]) == (WEEKLY, "Etc/UTC", False)
    assert spec["concurrencyPolicy"] == "Forbid"


def test_without_a_schedule_only_somebody_who_makes_a_job_of_it_starts_it() -> None:
    assert cron_job(with_evaluation())["suspend"] is True


def test_its_command_is_one_that_loraserve_takes(weekly: Program) -> None:
    word, *arguments = container(weekly)["args"]
    assert word == "evaluate"
    options = evaluate.make_context("evaluate", list(arguments)).params
    assert (options["candidate"], options["record"], options["no_gate"]) == ("aws-rag-qa", True, True)
    assert options["bucket_name"]
    variables = {each["name"]: each.get("value") for each in container(weekly)["env"]}
    assert variables["OPENAI_BASE_URL"] == f"http://{names.GATEWAY}:{names.GATEWAY_PORT}/v1"


def test_its_pod_has_the_evaluation_and_its_rows_under_their_paths(weekly: Program, tmp_path: Path) -> None:
    volumes = {each["name"]: each for each in template(weekly)["spec"]["volumes"]}
    mounts = {each["mountPath"]: each["name"] for each in container(weekly)["volumeMounts"]}
    file = Path(container(weekly)["args"][1])
    mounted = volumes[mounts[str(file.parent)]]["configMap"]
    data = weekly.one("core/v1:ConfigMap", mounted["name"]).inputs["data"]
    for item in mounted["items"]:
        path = tmp_path / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data[item["key"]])
    assert Plan(tmp_path / file.name).rows.digest == Plan(Path(FILE)).rows.digest


def test_it_follows_what_the_cluster_serves(weekly: Program) -> None:
    volumes = {each["name"]: each for each in template(weekly)["spec"]["volumes"]}
    assert volumes[names.DESIRED_STATE]["configMap"]["name"] == names.DESIRED_STATE
    options = evaluate.make_context("evaluate", list(container(weekly)["args"][1:])).params
    assert str(options["desired_file"]) == f"{names.DESIRED_STATE_DIR}/{names.DESIRED_STATE_FILE}"
    assert options["base_revision"] == "main"


def test_its_key_is_one_that_the_gateway_knows(weekly: Program) -> None:
    (key,) = weekly.one("core/v1:Secret", names.EVALUATOR).inputs["stringData"].values()
    ring = weekly.one("core/v1:Secret", "gateway-keys").inputs["stringData"]["keys.json"]
    (entry,) = KeyRing.parse(ring).keys
    assert (entry.id, entry.tenant, entry.sha256) == (id_of(key), names.EVALUATOR, digest_of_key(key))


def test_it_has_the_role_that_writes_verdicts_and_nobody_else_in_the_cluster_has(weekly: Program) -> None:
    role = weekly.one("iam/role:Role", "loraserve-dev-adapters-eval").inputs
    people, pods = json.loads(role["assumeRolePolicy"])["Statement"]
    assert people["Principal"] == {"AWS": "arn:aws:iam::123456789012:root"}
    subject = f"system:serviceaccount:{names.SERVING_NAMESPACE}:{names.EVALUATOR}"
    assert pods["Condition"]["StringEquals"] == {f"{ISSUER}:sub": subject, f"{ISSUER}:aud": "sts.amazonaws.com"}
    variables = {each["name"]: each.get("value") for each in container(weekly)["env"]}
    assert variables["AWS_ROLE_ARN"].endswith("-eval")
    pod = template(weekly)["spec"]
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == (names.EVALUATOR, False)


def test_the_gateway_reads_verdicts_then(weekly: Program) -> None:
    text = weekly.one("iam/rolePolicy:RolePolicy", "loraserve-dev-gateway").inputs["policy"]
    granted = {each["Sid"]: each for each in json.loads(text)["Statement"]}
    assert granted["ReadVerdicts"]["Resource"].endswith("/evaluations/*")
    assert granted["ListVerdicts"]["Condition"] == {"StringLike": {"s3:prefix": "evaluations/*"}}
    assert "ReadUsage" not in granted


def test_a_stranger_among_the_adapters_is_refused() -> None:
    with pytest.raises(ConfigError, match="evaluations names faq, which is not declared"):
        declare("dev", adapters=[adapter()], evaluations=[{"adapter": "faq", "file": FILE}])


def test_a_schedule_that_cron_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match="cron's five fields"):
        with_evaluation(schedule="every night")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (None, "rows.jsonl cannot be read"),
        ('{"question": "Why?"}', "reference: is missing"),
        (json.dumps({"question": "Why?", "reference": "x" * 1_000_000}), "and a ConfigMap takes"),
    ],
    ids=["no rows", "a row without a reference", "more than fits"],
)
def test_what_cannot_be_run_is_refused_before_anything_is_changed(
    tmp_path: Path, rows: str | None, problem: str
) -> None:
    text = Path(FILE).read_text().replace("rows/faq.jsonl", "rows.jsonl")
    (tmp_path / "faq.yaml").write_text(text)
    if rows:
        (tmp_path / "rows.jsonl").write_text(rows)
    with pytest.raises(ConfigError, match=problem):
        with_evaluation(file=str(tmp_path / "faq.yaml"))
