"""`loraserve receipt`: the same command before `destroy` and after it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from loraserve.operator.stack import receipt
from loraserve.operator.stack.leftovers import Leftover, LeftoversError
from tests.stack_values import CHECKOUT

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
HAD = [
    ("aws:eks/cluster:Cluster", "loraserve-dev"),
    ("aws:ec2/vpc:Vpc", "vpc-1"),
    ("kubernetes:core/v1:Secret", "vllm"),
]


def state(*resources: tuple[str, str]) -> str:
    named = [
        {"urn": f"urn:pulumi:dev::loraserve::{kind}::{id}", "type": kind, "id": id, "created": "2026-11-28T02:00:00Z"}
        for kind, id in resources
    ]
    return json.dumps({"deployment": {"resources": named}})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("Pulumi.yaml", "Pulumi.dev.yaml"):
        (tmp_path / name).write_text((CHECKOUT / name).read_text())
    monkeypatch.setattr(receipt, "connected", lambda _: (None, "eu-central-1", "123456789012"))
    return tmp_path


@pytest.fixture
def in_aws(monkeypatch: pytest.MonkeyPatch) -> list[Leftover]:
    """What the finder finds, whose own tests are in test_leftovers.py."""
    found: list[Leftover] = []
    monkeypatch.setattr(receipt, "find", lambda *_: found)
    return found


def test_before_destroy_it_is_written_with_hours_at_list_price(folder: Path, capsys: Any) -> None:
    assert receipt.run("dev", state(*HAD), folder, NOW) is False
    told = capsys.readouterr().out
    assert "2 objects in AWS (eu-central-1, account 123456789012)" in told
    assert "an estimate: 10.0 h at $0.16" in told
    assert "without GPU nodes" in told
    assert set(json.loads((folder / "receipt-dev.json").read_text())["had"]) == {"loraserve-dev", "vpc-1"}


@pytest.mark.parametrize("still", [(), HAD[1:2]], ids=["destroyed", "destroyed in part"])
def test_after_destroy_it_tells_what_was_there_and_what_is_left(
    folder: Path, in_aws: list[Leftover], capsys: Any, still: tuple[tuple[str, str], ...]
) -> None:
    receipt.run("dev", state(*HAD), folder, NOW)
    in_aws += [Leftover("ec2:vpc", "vpc-1", ()), Leftover("s3:bucket", "adapters", (), kept=True)]
    capsys.readouterr()
    assert receipt.run("dev", state(*still), folder) is True
    told = capsys.readouterr().out
    assert "1 aws:eks/cluster:Cluster" in told
    assert "LEFT ec2:vpc vpc-1" in told
    assert "kept s3:bucket adapters" in told
    assert "loraserve leftovers dev" in told


def test_what_is_kept_on_purpose_is_nothing_left(folder: Path, in_aws: list[Leftover], capsys: Any) -> None:
    receipt.run("dev", state(*HAD), folder, NOW)
    in_aws.append(Leftover("s3:bucket", "adapters", (), kept=True))
    assert receipt.run("dev", state(), folder) is False
    assert "Nothing is left that costs, but what was kept." in capsys.readouterr().out


def test_a_stack_that_stands_again_gets_a_new_receipt(folder: Path) -> None:
    receipt.run("dev", state(*HAD), folder, NOW)
    receipt.run("dev", state(("aws:ec2/vpc:Vpc", "vpc-2")), folder, NOW)
    assert set(json.loads((folder / "receipt-dev.json").read_text())["had"]) == {"vpc-2"}


def test_without_a_receipt_it_says_who_looks_all_the_same(folder: Path) -> None:
    with pytest.raises(LeftoversError, match="loraserve leftovers dev"):
        receipt.run("dev", state(), folder)
    (folder / "receipt-dev.json").write_text("{}")
    with pytest.raises(LeftoversError, match="is no receipt"):
        receipt.run("dev", state(), folder)
