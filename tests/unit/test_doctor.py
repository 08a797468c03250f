"""`loraserve doctor`: an archive for a bug report, into which no secret gets, wherever it stood."""

from __future__ import annotations

import base64
import json
import tarfile
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from loraserve.contract.keys import create_key
from loraserve.operator.access.kubectl import Kubectl, KubectlFailed
from loraserve.operator.access.redact import redact
from loraserve.operator.stack import doctor

KEY, ENTRY = create_key("team-a", ("*",), None)
SECRETS = {
    "a tenant's key": KEY,
    "vLLM's key, which has no look": "plain-password-of-vllm",
    "an AWS secret": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "an AWS key id": "ASIAIOSFODNN7EXAMPLE",
    "a session token": "IQoJb3JpZ2luX2VjEJv" + "aB3/" * 40,
    "a hub token": "hf_abcdefghijklmnopqrstuvwxyz012345",
    "Pulumi's token": "pul-0123456789abcdef0123456789abcdef01234567",
    "a JWT": "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ3b3JrZmxvdy1zYSJ9.c2lnbmF0dXJl",
    "a passphrase": "correct-horse-battery",
    "a private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
}
IN_CLUSTER = SECRETS["vLLM's key, which has no look"]
IN_ENVIRONMENT = SECRETS["a passphrase"]
EVERYTHING = "\n".join(f"{name}: {secret} (once more: '{secret}')" for name, secret in SECRETS.items())
DIGEST = "sha256:" + "0123456789abcdef" * 4


class Cluster:
    """Answers every question with every secret."""

    def run(self, *arguments: str) -> str:
        if arguments[:2] == ("get", "secrets"):
            encoded = base64.b64encode(IN_CLUSTER.encode()).decode()
            return json.dumps({"items": [{"data": {"api-key": encoded, "binary": "/w=="}}]})
        if arguments[:2] == ("get", "pods") and "--selector" in arguments:
            raise KubectlFailed(f"kubectl get: {EVERYTHING}")
        return f"{DIGEST}\n{EVERYTHING}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    entry = ENTRY.model_dump(mode="json", by_alias=True)
    config: dict[str, Any] = {
        "aws:allowedAccountIds": ["111122223333"],
        "loraserve:hubToken": {"secure": "v1:c2VjcmV0:Y2lwaGVy"},
        "loraserve:gatewayKeys": [entry],
        "loraserve:gpuMaxSize": 2,
    }
    config |= {f"loraserve:note{number}": secret for number, secret in enumerate(SECRETS.values())}
    (tmp_path / "Pulumi.dev.yaml").write_text(yaml.safe_dump({"encryptionsalt": "v1:c2FsdA==:x", "config": config}))
    monkeypatch.setattr(doctor, "_TOOLS", (("echo", EVERYTHING),))
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", IN_ENVIRONMENT)
    return tmp_path


def bundled(folder: Path, kubectl: Any) -> dict[str, str]:
    target = folder / "bundle.tar.gz"
    names = doctor.run("dev", folder, cast(Kubectl, kubectl), target)
    assert target.stat().st_mode & 0o077 == 0
    with tarfile.open(target) as archive:
        files = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        found = {name: file.read().decode() for name, file in files.items() if file}
    assert list(found) == [f"loraserve-dev/{name}" for name in names]
    return found


def test_no_secret_gets_into_the_bundle_from_any_source(folder: Path) -> None:
    found = bundled(folder, Cluster())
    assert len(found) == 10
    for name, text in found.items():
        for kind, secret in SECRETS.items():
            for line in secret.splitlines():
                assert line.startswith("-----") or line not in text, f"{kind} in {name}"
        assert base64.b64encode(IN_CLUSTER.encode()).decode() not in text
        assert ENTRY.sha256 not in text
        assert not any(part in text for part in ("111122223333", "Y2lwaGVy", "c2FsdA"))


def test_what_helps_stays(folder: Path) -> None:
    found = bundled(folder, Cluster())
    assert "loraserve:gpuMaxSize: 2" in found["loraserve-dev/settings.yaml"]
    assert "tenant: team-a" in found["loraserve-dev/settings.yaml"]
    assert DIGEST in found["loraserve-dev/ml-models/vllm.log"]
    assert ENTRY.id in found["loraserve-dev/nodes.txt"], "which key it was, is told by its public part"
    assert "not to be had: kubectl get" in found["loraserve-dev/status.json"]


def test_without_a_context_no_cluster_is_asked(folder: Path) -> None:
    assert [name.partition("/")[2] for name in bundled(folder, None)] == ["versions.txt", "settings.yaml"]


@pytest.mark.parametrize(
    "harmless",
    [
        DIGEST,
        "urn:pulumi:dev::loraserve::kubernetes:apps/v1:Deployment::vllm",
        "gateway-7d9c5b6f4-x2x9k 2/2 Running 0 3h 10.0.3.17 ip-10-0-3-17.eu-central-1.compute.internal",
        "requests 1,204 tokens 33,812 at 12.5 per second",
        "loraserve-dev-adapters-0123abc/llm-models/mistral-7b-aws-rag-qa/v1/adapter_model.safetensors",
    ],
)
def test_what_is_no_secret_is_left_alone(harmless: str) -> None:
    assert redact(harmless) == harmless
