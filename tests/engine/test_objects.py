"""Every object of several stacks, by a strict server-side dry run: what the settings take is what the real API server takes."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as cases

from infra.errors import ConfigError
from local.cluster.kubectl import kubectl
from local.processes import ProcessError
from loraserve.planning.settings_parser import InvalidSettings, parse
from tests.engine.deployed import World
from tests.manifests import Manifest, manifests
from tests.stack_values import stack_values
from tests.unit.declared import declare, run
from tests.unit.test_policy import PROGRAMS
from tests.unit.test_settings_properties import stack_files


def dry_run(world: World, objects: list[Manifest]) -> None:
    """In the namespace that is there without any of them. Raises ProcessError for what the API server refuses."""
    here = [one | {"metadata": {k: v for k, v in one["metadata"].items() if k != "namespace"}} for one in objects]
    flags = ("--server-side", "--dry-run=server", "--validate=strict", "--namespace", "default")
    kubectl(world.control_plane.kubeconfig, "apply", *flags, "--filename", "-", stdin=yaml.safe_dump_all(here))


def is_taken(changes: dict[str, Any]) -> bool:
    try:
        return bool(parse(stack_values("dev", **changes)))
    except InvalidSettings:
        return False


@pytest.mark.parametrize("stack", PROGRAMS)
def test_the_api_server_takes_every_object_of_a_stack_far_from_the_shipped_one(world: World, stack: str) -> None:
    objects = manifests(declare(stack, **PROGRAMS[stack]))
    assert {one["kind"] for one in objects} >= {
        "Deployment",
        "NetworkPolicy",
        "ScaledObject",
        "ServiceMonitor",
        "Secret",
    }
    dry_run(world, objects)


@given(stack_files().filter(is_taken))
@cases(
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
def test_what_the_settings_take_deploys_to_objects_that_the_api_server_takes(
    world: World, changes: dict[str, Any]
) -> None:
    try:
        program = run("dev", **changes)
    except ConfigError:
        return  # what only the account can tell, such as too few zones
    dry_run(world, manifests(program))


@pytest.mark.parametrize(
    ("path", "value"),
    [(("spec", "replicaz"), 1), (("spec", "replicas"), "two"), (("spec", "template", "spec", "containers"), [])],
    ids=["an unknown field", "a wrong type", "no container"],
)
def test_an_object_that_is_not_valid_is_refused(world: World, path: tuple[str, ...], value: Any) -> None:
    [gateway] = [
        one for one in manifests(declare("dev")) if (one["kind"], one["metadata"]["name"]) == ("Deployment", "gateway")
    ]
    *way, last = path
    place = gateway
    for key in way:
        place = place[key]
    place[last] = value
    with pytest.raises(ProcessError, match=last):
        dry_run(world, [gateway])
