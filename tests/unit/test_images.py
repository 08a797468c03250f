"""The images: what our own is built from, and what that depends on."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.images import build_context
from local.stand_ins.docker_build import Image
from local.stand_ins.provider import Properties
from tests.unit.declared import declare


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in {
        "loraserve/main.py": "print(1)\n",
        "loraserve/__pycache__/main.pyc": "compiled",
        "images/loraserve/Containerfile": "FROM base\n",
        "images/loraserve/requirements.txt": "httpx==1\n",
        "infra/program.py": "no part of it\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def as_built(checkout: Path) -> Properties:
    inputs = {
        "context": {"location": str(build_context(checkout))},
        "dockerfile": {"location": str(checkout / "images/loraserve/Containerfile")},
        "push": True,
        "tags": ["registry.invalid/app:v1"],
    }
    return Image().check("image", inputs, {}, b"")


def test_a_build_reads_the_code_its_lock_and_its_recipe(checkout: Path) -> None:
    context = build_context(checkout)
    files = {path.relative_to(context).as_posix() for path in context.rglob("*") if path.is_file()}
    assert files == {"loraserve/main.py", "images/loraserve/Containerfile", "images/loraserve/requirements.txt"}


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_a_checkout_under_another_umask_is_the_same_image(checkout: Path, mode: int) -> None:
    before = as_built(checkout)
    for path in checkout.rglob("*"):
        if path.is_file():
            path.chmod(mode)
    assert as_built(checkout) == before


def test_changed_and_removed_code_is_another_image(checkout: Path) -> None:
    (checkout / "loraserve/extra.py").write_text("print(2)\n")
    before = as_built(checkout)
    (checkout / "loraserve/extra.py").unlink()
    without = as_built(checkout)
    (checkout / "loraserve/main.py").write_text("print(3)\n")
    changed = as_built(checkout)
    assert len({inputs["contextHash"] for inputs in (before, without, changed)}) == 3


TRIED_OUT = f"{'1' * 12}.dkr.ecr.eu-central-1.amazonaws.com/loraserve@sha256:{'a' * 64}"


def test_prod_runs_the_image_that_another_stack_ran_and_builds_none() -> None:
    program = declare("prod", loraserveImage=TRIED_OUT)
    assert not program.of_type("docker-build:index:Image")
    gateway = program.one("apps/v1:Deployment", "gateway").inputs["spec"]["template"]["spec"]
    assert [container["image"] for container in gateway["containers"]] == [TRIED_OUT]


def test_a_stack_that_is_protected_says_that_it_builds_an_image_that_nobody_tried_out() -> None:
    assert any("builds an image of its own" in message for message in declare("prod").messages)
    assert not any("builds an image of its own" in message for message in declare("dev").messages)
