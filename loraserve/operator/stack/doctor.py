"""`loraserve doctor`: what a bug report needs, in one archive, without secrets: versions, settings, and of a cluster what runs in
it, its events and its last logs."""

from __future__ import annotations

import base64
import io
import json
import os
import platform
import re
import subprocess
import tarfile
from binascii import Error as NotBase64
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from loraserve.contract.addresses import GATEWAY, MONITORING_NAMESPACE, SERVING_NAMESPACE, VLLM
from loraserve.errors import LoraserveError
from loraserve.operator.access.kubectl import Kubectl, KubectlFailed
from loraserve.operator.access.redact import HIDDEN, redact
from loraserve.operator.stack import status

LOG_LINES = 500
_SECONDS = 30
_TOOLS = (
    ("pulumi", "version"),
    ("kubectl", "version", "--client"),
    ("aws", "--version"),
    ("docker", "version", "--format", "{{.Client.Version}}"),
)
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS", re.IGNORECASE)
_HIDDEN_KEYS = {
    "secure",
    "sha256",
    "hubtoken",
    "alerting",
    "encryptionsalt",
    "encryptedkey",
    "secretsprovider",
    "allowedaccountids",
}


def run(stack: str, folder: Path, kubectl: Kubectl | None, target: Path) -> list[str]:
    """Writes the archive, for its owner's eyes only, and returns the names in it. `folder` has the stack's file."""
    known = [*_of_environment(os.environ), *(_of_cluster(kubectl) if kubectl else ())]
    texts = {name: redact(_asked(ask), known) for name, ask in _sources(stack, folder, kubectl)}
    with (
        os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file,
        tarfile.open(fileobj=file, mode="w:gz") as archive,
    ):
        for name, text in texts.items():
            entry, content = tarfile.TarInfo(f"loraserve-{stack}/{name}"), text.encode()
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return list(texts)


def _sources(stack: str, folder: Path, kubectl: Kubectl | None) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "versions.txt", _versions
    yield "settings.yaml", lambda: settings(folder / f"Pulumi.{stack}.yaml")
    if not kubectl:
        return
    yield "status.json", lambda: json.dumps(status.read(kubectl, SERVING_NAMESPACE).plain(), indent=2, default=str)
    yield "nodes.txt", lambda: kubectl.run("get", "nodes", "--output=wide")
    for namespace in (SERVING_NAMESPACE, MONITORING_NAMESPACE):
        there = ("--namespace", namespace)
        yield (
            f"{namespace}/pods.txt",
            lambda there=there: kubectl.run("get", "pods,deployments,services", "--output=wide", *there),
        )
        yield (
            f"{namespace}/events.txt",
            lambda there=there: kubectl.run("get", "events", "--sort-by=.lastTimestamp", *there),
        )
    for app in (GATEWAY, VLLM):
        yield (
            f"{SERVING_NAMESPACE}/{app}.log",
            lambda app=app: kubectl.run(
                "logs",
                f"--selector=app={app}",
                "--all-containers",
                "--prefix",
                f"--tail={LOG_LINES}",
                "--namespace",
                SERVING_NAMESPACE,
            ),
        )


def _asked(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except (LoraserveError, OSError, ValueError, KeyError) as error:
        return f"not to be had: {error}\n"


def _versions() -> str:
    lines = [f"Python {platform.python_version()} on {platform.platform()}"]
    for package in ("loraserve", "boto3", "pydantic", "pulumi"):
        try:
            lines.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{package} is not installed as a package")
    for command in _TOOLS:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
            lines.append(f"{command[0]}: {(done.stdout or done.stderr).strip()}")
        except (OSError, subprocess.SubprocessError) as error:
            lines.append(f"{command[0]}: {error}")
    return "\n".join(lines) + "\n"


def settings(file: Path) -> str:
    """A stack file whose secrets, digests of keys and account are hidden."""
    try:
        return yaml.safe_dump(_masked(yaml.safe_load(file.read_text(encoding="utf-8"))), sort_keys=False)
    except yaml.YAMLError:
        return f"{file} is no YAML\n"


def _masked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: HIDDEN if _is_hidden(str(key)) else _masked(item) for key, item in value.items()}
    return [_masked(item) for item in value] if isinstance(value, list) else value


def _is_hidden(key: str) -> bool:
    return key.rpartition(":")[2].lower() in _HIDDEN_KEYS


def _of_environment(variables: Mapping[str, str]) -> list[str]:
    return [value for name, value in variables.items() if _SECRET_NAME.search(name)]


def _of_cluster(kubectl: Kubectl) -> Iterator[str]:
    """The values of our Secrets, so that they are found wherever they stand; in clear and as Kubernetes has them."""
    for namespace in (SERVING_NAMESPACE, MONITORING_NAMESPACE):
        try:
            found = json.loads(kubectl.run("get", "secrets", "--output=json", "--namespace", namespace))["items"]
        except (KubectlFailed, ValueError, KeyError):
            continue
        for encoded in (value for one in found for value in (one.get("data") or {}).values()):
            yield encoded
            try:
                yield base64.b64decode(encoded, validate=True).decode()
            except (NotBase64, UnicodeDecodeError):
                continue
