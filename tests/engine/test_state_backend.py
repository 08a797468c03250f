"""docs/operations.md, "Where state and secrets live": its commands as they stand there, and what is done when things go wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from local.engine.cloud import Cloud
from local.paths import CHECKOUT
from local.tools.toolchain import Tool, ensure

SECRET = "hf_only-the-key-shows-this"
STATE = "states-of-all-stacks"
STACK_STATE = ".pulumi/stacks/loraserve/dev.json"
_REACHED = "s3ForcePathStyle=true"
"""What the emulated S3 needs beside the documented address: it has no name for each bucket."""

pytestmark = pytest.mark.skipif(not shutil.which("aws"), reason="needs the aws CLI")


@dataclass(frozen=True)
class Backend:
    """A project folder whose stack `dev` lies in the emulated S3."""

    cloud: Cloud
    project: Path
    environment: dict[str, str]

    def sh(self, script: str) -> str:
        """Raises AssertionError where a command fails."""
        done = subprocess.run(
            ["sh", "-ec", script], cwd=self.project, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def secret(self) -> str:
        return self.sh("pulumi config get hubToken --stack dev").strip()

    def kept(self) -> dict[str, bytes]:
        """Everything in the bucket, versions of before too."""
        s3 = self.cloud.client("s3")
        versions = s3.list_object_versions(Bucket=STATE)["Versions"]
        return {
            f"{one['Key']}@{one['VersionId']}": s3.get_object(Bucket=STATE, Key=one["Key"], VersionId=one["VersionId"])[
                "Body"
            ].read()
            for one in versions
        }


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Made by the documented commands."""
    folder = tmp_path_factory.mktemp("backend")
    project = folder / "project"
    project.mkdir()
    (project / "Pulumi.yaml").write_text("name: loraserve\nruntime: python\n")
    path = os.pathsep.join([str(ensure(Tool.PULUMI)[Tool.PULUMI].parent), os.environ["PATH"]])
    with Cloud.start(folder / "aws", "eu-central-1", die_with_parent=True) as cloud:
        own = {"HOME": str(folder), "PULUMI_HOME": str(folder / "home"), "PULUMI_SKIP_UPDATE_CHECK": "true"}
        backend = Backend(cloud, project, os.environ | cloud.environment | own | {"PATH": path, "STATE": STATE})
        backend.sh(documented())
        backend.sh(f"pulumi config set --secret hubToken {SECRET} --stack dev")
        yield backend


def documented() -> str:
    chapter = (CHECKOUT / "docs" / "operations.md").read_text().partition("## Where state and secrets live")[2]
    block = re.search(r"```sh\n(.*?)```", chapter, re.DOTALL)
    assert block
    script = block[1].replace("STATE=<your-state-bucket>", f"STATE={STATE}")
    return script.replace("s3://$STATE?region=", f"s3://$STATE?{_REACHED}&region=")


def test_the_documented_commands_make_a_backend_that_keeps_versions_and_shows_no_secret(backend: Backend) -> None:
    s3 = backend.cloud.client("s3")
    assert s3.get_bucket_versioning(Bucket=STATE)["Status"] == "Enabled"
    assert all(s3.get_public_access_block(Bucket=STATE)["PublicAccessBlockConfiguration"].values())
    assert backend.secret() == SECRET
    assert SECRET not in (backend.project / "Pulumi.dev.yaml").read_text()
    exported = backend.sh("pulumi stack export --stack dev")
    assert "awskms://alias/pulumi-secrets" in exported
    assert not [name for name, content in backend.kept().items() if SECRET.encode() in content]


def test_a_damaged_state_is_put_back_from_the_version_before(backend: Backend) -> None:
    s3, before = backend.cloud.client("s3"), backend.sh("pulumi stack export --stack dev")
    s3.put_object(Bucket=STATE, Key=STACK_STATE, Body=b'{"version":3,"check')
    with pytest.raises(AssertionError, match="failed to load checkpoint"):
        backend.sh("pulumi stack export --stack dev")
    versions = s3.list_object_versions(Bucket=STATE, Prefix=STACK_STATE)["Versions"]
    [good, *_] = [one["VersionId"] for one in versions if not one["IsLatest"] and one["Key"] == STACK_STATE]
    backend.sh(
        f'aws s3api get-object --bucket "$STATE" --key {STACK_STATE} --version-id {good} dev.json && '
        f'aws s3api put-object --bucket "$STATE" --key {STACK_STATE} --body dev.json'
    )
    assert backend.sh("pulumi stack export --stack dev") == before


def test_another_key_encrypts_anew_and_the_old_one_is_needed_no_more(backend: Backend) -> None:
    old = backend.sh(
        "aws kms describe-key --key-id alias/pulumi-secrets --query KeyMetadata.KeyId --output text"
    ).strip()
    backend.sh(
        "key=$(aws kms create-key --query KeyMetadata.KeyId --output text) && "
        'aws kms create-alias --alias-name alias/next --target-key-id "$key" && '
        'pulumi stack change-secrets-provider "awskms://alias/next?region=$AWS_REGION" --stack dev && '
        f"aws kms disable-key --key-id {old}"
    )
    assert "awskms://alias/next" in (backend.project / "Pulumi.dev.yaml").read_text()
    assert backend.secret() == SECRET


def test_a_stack_moves_to_another_backend_with_its_secrets(backend: Backend, tmp_path: Path) -> None:
    """Last: the project's folder is logged in there afterwards."""
    before = backend.sh("pulumi stack export --stack dev --file dev.json && cat dev.json")
    backend.sh(
        f'pulumi login "file://{tmp_path}" && '
        'pulumi stack init dev --secrets-provider="awskms://alias/next?region=$AWS_REGION" && '
        "pulumi stack import --file dev.json --stack dev"
    )
    assert (tmp_path / STACK_STATE).exists()
    assert backend.secret() == SECRET
    assert "awskms://alias/next" in before
