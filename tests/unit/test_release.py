"""The program goes from stack to stack as a set: one object says what a stack runs, and a difference is named."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from infra import charts, pinned_images, release, versions
from loraserve.operator.access.pulumi import Pulumi
from loraserve.operator.cli import main
from loraserve.planning import checkout
from tests.unit.declared import run


def test_a_stack_says_what_it_runs() -> None:
    told = release.describe("ecr/loraserve@sha256:1", None)
    assert (told["kubernetes"], told["vllm"]) == (versions.KUBERNETES, versions.VLLM)
    assert told["loraserve"] == "ecr/loraserve@sha256:1"
    every_chart = {chart.name for chart in vars(charts).values() if isinstance(chart, charts.HelmChart)}
    assert told["charts"].keys() == every_chart
    assert len(told["images"]) == len(pinned_images.REFERENCES)
    assert told["images"]["docker.io/vllm/vllm-openai"].startswith(f"v{versions.VLLM}")
    assert release.describe("x", "my/vllm@sha256:2")["vllm"] == "my/vllm@sha256:2"


def test_a_recorded_digest_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned_images, "recorded", lambda: {pinned_images.VLLM: "sha256:1"})
    assert release.describe("x", None)["images"]["docker.io/vllm/vllm-openai"] == f"v{versions.VLLM}@sha256:1"


def test_the_program_exports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    exported: dict[str, Any] = {}
    monkeypatch.setattr("pulumi.export", exported.__setitem__)
    run("dev")
    assert exported["release"]["kubernetes"] == versions.KUBERNETES


DIFF = ["release", "diff", "--from", "dev", "--to", "prod"]
RELEASE = {"commit": "1" * 40, "vllm": "0.32.0", "charts": {"keda": "2.21.1"}, "images": {}}


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The outputs of each stack."""
    outputs = {"dev": {"release": RELEASE}, "prod": {"release": RELEASE}}
    monkeypatch.setattr(Pulumi, "outputs", lambda self: outputs[self.stack])
    return outputs


def test_a_checkout_holds_the_program_that_dev_ran_or_another(tmp_path: Path, stacks: dict[str, Any]) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    def change(file: str, text: str) -> None:
        (tmp_path / file).write_text(text)
        git("add", ".")
        git("commit", "-qm", text)

    def diff() -> int:
        return main([*DIFF[:4], "--project", str(tmp_path)])

    assert (checkout.commit(tmp_path), checkout.program(tmp_path), diff()) == (None, None, 1)
    git("init", "-q")
    change("__main__.py", "1")
    git("tag", "v1")
    assert checkout.commit(tmp_path) == git("rev-parse", "HEAD").strip()
    stacks["dev"] = {"release": RELEASE | {"program": checkout.program(tmp_path)}}
    assert diff() == 0

    change("Pulumi.prod.yaml", "a promotion")
    assert diff() == 0, "a stack file is not of the program"

    (tmp_path / "__main__.py").write_text("2")
    assert str(checkout.commit(tmp_path)).endswith("-dirty")
    assert diff() == 1
    stacks["dev"] = {"release": RELEASE | {"program": checkout.program(tmp_path)}}
    assert diff() == 1, "two edited checkouts may differ"
    change("__main__.py", "2")
    assert diff() == 1


def test_a_difference_is_named(stacks: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(DIFF) == 0
    assert "prod runs what dev runs" in capsys.readouterr().err

    stacks["prod"] = {"release": RELEASE | {"commit": "2" * 40}}
    assert main(DIFF) == 0, "the same program, of a commit that changed a stack file"
    capsys.readouterr()

    stacks["prod"] = {"release": RELEASE | {"vllm": "0.31.0", "charts": {"keda": "2.21.1", "dcgm-exporter": "4.8.2"}}}
    assert main(DIFF) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [["what", "dev", "prod"], ["vllm", "0.32.0", "0.31.0"], ["charts:", "dcgm-exporter", "-", "4.8.2"]]


def test_a_stack_of_before_is_told_apart(stacks: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    stacks["dev"] = {}
    assert main(DIFF) == 1
    assert "stack dev says no `release`" in capsys.readouterr().err
