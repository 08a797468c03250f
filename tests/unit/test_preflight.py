"""What is found before the first resource: by `up`, and by `loraserve preflight`, which runs the same checks."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import date
from functools import partial
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pulumi
import pytest
import yaml

from infra import account, versions
from infra.at_once import at_once
from infra.errors import ConfigError
from loraserve.contract.addresses import ADAPTER_PREFIX, MANIFEST_FILE, version_key
from loraserve.contract.checks import REPORT_VARIABLE, Check, CheckVerdict, from_json, to_json
from loraserve.operator.beforehand import preflight
from loraserve.operator.cli import main
from loraserve.planning.settings_parser import parse
from tests.stack_values import CHECKOUT, adapter, stack_values
from tests.unit.declared import Program, declare, run
from tests.unit.standing import standing

ONE = adapter("one")
KEY = version_key(ADAPTER_PREFIX, ONE["model"], ONE["version"], MANIFEST_FILE)
BUCKET = {"adapterBucket": "bucket"}
OTHER_DIGEST = "sha256:" + "a" * 64


def test_another_digest_in_the_bucket_is_refused_before_anything_is_declared_together_with_all_else() -> None:
    program, last = Program(), BUCKET | {"vpcCidr": "10.8.0.0/16"}
    with pytest.raises(ConfigError) as refused:
        run("dev", adapters=[ONE], last_outputs=last, published={KEY: OTHER_DIGEST}, program=program)
    network, catalog = refused.value.problems
    assert "is another than the 10.8.0.0/16" in network
    assert catalog.startswith(f"s3://bucket/{KEY} has digest {OTHER_DIGEST}")
    assert "`loraserve show`" in catalog
    assert program.resources == []


def test_a_version_that_was_seen_is_not_asked_for_again() -> None:
    seen = f"{KEY}@{ONE['digest']}"
    settings = parse(stack_values("dev", adapters=[ONE]))
    assert list(account.Catalog(settings, "bucket", [seen]).check()) == []


def test_what_is_missing_in_the_bucket_or_denied_by_iam_is_told_and_stops_nothing() -> None:
    told = declare("dev", adapters=[ONE], last_outputs=BUCKET, denied=["ec2:CreateVpc"]).messages
    assert [message for message in told if KEY in message and "publish that version" in message]
    told = " ".join(told)
    assert "IAM's simulator denies arn:aws:iam::123456789012:role/deployer ec2:CreateVpc on *: attach what" in told


@pytest.mark.parametrize(
    ("version", "end", "told"),
    [
        (versions.KUBERNETES, "2027-03-27T00:00:00Z", []),
        (versions.KUBERNETES, "2026-12-02T00:00:00Z", [f"Kubernetes {versions.KUBERNETES} leaves EKS' standard support on 2026-12-02"]),
    ],
)  # fmt: skip
def test_the_end_of_support_is_told_two_months_before(
    version: str, end: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    supported(monkeypatch, version, end)
    found = list(account.check_support(date(2026, 11, 28)))
    assert [sentence[: len(told[0])] for sentence in found] == told


def test_a_version_that_eks_no_longer_makes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    supported(monkeypatch, "1.99", "2030-01-01T00:00:00Z")
    with pytest.raises(ConfigError, match=r"any more, only 1\.99"):
        list(account.check_support(date(2026, 11, 28)))


def supported(monkeypatch: pytest.MonkeyPatch, version: str, end: str) -> None:
    class Found:
        cluster_version, end_of_standard_support_date = version, end
        cluster_versions: Any = ()

    Found.cluster_versions = [Found]
    monkeypatch.setattr(account.aws.eks, "get_cluster_versions", lambda **_: Found)


def test_another_vpc_with_the_same_addresses_is_told_before_the_first_up_only() -> None:
    def told(**more: Any) -> list[str]:
        return [
            message for message in declare("dev", vpcCidr="172.31.0.0/20", **more).messages if "overlaps" in message
        ]

    (warning,) = told()
    assert "vpcCidr 172.31.0.0/20 overlaps vpc-default (172.31.0.0/16)" in warning
    assert not told(standing=standing(), last_outputs={"vpcCidr": "172.31.0.0/20"})


def test_an_add_on_or_an_image_that_aws_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Newest:
        version = versions.VPC_CNI

    class OlderThanPinned:
        version = "v1.9.0-eksbuild.9"

    def missing(**_: str) -> None:
        raise RuntimeError("couldn't find resource (ParameterNotFound)")

    offered = dict.fromkeys(versions.ADDONS, Newest) | {"coredns": OlderThanPinned}
    # Each by its own pinned version but one.
    monkeypatch.setattr(
        versions, "ADDONS", dict.fromkeys(versions.ADDONS, versions.VPC_CNI) | {"coredns": versions.COREDNS}
    )
    monkeypatch.setattr(account.aws.eks, "get_addon_version", lambda addon_name, **_: offered[addon_name])
    monkeypatch.setattr(account.aws.ssm, "get_parameter", missing)
    with pytest.raises(ConfigError) as refused:
        account.check_offered()
    addon, *images = refused.value.problems
    assert addon.startswith(
        f"EKS offers the add-on coredns up to v1.9.0-eksbuild.9 for Kubernetes {versions.KUBERNETES}"
    )
    assert [image[: image.index(" in this")] for image in images] == [
        f"AWS has no EKS AMI {versions.NODE_RELEASE} ({variant}, x86_64)" for variant in ("standard", "nvidia")
    ]


def test_what_aws_is_asked_at_once_is_answered_in_the_order_asked() -> None:
    together = Barrier(3)

    def question(name: str) -> str:
        together.wait(10)  # nobody gets further alone
        return name

    assert at_once(*(partial(question, name) for name in "abc")) == ["a", "b", "c"]


def test_what_may_not_be_read_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(**_: str) -> None:
        raise RuntimeError("AccessDeniedException")

    monkeypatch.setattr(account.aws.eks, "get_addon_version", denied)
    monkeypatch.setattr(account.aws.ssm, "get_parameter", denied)
    account.check_offered()
    monkeypatch.setattr(account.aws.eks, "get_addon_version", lambda **_: SimpleNamespace(version=None))
    account.check_offered()


def test_a_configured_image_that_ecr_does_not_have_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []

    def refuse(**wanted: str) -> None:
        asked.append(wanted)
        raise RuntimeError("ImageNotFoundException")

    monkeypatch.setattr(account.aws.ecr, "get_image", refuse)
    image = f"123456789012.dkr.ecr.eu-central-1.amazonaws.com/team/loraserve:v1@{OTHER_DIGEST}"
    (told,) = account.check_image(image)
    assert "ImageNotFoundException" in told
    assert (asked[0]["repository_name"], asked[0]["image_digest"]) == ("team/loraserve", OTHER_DIGEST)
    assert not list(account.check_image(f"ghcr.io/team/loraserve@{OTHER_DIGEST}"))
    assert not list(account.check_image(None))


def test_a_run_that_only_checks_writes_what_it_found_and_declares_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, program = tmp_path / "report.json", Program()
    monkeypatch.setenv(REPORT_VARIABLE, str(report))
    with pytest.raises(pulumi.RunError, match="nothing was declared"):
        run(
            "dev",
            program=program,
            quotas={"L-DB2E81BA": 4},
            adapters=[ONE],
            last_outputs=BUCKET,
            published={KEY: OTHER_DIGEST},
        )
    found = {check.name: check for check in from_json(report.read_text())}
    assert found["vCPU quotas"].verdict is CheckVerdict.WARN
    assert found["catalog"].verdict is CheckVerdict.FAIL
    assert {name for name, check in found.items() if check.verdict is CheckVerdict.PASS} >= {
        "settings",
        "account",
        "zones",
        "cost",
    }
    assert program.resources == []
    assert program.messages == []


@pytest.fixture
def stack_folder(tmp_path: Path) -> Path:
    """With a stack `dev` whose API takes one range."""
    document = yaml.safe_load((CHECKOUT / "Pulumi.dev.yaml").read_text())
    document["config"]["loraserve:publicAccessCidrs"] = ["203.0.113.0/24"]
    (tmp_path / "Pulumi.dev.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "Pulumi.yaml").write_text((CHECKOUT / "Pulumi.yaml").read_text())
    return tmp_path


def programs(folder: Path, **scripts: str) -> dict[str, str]:
    """A PATH of these commands alone."""
    place = folder / "bin"
    place.mkdir()
    for name, script in scripts.items():
        (place / name).write_text(f"#!/bin/sh\n{script}\n")
        (place / name).chmod(0o755)
    return {"PATH": str(place)}


def test_what_this_machine_lacks_is_told_with_what_to_install(
    stack_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stack_folder)
    monkeypatch.setattr(os, "environ", programs(stack_folder, aws="echo aws-cli/2.31"))
    assert main(["preflight", "--stack", "dev", "--address", "198.51.100.7"]) == 1
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["docker"].startswith("FAIL")
    assert "docker is not installed; " in lines["docker"]
    assert "install Docker with buildx" in lines["docker"]
    assert lines["aws"].startswith("PASS")
    assert "198.51.100.7 is not within publicAccessCidrs (203.0.113.0/24): add 198.51.100.7/32" in lines["own"]
    assert lines["pulumi"].startswith("FAIL")
    assert "download-install" in lines["pulumi"]


def test_a_tool_that_fails_is_told_in_its_own_words(
    stack_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stack_folder)
    docker = 'echo "docker: unknown command: docker buildx" >&2; exit 1'
    monkeypatch.setattr(os, "environ", programs(stack_folder, aws="echo aws-cli/2.31", docker=docker))
    assert main(["preflight", "--stack", "dev", "--address", "203.0.113.9"]) == 1
    told = capsys.readouterr().out.splitlines()[0]
    assert "`docker buildx version` fails (docker: unknown command: docker buildx); the stack builds" in told


def test_the_programs_findings_follow_those_of_the_machine(
    stack_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = to_json([Check("zones", CheckVerdict.PASS, "a, b"), Check("quotas", CheckVerdict.WARN, "few")])
    monkeypatch.chdir(stack_folder)
    path = programs(
        stack_folder,
        aws="echo aws-cli/2.31",
        docker="echo buildx v0.30",
        pulumi=f"printf '%s' '{findings}' > \"$LORASERVE_PREFLIGHT\"; exit 255",
    )
    monkeypatch.setattr(os, "environ", path)
    assert main(["preflight", "--stack", "dev", "--address", "203.0.113.9", "--json"]) == 0
    found = [(check["name"], check["verdict"]) for check in json.loads(capsys.readouterr().out)]
    assert found[:3] == [("docker", "pass"), ("aws CLI", "pass"), ("own address", "pass")]
    assert found[3:] == [("state", "pass"), ("zones", "pass"), ("quotas", "warn")]


def test_a_state_that_cannot_be_read_is_told_in_pulumis_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preflight.shutil, "which", lambda _: "pulumi")
    refusal = subprocess.CompletedProcess([], 255, "", "error: no stack named 'dev' found\n")
    (check,) = preflight._program("dev", tmp_path, lambda *_, **__: refusal)
    assert check.verdict is CheckVerdict.FAIL
    assert "no stack named 'dev' found" in check.found
