"""The stand-in `docker-build` provider: checks a build's inputs and gives a reference that follows its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from local.stand_ins.docker_build import Image
from local.stand_ins.provider import UNKNOWN, InvalidInput, Properties
from tests.engine.throwaway import Throwaway

PROGRAM = """
    import pulumi
    import pulumi_docker_build as docker_build

    image = docker_build.Image(
        "image",
        context={"location": "."},
        dockerfile={"location": "images/Containerfile"},
        platforms=[docker_build.Platform.LINUX_AMD64],
        push=True,
        registries=[{"address": "registry.invalid", "username": "AWS", "password": pulumi.Output.secret("hidden-value")}],
        tags=["registry.invalid:5000/team/app:latest"],
    )
    pulumi.export("ref", image.ref)
    pulumi.export("digest", image.digest)
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/Containerfile").write_text("FROM base\n")
    (tmp_path / "images/Containerfile.dockerignore").write_text("# all but the code\n*\n!code/**\n**/*.log\n")
    (tmp_path / "code").mkdir()
    (tmp_path / "code/main.py").write_text("print(1)\n")
    return tmp_path


def _checked(folder: Path, **inputs: Any) -> Properties:
    given = {
        "context": {"location": str(folder)},
        "dockerfile": {"location": str(folder / "images/Containerfile")},
        "push": True,
        "tags": ["registry.invalid/app:v1"],
    }
    return Image().check("image", given | inputs, {}, b"")


def test_the_reference_is_the_repository_at_a_digest_and_stays(context: Path) -> None:
    project = Throwaway(context, PROGRAM)

    project.up()
    outputs = project.outputs()

    assert outputs["ref"] == f"registry.invalid:5000/team/app@{outputs['digest']}"
    assert project.up().counts == {"same": 2}
    assert "hidden-value" not in project.state()


def test_only_what_the_build_reads_changes_the_image(context: Path) -> None:
    before = _checked(context)

    (context / "notes.txt").write_text("ignored")
    (context / "code/debug.log").write_text("ignored")
    assert not Image().diff(before, _checked(context)).changed
    (context / "code/main.py").write_text("print(2)\n")
    assert Image().diff(before, _checked(context)).changed == {"contextHash"}
    (context / "code/main.py").write_text("print(1)\n")
    (context / "code/main.py").chmod(0o600)
    assert Image().diff(before, _checked(context)).changed == {"contextHash"}, "modes are part of it"
    assert Image().diff(before, _checked(context, platforms=["linux/arm64"])).changed >= {"platforms"}


def test_new_registry_credentials_are_no_change(context: Path) -> None:
    before = _checked(context, registries=[{"password": "old"}])

    assert not Image().diff(before, _checked(context, registries=[{"password": "new"}])).changed


def test_a_preview_tells_the_reference_unless_an_input_is_unknown(context: Path) -> None:
    assert Image().preview(_checked(context), {})["ref"].startswith("registry.invalid/app@sha256:")
    assert "ref" not in Image().preview(_checked(context, tags=[UNKNOWN]), {})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"context": {"location": "no-such-folder"}}, "context.location: .*no-such-folder is not a directory"),
        ({"dockerfile": {"location": "no-such-file"}}, "dockerfile.location: .*no-such-file is not a file"),
        ({"tags": []}, "tags: an image that is pushed needs a tag"),
        ({"squash": True}, "squash: docker-build:index:Image takes no such property"),
    ],
)
def test_a_wrong_input_is_refused(context: Path, inputs: Properties, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        _checked(context, **inputs)
