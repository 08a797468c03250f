"""A version goes from stack to stack: by its bytes, on an evaluation of these bytes, as a small diff."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from loraserve.catalog import adapters, base_weights, evaluations, lineage, listing
from loraserve.catalog.bucket import Bucket
from loraserve.catalog.bundle import BadBundle, Bundle, Candidate, digest_of_file, unpack
from loraserve.catalog.files import FileEntry
from loraserve.catalog.gate import inspect
from loraserve.catalog.manifest import AdapterManifest
from loraserve.catalog.versions import VersionId
from loraserve.contract.base_model import Mirror
from loraserve.contract.desired_state import Adapter
from loraserve.contract.evaluation import (
    BaseIdentity,
    Comparison,
    EvaluatedVersion,
    Override,
    Result,
    Verdict,
    verdict_key,
)
from loraserve.errors import LoraserveError
from loraserve.operator.access.pulumi import Pulumi
from loraserve.operator.access.terminal import stack_config_entry
from loraserve.operator.cli import main
from loraserve.operator.releases.promotion import NotPromoted, Stack, Terms, judge
from loraserve.planning import stack_file
from tests.stack_values import CHECKOUT
from tests.unit.adapters_and_vllm import HIDDEN, safetensors_of, write_adapter

pytest_plugins = ["tests.unit.catalog_fixtures"]
pytestmark = pytest.mark.usefixtures("few_clients")

BUCKETS = {"dev": "adapters-dev", "prod": "adapters-prod"}
MODEL, REVISION = "acme/tiny", "1" * 40
SHAPE = {
    "hiddenSize": HIDDEN,
    "intermediateSize": 32,
    "numHiddenLayers": 2,
    "numAttentionHeads": 1,
    "numKeyValueHeads": 1,
    "headDim": HIDDEN,
    "vocabSize": 512,
    "weightsGib": 0.1,
}
ROWS = f"sha256:{'d' * 64}"
NOW = datetime.now(UTC)
Run = Callable[..., str]


@pytest.fixture
def buckets(aws: Any) -> dict[str, Bucket]:
    for name in BUCKETS.values():
        aws.create_bucket(Bucket=name)
        for item in aws.list_objects_v2(Bucket=name).get("Contents", []):
            aws.delete_object(Bucket=name, Key=item["Key"])
    return {stack: Bucket(name, pause_seconds=0) for stack, name in BUCKETS.items()}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout's stack files, both of one small base model; dev's account is prod's."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(CHECKOUT / "Pulumi.yaml", folder)
    for stack in BUCKETS:
        text = (CHECKOUT / f"Pulumi.{stack}.yaml").read_text()
        settings = {"baseModel": MODEL, "baseModelRevision": REVISION, "baseModelShape": SHAPE}
        settings |= {"privateAccessCidrs": ["192.168.0.0/24"], "acceptedBaseIds": ["mistralai/Mistral-7B-v0.1"]}
        settings |= {"baseModelHasChatTemplate": True}
        text += "".join(f"  loraserve:{key}: {json.dumps(value)}\n" for key, value in settings.items())
        (folder / f"Pulumi.{stack}.yaml").write_text(text)
    return folder


@pytest.fixture
def run(project: Path, buckets: dict[str, Bucket], capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str, code: int = 0) -> str:
        """What a person reads."""
        roles = {"promote": ("from-", "to-"), "rollback": ("to-",), "export": ("",), "import": ("",)}[words[0]]
        named = {"from-": "dev", "to-": "prod", "": "dev" if words[0] == "export" else "prod"}
        stacks = [
            word
            for role in roles
            for word in (f"--{role[:-1] or 'stack'}", named[role], f"--{role}bucket", BUCKETS[named[role]])
        ]
        preview = [] if words[0] == "export" else ["--no-preview"]
        exit_code = main([*words, *stacks, "--project", str(project), *preview])
        told = capfd.readouterr()
        assert exit_code == code, told.err
        return told.out + told.err

    return run


def name_in(project: Path, stack: str, *entries: Adapter) -> None:
    path = project / f"Pulumi.{stack}.yaml"
    lines = "".join(stack_config_entry(entry) + "\n" for entry in entries).splitlines()
    path.write_text(path.read_text() + "  loraserve:adapters:\n" + "".join(f"    {line}\n" for line in lines))


def published(bucket: Bucket, folder: Path, version: str = "v3", fill: bytes = b"\x03") -> Adapter:
    return adapters.publish(bucket, write_adapter(folder / version, fill=fill), "mistral-faq", version, "faq")


@pytest.fixture
def faq(buckets: dict[str, Bucket], project: Path, tmp_path: Path) -> Adapter:
    """What dev has run."""
    entry = published(buckets["dev"], tmp_path)
    name_in(project, "dev", entry)
    return entry


def verdict(entry: Adapter | None, low: Any = 0.01, **more: Any) -> Verdict:
    digest = entry.digest if entry else ROWS
    compared = {"data": ROWS, "rows": 900, "clusters": 900, "candidate_score": 0.8, "score": 0.75}
    interval = {"interval": (low, low + 0.04), "required_rows": (773, 1546), "small": False}
    primary = Comparison.model_validate(compared | interval | {"against": more.pop("against", None)})
    fields = {
        "candidate": EvaluatedVersion(name="faq", version="v3", digest=digest),
        "base": BaseIdentity(name=MODEL, revision=REVISION),
        "scorers": ROWS,
        "primary_score": "exact_match",
        "margin": 0.02,
        "error_rate": 0.05,
        "primary": primary,
        "result": primary.result(0.02),
        "evaluated_at": NOW - timedelta(days=2),
    }
    return Verdict.model_validate(fields | more)


def adapters_of(project: Path, stack: str = "prod") -> list[tuple[str, int | None]]:
    return [
        (entry.version, entry.canary_percent) for entry in stack_file.read(project / f"Pulumi.{stack}.yaml").adapters
    ]


@pytest.fixture
def passed(buckets: dict[str, Bucket], faq: Adapter) -> Verdict:
    found = verdict(faq)
    evaluations.write_verdict(buckets["dev"], found)
    return found


def keys(bucket: str) -> set[str]:
    return {item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])}


def test_a_version_that_passed_is_copied_named_and_recorded(
    run: Run, buckets: dict[str, Bucket], project: Path, faq: Adapter, passed: Verdict, tmp_path: Path
) -> None:
    lineage.published(buckets["dev"], VersionId.of_adapter(faq), faq.digest, lineage.Origin(code="c0ffee"))

    told = run("promote", "faq@v3")

    assert '+    - name: "faq"' in told
    assert "-" not in {line[0] for line in told.splitlines()[2:] if line}, "the diff only adds"
    assert stack_file.read(project / "Pulumi.prod.yaml").adapters == (faq,)
    assert adapters.fetch(buckets["prod"], faq, tmp_path).is_dir()
    assert evaluations.read_verdicts(buckets["prod"], "faq", "v3") == [passed]
    made, promoted = lineage.read(buckets["prod"], VersionId.of_adapter(faq))
    assert made.origin == lineage.Origin(code="c0ffee"), "where it comes from comes along"
    assert (promoted.event, promoted.from_stack, promoted.to_stack) == ("promoted", "dev", "prod")
    assert promoted.principal == "arn:aws:sts::123456789012:user/moto"
    assert len(promoted.evaluations) == 1

    before = keys(BUCKETS["prod"])
    assert "nothing changes" in run("promote", "faq@v3")
    assert keys(BUCKETS["prod"]) == before


def test_an_interrupted_copy_is_taken_up_again(
    run: Run, buckets: dict[str, Bucket], faq: Adapter, passed: Verdict
) -> None:
    half = VersionId.of_adapter(faq).key("adapter_config.json")
    buckets["prod"].create(half, buckets["dev"].read(half, 1 << 20))
    run("promote", "faq@v3")
    listing.verify(buckets["prod"], listing.find(buckets["prod"], "mistral-faq", "v3"), lambda *_: None)


def blocked(run: Run, project: Path, *more: str) -> str:
    """The one line of the refusal; nothing was copied, and nothing written."""
    before, file = keys(BUCKETS["prod"]), (project / "Pulumi.prod.yaml").read_bytes()
    told = run("promote", "faq@v3", *more, code=1)
    assert keys(BUCKETS["prod"]) == before
    assert (project / "Pulumi.prod.yaml").read_bytes() == file
    [line] = [line for line in told.splitlines() if line.startswith("loraserve: ")]
    return line


def test_a_tampered_file_blocks(run: Run, aws: Any, project: Path, faq: Adapter, passed: Verdict) -> None:
    key = VersionId.of_adapter(faq).key("adapter_model.safetensors")
    content = aws.get_object(Bucket=BUCKETS["dev"], Key=key)["Body"].read()
    aws.put_object(Bucket=BUCKETS["dev"], Key=key, Body=content[:-1] + b"\x7f")
    assert f"{key} holds other bytes than were published" in blocked(run, project)


def test_another_manifest_than_dev_names_blocks(
    run: Run, aws: Any, project: Path, faq: Adapter, passed: Verdict
) -> None:
    key = VersionId.of_adapter(faq).key("manifest.json")
    content = aws.get_object(Bucket=BUCKETS["dev"], Key=key)["Body"].read()
    aws.put_object(Bucket=BUCKETS["dev"], Key=key, Body=content + b" ")
    assert "the stack config pins" in blocked(run, project)


FAQ = Adapter.model_validate(
    {"name": "faq", "model": "mistral-faq", "version": "v3", "digest": f"sha256:{'3' * 64}", "rank": 8}
    | {"targetModules": ["q_proj"], "sizeBytes": 9}
)


@pytest.fixture
def judged(project: Path, buckets: dict[str, Bucket]) -> Callable[..., Verdict]:
    def judged(*verdicts: Verdict) -> Verdict:
        """What the evaluations of FAQ are worth for prod."""
        settings = stack_file.read(project / "Pulumi.prod.yaml")
        prod = Stack(Pulumi(project, "prod"), project / "Pulumi.prod.yaml", settings, buckets["prod"], {})
        return judge(Candidate(adapter=FAQ), verdicts, prod, Terms(timedelta(days=30)), "s3://adapters-dev/")

    return judged


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"entry": None}, r"is of other bytes \(sha256:dddd"),
        ({"base": BaseIdentity(name=MODEL, revision="2" * 40)}, rf"revision 2+\), prod serves {MODEL} \(revision 1"),
        ({"base": BaseIdentity(name="other/tiny", revision=REVISION)}, "was evaluated on other/tiny"),
        ({"base": BaseIdentity(name=MODEL, mirror=ROWS)}, r"was evaluated on acme/tiny \(mirror sha256:dddd"),
        ({"evaluated_at": NOW - timedelta(days=31)}, "and counts for 30 days"),
        ({"evaluated_at": NOW + timedelta(days=1)}, "and counts for 30 days"),
        ({"low": -0.2}, r"did not pass its evaluation \(fail\): exact_match 0.800 against 0.750"),
        ({"low": -0.03}, r"did not pass its evaluation \(inconclusive\)"),
    ],
    ids=["foreign", "revision", "base", "mirror", "stale", "of tomorrow", "worse", "inconclusive"],
)
def test_an_evaluation_that_does_not_speak_for_it_blocks_with_one_line(
    judged: Callable[..., Verdict], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(NotPromoted, match=reason) as refused:
        judged(verdict(**{"entry": FAQ} | changes))
    assert "\n" not in str(refused.value)


def test_the_newest_evaluation_of_these_bytes_decides(judged: Callable[..., Verdict]) -> None:
    passed, failed = verdict(FAQ), verdict(FAQ, low=-0.2, evaluated_at=NOW)
    with pytest.raises(NotPromoted, match="fail"):
        judged(passed, failed)
    assert judged(passed, verdict(None, evaluated_at=NOW)) == passed


def test_an_override_covers_neither_other_bytes_nor_an_old_evaluation(judged: Callable[..., Verdict]) -> None:
    override = {"low": -0.2, "override": Override(reason="trust me", by="me")}
    for useless in (verdict(None, **override), verdict(FAQ, **override, evaluated_at=NOW - timedelta(days=40))):
        with pytest.raises(NotPromoted):
            judged(useless)
    assert judged(verdict(FAQ, **override)).override


def test_production_has_to_serve_what_it_was_compared_with(judged: Callable[..., Verdict], project: Path) -> None:
    v2 = FAQ.model_copy(update={"version": "v2", "digest": f"sha256:{'2' * 64}"})
    name_in(project, "prod", v2)
    with pytest.raises(NotPromoted, match="was compared with the base model, prod serves faq@v2 by now"):
        judged(verdict(FAQ))
    compared = verdict(FAQ, against=EvaluatedVersion(name="faq", version="v2", digest=v2.digest))
    assert judged(compared) == compared


def test_a_missing_evaluation_blocks(run: Run, project: Path, faq: Adapter) -> None:
    assert "faq@v3 has no evaluation in s3://adapters-dev/" in blocked(run, project)


def test_a_forged_evaluation_blocks(run: Run, aws: Any, project: Path, faq: Adapter, passed: Verdict) -> None:
    better = verdict(faq, low=0.1, evaluated_at=NOW).to_json()
    aws.put_object(Bucket=BUCKETS["dev"], Key=verdict_key("faq", "v3", ROWS), Body=better)
    assert "is no verdict that `loraserve evaluate` wrote on faq@v3" in blocked(run, project)
    aws.delete_object(Bucket=BUCKETS["dev"], Key=verdict_key("faq", "v3", ROWS))
    assert Result.PASS in run("promote", "faq@v3", "--json")


def test_an_override_of_the_evaluation_comes_along_with_its_reason(
    run: Run, buckets: dict[str, Bucket], faq: Adapter
) -> None:
    overridden = verdict(faq, low=-0.2, override=Override(reason="v2 leaks names", by="arn:aws:iam::1:role/pipeline"))
    evaluations.write_verdict(buckets["dev"], overridden)

    assert "let through: v2 leaks names" in run("promote", "faq@v3")

    assert evaluations.read_verdicts(buckets["prod"], "faq", "v3") == [overridden]
    assert lineage.read(buckets["prod"], VersionId.of_adapter(faq))[-1].reason == "v2 leaks names"


def test_what_the_target_has_under_this_version_is_never_overwritten(
    run: Run, buckets: dict[str, Bucket], project: Path, passed: Verdict, tmp_path: Path
) -> None:
    published(buckets["prod"], tmp_path / "other", fill=b"\x09")
    assert "exists with other bytes; versions never change" in blocked(run, project)


def test_what_dev_has_not_run_is_not_promoted(run: Run, project: Path, passed: Verdict) -> None:
    assert "names no faq@v4 (of faq it has: v3)" in run("promote", "faq@v4", code=1)
    assert "names no version: say it as faq@v3" in run("promote", "faq", code=1)


def test_credentials_of_another_account_are_refused(run: Run, project: Path, passed: Verdict) -> None:
    path = project / "Pulumi.prod.yaml"
    path.write_text(path.read_text().replace('"123456789012"', '"999999999999"'))
    assert "these credentials are of account 123456789012" in blocked(run, project)


def test_each_account_has_its_profile(
    run: Run, buckets: dict[str, Bucket], project: Path, faq: Adapter, passed: Verdict, tmp_path: Path, monkeypatch: Any
) -> None:
    sts = boto3.client("sts")
    given = sts.assume_role(RoleArn="arn:aws:iam::111111111111:role/pipeline", RoleSessionName="ci")["Credentials"]
    (tmp_path / "credentials").write_text(
        f"[production]\naws_access_key_id={given['AccessKeyId']}\n"
        f"aws_secret_access_key={given['SecretAccessKey']}\naws_session_token={given['SessionToken']}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    path = project / "Pulumi.prod.yaml"
    path.write_text(path.read_text().replace('"123456789012"', '"111111111111"'))

    assert "~/.aws/config has no profile 'missing'" in blocked(run, project, "--to-profile", "missing")
    run("promote", "faq@v3", "--to-profile", "production")

    promoted = lineage.read(buckets["prod"], VersionId.of_adapter(faq))[-1]
    assert promoted.principal == "arn:aws:sts::111111111111:assumed-role/pipeline/ci"


@pytest.fixture
def v2(buckets: dict[str, Bucket], project: Path, faq: Adapter, tmp_path: Path) -> Adapter:
    """What prod serves, and v3 was compared with."""
    entry = published(buckets["prod"], tmp_path, "v2", b"\x02")
    name_in(project, "prod", entry)
    against = EvaluatedVersion(name="faq", version="v2", digest=entry.digest)
    evaluations.write_verdict(buckets["dev"], verdict(faq, against=against))
    return entry


def test_a_canary_first_then_all_callers_then_back(
    run: Run, buckets: dict[str, Bucket], project: Path, faq: Adapter, v2: Adapter
) -> None:
    before = (project / "Pulumi.prod.yaml").read_text()

    run("promote", "faq@v3", "--canary", "10")
    assert adapters_of(project) == [("v2", None), ("v3", 10)]
    run("rollback", "faq", "--reason", "slow")
    assert (project / "Pulumi.prod.yaml").read_text() == before

    run("promote", "faq@v3", "--canary", "10")
    run("promote", "faq@v3")
    assert adapters_of(project) == [("v3", None)]
    told = run("rollback", "faq", "--reason", "it invents names")
    assert "goes from faq@v3 back to faq@v2" in told
    assert (project / "Pulumi.prod.yaml").read_text() == before
    back = lineage.read(buckets["prod"], VersionId.of_adapter(faq))[-1]
    assert (back.event, back.restored, back.reason) == ("rolledBack", "v2", "it invents names")


def test_rollback_reads_the_bytes_that_it_brings_back(
    run: Run, aws: Any, project: Path, faq: Adapter, v2: Adapter
) -> None:
    run("promote", "faq@v3")
    key = VersionId.of_adapter(v2).key("adapter_model.safetensors")
    content = aws.get_object(Bucket=BUCKETS["prod"], Key=key)["Body"].read()
    aws.put_object(Bucket=BUCKETS["prod"], Key=key, Body=content[:-1] + b"\x7f")
    assert "holds other bytes than were published" in run("rollback", "faq", code=1)
    assert adapters_of(project) == [("v3", None)]


def test_rollback_without_a_promotion_wants_a_version(run: Run, project: Path, v2: Adapter) -> None:
    assert "name it with --version" in run("rollback", "faq", code=1)
    assert "holds no mistral-faq v1" in run("rollback", "faq", "--version", "v1", code=1)


def test_a_whole_model_is_promoted_the_same_way(
    run: Run, buckets: dict[str, Bucket], project: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors_of({"w": [4, 4]}))
    words = ["--bucket", BUCKETS["dev"], "--model", MODEL, "--version", "v2", "--code", "c0ffee"]
    assert main(["mirror", str(folder), *words]) == 0
    manifest, digest = listing.read_manifest(buckets["dev"], VersionId.of_base(MODEL, "v2"))
    mirror = Mirror(version="v2", digest=digest, size_bytes=manifest.size_bytes)
    dev = project / "Pulumi.dev.yaml"
    dev.write_text(dev.read_text() + f"  loraserve:baseModelMirror: {mirror.model_dump_json(by_alias=True)}\n")
    assert f"{MODEL}@v2 has no evaluation" in run("promote", f"{MODEL}@v2", code=1)
    whole = EvaluatedVersion(name=MODEL, version="v2", digest=digest)
    evaluations.write_verdict(buckets["dev"], verdict(None, candidate=whole, base=BaseIdentity(name="acme/start")))

    run("promote", f"{MODEL}@v2")

    assert stack_file.read(project / "Pulumi.prod.yaml").base_model_mirror == mirror
    base_weights.fetch(buckets["prod"], MODEL, mirror, tmp_path / "pod")
    events = [each.event for each in lineage.read(buckets["prod"], VersionId.of_base(MODEL, "v2"))]
    assert events == ["published", "promoted"]


@pytest.fixture
def bundle(run: Run, passed: Verdict, tmp_path: Path) -> tuple[Path, str]:
    file = tmp_path / "faq.tar"
    return file, run("export", "faq@v3", str(file)).splitlines()[0]


def test_an_export_overwrites_nothing(run: Run, bundle: tuple[Path, str]) -> None:
    assert "exists; name a new file" in run("export", "faq@v3", str(bundle[0]), code=1)


def test_a_bundle_takes_the_place_of_the_source_bucket(
    run: Run,
    aws: Any,
    buckets: dict[str, Bucket],
    project: Path,
    faq: Adapter,
    passed: Verdict,
    bundle: tuple[Path, str],
) -> None:
    for key in keys(BUCKETS["dev"]):
        aws.delete_object(Bucket=BUCKETS["dev"], Key=key)

    run("import", str(bundle[0]), "--digest", bundle[1])

    assert adapters_of(project) == [("v3", None)]
    listing.verify(buckets["prod"], listing.find(buckets["prod"], "mistral-faq", "v3"), lambda *_: None)
    assert evaluations.read_verdicts(buckets["prod"], "faq", "v3") == [passed]


def test_a_bundle_is_judged_as_a_promotion_is(
    run: Run, buckets: dict[str, Bucket], project: Path, faq: Adapter, tmp_path: Path
) -> None:
    digest = run("export", "faq@v3", str(tmp_path / "faq.tar")).splitlines()[0]
    assert "has no evaluation in" in run("import", str(tmp_path / "faq.tar"), "--digest", digest, code=1)
    assert not keys(BUCKETS["prod"])


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = write_adapter(tmp_path / "peft")
    files = {file: FileEntry.read(folder / file) for file in ("adapter_config.json", "adapter_model.safetensors")}
    manifest = AdapterManifest.of(**inspect(folder).model_dump(), files=files)
    (folder / "manifest.json").write_bytes(manifest.to_json())
    entry = manifest.entry("faq", "mistral-faq", "v3", manifest.digest)
    record = lineage.Record(event="published", at=NOW, digest=entry.digest, principal="arn:aws:iam::1:role/ci")
    Bundle(Candidate(adapter=entry), folder, (verdict(entry),), (record,)).pack(tmp_path / "faq.tar")
    return tmp_path / "faq.tar"


def taken_apart(file: Path, into: Path, digest: str | None = None) -> Bundle:
    into.mkdir()
    return unpack(file, digest or digest_of_file(file), into, lambda *_: None)


def forge(file: Path, change: Callable[[dict[str, bytes]], object], odd: tarfile.TarInfo | None) -> None:
    with tarfile.open(file) as tar:
        members = {member.name: (tar.extractfile(member) or io.BytesIO()).read() for member in tar}
    change(members)
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if odd:
            tar.addfile(odd)


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


WEIGHTS = "version/adapter_model.safetensors"


@pytest.mark.parametrize(
    ("change", "odd", "reason"),
    [
        (lambda m: m.update({WEIGHTS: m[WEIGHTS][:-1] + b"\x7f"}), None, "holds other bytes than its manifest says"),
        (lambda m: m.update({"version/../../escaped": b"x"}), None, "names no file of a version"),
        (lambda m: m.update({"version//etc/passwd": b"x"}), None, "names no file of a version"),
        (lambda m: m.update({"version/..": b"x"}), None, "names no file of a version"),
        (lambda m: m.update({"version/extra.py": b"x"}), None, "its manifest names"),
        (lambda m: m.pop(WEIGHTS), None, "its manifest names"),
        (lambda m: m.update({"version/manifest.json": b"{}"}), None, "the stack config pins"),
        (lambda m: m.pop("bundle.json"), None, "names no version"),
        (lambda m: m.pop(WEIGHTS), link(WEIGHTS, "/etc/passwd"), "which `loraserve export` does not make"),
        (lambda m: m.update({"evaluations/0.json": b"{}"}), None, "it is no verdict"),
        (lambda m: m.update({"lineage/0.json": b"{}"}), None, "is no record of lineage"),
    ],
    ids=[
        "bytes",
        "parent",
        "absolute",
        "dots",
        "extra",
        "missing",
        "manifest",
        "no index",
        "link",
        "verdict",
        "lineage",
    ],
)
def test_a_bundle_that_was_not_exported_so_is_refused(
    exported: Path, change: Callable[[dict[str, bytes]], object], odd: tarfile.TarInfo | None, reason: str
) -> None:
    """Even where its digest was announced."""
    assert taken_apart(exported, exported.with_name("good")).candidate.name == "faq"
    forge(exported, change, odd)
    with pytest.raises(LoraserveError, match=reason):
        taken_apart(exported, exported.with_name("forged"))
    assert not list(exported.parent.rglob("escaped"))


def test_another_file_than_was_announced_is_refused(exported: Path) -> None:
    with pytest.raises(BadBundle, match="it is not the bundle that was exported"):
        taken_apart(exported, exported.with_name("other"), ROWS)
    with pytest.raises(BadBundle, match="cannot be read: No such file"):
        taken_apart(exported.with_name("no-file"), exported.with_name("none"))


PULUMI = """#!/bin/sh
case "$1" in
stack) echo '{{"adapterBucket": "{bucket}", "evaluatorRole": "arn:aws:iam::123456789012:role/evaluator"}}' ;;
preview) echo "previewed $4 as $AWS_PROFILE"; exit {code} ;;
esac
"""


@pytest.mark.parametrize("code", [0, 255])
def test_buckets_are_asked_of_pulumi_and_the_edit_is_previewed(
    project: Path, buckets: dict[str, Bucket], passed: Verdict, tmp_path: Path, monkeypatch: Any, capfd: Any, code: int
) -> None:
    tool = tmp_path / "bin" / "pulumi"
    tool.parent.mkdir()
    tool.write_text(PULUMI.format(bucket=BUCKETS["prod"], code=code))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    writers = []

    def write(bucket: Bucket, _: Verdict) -> None:
        writers.append(bucket.principal())

    monkeypatch.setattr(evaluations, "write_verdict", write)

    words = ["promote", "faq@v3", "--from", "dev", "--from-bucket", BUCKETS["dev"], "--to", "prod"]
    assert main([*words, "--project", str(project)]) == bool(code)

    told = capfd.readouterr().err
    assert "previewed prod as" in told
    assert writers == ["arn:aws:sts::123456789012:assumed-role/evaluator/loraserve"], "nobody else may"
    assert ("its stack file is edited" in told) is bool(code)
    assert adapters_of(project) == [("v3", None)]
