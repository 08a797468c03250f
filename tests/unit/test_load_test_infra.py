"""The load test in the cluster as the program declares it: off unless asked for, started by hand, and a client alone."""

from __future__ import annotations

from typing import Any

import pytest

from infra import names
from infra.errors import ConfigError
from loraserve.contract.keys import KeyRing, digest_of_key, id_of
from loraserve.operator.stack.loadtest_commands import loadtest
from loraserve.planning import objectives
from loraserve.planning.objectives import Objective
from tests.stack_values import adapter
from tests.unit.declared import Program, declare

STRICT = {"availability": 0.999, "firstTokenSeconds": 1}


@pytest.fixture(scope="module")
def phases() -> Program:
    return declare("dev", loadTest="phases", adapters=[adapter()], objectives={"aws-rag-qa": STRICT})


def job(program: Program) -> dict[str, Any]:
    return program.one("batch/v1:CronJob", names.LOAD_TEST).inputs["spec"]


def pod(program: Program) -> dict[str, Any]:
    return job(program)["jobTemplate"]["spec"]["template"]["spec"]


def arguments(program: Program) -> list[str]:
    (container,) = pod(program)["containers"]
    return container["args"]


def test_without_it_nothing_is_there() -> None:
    assert not [each for each in declare("dev").resources if names.LOAD_TEST in each.name]


def test_only_somebody_who_makes_a_job_of_it_starts_it_and_a_missed_objective_is_not_tried_again(
    phases: Program,
) -> None:
    assert job(phases)["suspend"] is True
    assert job(phases)["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert pod(phases)["restartPolicy"] == "Never"


@pytest.mark.parametrize("scenario", ["phases", "tenants", "overload", "sweep"])
def test_its_command_is_one_that_loraserve_takes(scenario: str) -> None:
    word, name, *options = arguments(declare("dev", loadTest=scenario))
    assert (word, name) == ("loadtest", scenario)
    command = loadtest.commands[scenario]
    # The file is the pod's.
    taken = [option for option in options if option != "--objectives" and not option.startswith("/")]
    assert command.make_context(scenario, [*taken, "--key", "lsk-x"]).params["as_json"]


def test_another_scenario_is_refused() -> None:
    with pytest.raises(ConfigError, match="loadTest"):
        declare("dev", loadTest="chaos")


def test_it_judges_by_the_stacks_objectives(phases: Program) -> None:
    path = arguments(phases)[arguments(phases).index("--objectives") + 1]
    (container,) = pod(phases)["containers"]
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    folder, _, file = path.rpartition("/")
    volume = next(each for each in pod(phases)["volumes"] if each["name"] == mounts[folder])
    data = phases.one("core/v1:ConfigMap", volume["configMap"]["name"]).inputs["data"][file]
    assert objectives.parse(data.encode()) == {"aws-rag-qa": Objective.model_validate(STRICT)}


def test_its_prompts_fit_a_short_context() -> None:
    words = arguments(declare("dev", loadTest="phases", maxModelLen=512))
    assert int(words[words.index("--retrieved-words") + 1]) < 512 / 4


def test_its_key_is_one_that_the_gateway_knows_for_every_model_without_a_limit(phases: Program) -> None:
    (key,) = phases.one("core/v1:Secret", names.LOAD_TEST).inputs["stringData"].values()
    (entry,) = KeyRing.parse(phases.one("core/v1:Secret", "gateway-keys").inputs["stringData"]["keys.json"]).keys
    assert (entry.id, entry.tenant, entry.sha256) == (id_of(key), names.LOAD_TEST, digest_of_key(key))
    assert (entry.models, entry.requests_per_minute, entry.tokens_per_month) == (("*",), None, None)


def test_it_has_no_token_of_the_cluster_and_no_role(phases: Program) -> None:
    assert pod(phases)["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod(phases)
    (container,) = pod(phases)["containers"]
    assert not [each["name"] for each in container["env"] if each["name"].startswith("AWS")]
