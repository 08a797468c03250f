"""The program goes from stack to stack as a set: one object says what a stack runs, and a difference is named."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from infra import charts, pinned_images, release, versions
from loraserve.operator.cli import main
from loraserve.operator.pulumi import Pulumi
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


def test_a_checkout_that_was_edited_is_no_commit(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert release.commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", ".")
    git("commit", "-qm", "one")
    git("tag", "v1")
    head = git("rev-parse", "HEAD").strip()
    assert release.commit(tmp_path) == head
    (tmp_path / "file").write_text("2")
    assert release.commit(tmp_path) == f"{head}-dirty"


RELEASE = {"commit": "1" * 40, "vllm": "0.32.0", "charts": {"keda": "2.21.1"}, "images": {}}


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The outputs of each stack."""
    outputs = {"dev": {"release": RELEASE}, "prod": {"release": RELEASE}}
    monkeypatch.setattr(Pulumi, "outputs", lambda self: outputs[self.stack])
    return outputs


DIFF = ["release", "diff", "--from", "dev", "--to", "prod"]


def test_a_difference_is_named(stacks: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(DIFF) == 0
    assert "prod runs what dev runs" in capsys.readouterr().err

    stacks["prod"] = {"release": RELEASE | {"vllm": "0.31.0", "charts": {"keda": "2.21.1", "dcgm-exporter": "4.8.2"}}}
    assert main(DIFF) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [["what", "dev", "prod"], ["vllm", "0.32.0", "0.31.0"], ["charts:", "dcgm-exporter", "-", "4.8.2"]]


def test_a_stack_of_before_is_told_apart(stacks: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    stacks["dev"] = {}
    assert main(DIFF) == 1
    assert "stack dev says no `release`" in capsys.readouterr().err
