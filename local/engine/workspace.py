"""The real Pulumi engine on this machine: its CLI, the plugins, a file backend, and this project as the CLI sees it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from infra.names import PROJECT
from local.engine import plugins
from local.engine.cloud import Cloud
from local.paths import CHECKOUT
from local.tools.toolchain import Tool, ensure

_PASSPHRASE = "local"
"""Secrets of a local stack guard nothing beyond this machine's emulated AWS."""


class Cluster(Protocol):
    """A Kubernetes that can be reached."""

    @property
    def kubeconfig(self) -> Path: ...


def prepare(state: Path, user_plugins: Path | None = None) -> None:
    """Installs the CLI and the plugins for the state folder; safe to repeat.

    `user_plugins` is the user's `PULUMI_HOME`, whose real plugins are preferred where they can do the work here.
    """
    plugins.install(state / "pulumi", user_plugins)
    (state / "backend").mkdir(parents=True, exist_ok=True)
    link = cli(state)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(ensure(Tool.PULUMI)[Tool.PULUMI])


def cli(state: Path) -> Path:
    """The Pulumi CLI that `prepare` put there."""
    return state / "cli" / "bin" / "pulumi"


def restore_checkpoint(state: Path, stack: str) -> bool:
    """Puts the copy before it in the place of a state that was cut short by a kill, and says whether it did.

    The file backend does not write atomically, but keeps the previous state beside each. Attributes that were cut short
    go: without them it reads the state, with them it stops.
    """
    checkpoint = state / "backend" / ".pulumi" / "stacks" / PROJECT / f"{stack}.json"
    previous = checkpoint.with_name(f"{checkpoint.name}.bak")
    for attributes in (path.with_name(f"{path.name}.attrs") for path in (checkpoint, previous)):
        if not _is_json(attributes):
            attributes.unlink(missing_ok=True)
    if not checkpoint.exists() or _is_json(checkpoint) or not _is_json(previous):
        return False
    shutil.copyfile(previous, checkpoint)
    return True


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def lay_out_project(folder: Path, virtual_environment: str | Path = sys.prefix) -> None:
    """A project folder that runs this checkout's program; its stack files may be written without touching the checkout."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in CHECKOUT.iterdir():
        if not entry.name.startswith((".", "Pulumi.")):
            link = folder / entry.name
            link.unlink(missing_ok=True)
            link.symlink_to(entry)
    project = _load(CHECKOUT / "Pulumi.yaml")
    project["runtime"]["options"]["virtualenv"] = str(virtual_environment)
    (folder / "Pulumi.yaml").write_text(yaml.safe_dump(project))


def stack_file(folder: Path, stack: str) -> Path:
    """Of the project in `folder`."""
    return folder / f"Pulumi.{stack}.yaml"


def write_stack_file(folder: Path, stack: str, changes: Mapping[str, Any]) -> bool:
    """The stack file as shipped, with these keys changed; a key with a namespace is taken as it is.

    What the CLI keeps in it (the salt of its secrets) stays. Returns whether it differs from what it said before.
    """
    path = stack_file(folder, stack)
    before = _load(path)
    named = {key if ":" in key else f"{PROJECT}:{key}": value for key, value in changes.items()}
    after = before | {"config": shipped_config(stack) | named}
    path.write_text(yaml.safe_dump(after))
    return before != after


def shipped_config(stack: str) -> dict[str, Any]:
    """What a stack file says as shipped, by full key; nothing of a stack that has none."""
    return _load(CHECKOUT / f"Pulumi.{stack}.yaml").get("config", {})


def environment(state: Path, cloud: Cloud, cluster: Cluster) -> dict[str, str]:
    """What the CLI and its plugins need to work on this stack and on nothing else of the machine's."""
    foreign = ("AWS_", "PULUMI_", "KUBE")
    kept: Mapping[str, str] = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return {
        **kept,
        **cloud.environment,
        "HELM_CACHE_HOME": str(state / "helm"),
        "KUBECONFIG": str(cluster.kubeconfig),
        "LORASERVE_KUBECONFIG": str(cluster.kubeconfig),
        "LORASERVE_PYTHON": sys.executable,
        "PULUMI_BACKEND_URL": f"file://{state / 'backend'}",
        "PULUMI_CONFIG_PASSPHRASE": _PASSPHRASE,
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        "PULUMI_HOME": str(state / "pulumi"),
        # The provider that is built here takes no setting for it yet.
        "PULUMI_K8S_ENABLE_PATCH_FORCE": "true",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        # Without bytecode each plugin compiles its SDK anew at every start.
        "PYTHONDONTWRITEBYTECODE": "",
    }


def _load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text()) if path.exists() else {}
