"""An `up` of this version on a stack that the last release made."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
from typing import Any

import pytest

from infra.errors import ConfigError
from tests.engine.setting_changes import touched
from tests.releases import RELEASES, git
from tests.unit.declared import Program, Resource, run

LAST = RELEASES[-1]
# Under mocks, by the release's own program and stack file; its tests' helper `declare` has been there from the first one on.
_DECLARE = """
import json, sys
import pulumi
sys.path.insert(0, ".")
from tests.unit.declared import declare

outputs = {}
def keep(name, value):
    pulumi.Output.from_input(value).apply(lambda known: outputs.update({name: known}))
pulumi.export = keep
program = declare("dev")
resources = [[each.type, each.name, each.inputs] for each in program.resources]
print(json.dumps({"outputs": outputs, "resources": resources}, default=str))
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the release's `up` of dev declares and puts out."""
    folder = tmp_path_factory.mktemp(LAST.tag)
    with tarfile.open(fileobj=io.BytesIO(git("archive", LAST.commit))) as tree:
        tree.extractall(folder, filter="data")
    command = [sys.executable, "-c", _DECLARE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_an_up_on_a_stack_of_the_last_release_is_refused_with_the_way_or_replaces_nothing_that_holds_the_rest(
    released: dict[str, Any],
) -> None:
    assert released["outputs"]["cluster"] == "loraserve-dev"
    program, refused = _up(released["outputs"])
    if refused:
        assert f"made by version {LAST.version}" in refused
        assert "`pulumi destroy` with that version" in refused
        assert program.resources == [], "it is refused before anything is declared"
    else:
        assert replaced(released, program) == []


def replaced(released: dict[str, Any], program: Program) -> list[str]:
    """Kinds, of what holds the rest."""
    stands = Program([_resource(*each) for each in released["resources"]])
    return re.findall(r"[±-](Vpc|Cluster|Bucket|Subnet) ", touched(stands, program))


def _up(last_outputs: dict[str, Any]) -> tuple[Program, str | None]:
    program = Program()
    try:
        return run("dev", last_outputs=last_outputs, program=program), None
    except ConfigError as error:
        return program, str(error)


def _resource(kind: str, name: str, inputs: dict[str, Any]) -> Resource:
    nothing: list[str] = []
    return Resource(kind, name, "", inputs, False, nothing, nothing, False, "", nothing, False, nothing)
