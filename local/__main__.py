"""`make up`, `make down` and `make status`: this project's `local` stack on one machine.

State lives in one folder, `$LORASERVE_STATE` or `$XDG_STATE_HOME/loraserve`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kubernetes import client, config
from rich.console import Console

from local import engine, nodes, receipt
from local.cloud import Cloud, CloudLostError
from local.control_plane import ControlPlane
from local.processes import ProcessError, locked
from local.toolchain import Tool, ToolchainError, ensure

STACK = "local"
_console = Console(highlight=False, soft_wrap=True)


def state_folder() -> Path:
    """Where everything that the local stack writes lies."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(os.environ.get("LORASERVE_STATE") or Path(home) / "loraserve")


def up() -> None:
    """Starts what is missing and applies the program. Safe to repeat, also after a crash."""
    state = state_folder()
    with _step("tools (found, or built once)"):
        tools = ensure(*Tool)
        engine.prepare(state, Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi"))
    with _step("Kubernetes control plane"):
        control_plane = ControlPlane.start(state / "cluster")
        api = config.new_client_from_config(str(control_plane.kubeconfig))
        for instance, name in ((nodes.SYSTEM, "system-1"), (nodes.GPU, "gpu-1")):
            nodes.register(client.CoreV1Api(api), instance, name)
        nodes.apply_daemon_sets(client.AppsV1Api(api))
    with _step("emulated AWS"):
        cloud = Cloud.start(state / "aws", engine.stack_region(STACK))
    pulumi = _Pulumi(state, cloud, control_plane)
    with _step("pulumi up --stack local"):
        pulumi.take_over()
        pulumi.run("up", "--yes", "--skip-preview", "--suppress-outputs")
    _console.print(f"\nThe local stack is up; its nodes are simulated, so no model answers. State: {state}")
    _console.print(f"  export KUBECONFIG={control_plane.kubeconfig}")
    _console.print(f"  {tools[Tool.KUBECTL]} get pods --all-namespaces --output wide")
    _console.print("  make down    # destroys it and shows that nothing is left")


def down() -> None:
    """Destroys the stack, stops everything, removes the state, and shows a receipt."""
    state = state_folder()
    if not state.exists():
        _console.print("Nothing to do: there is no local stack.")
        return
    left: list[str] = []
    control_plane = ControlPlane.load(state / "cluster")
    cloud = _running_cloud(state)
    if cloud and control_plane:
        control_plane = ControlPlane.start(state / "cluster")  # repairs what a crash has stopped
        pulumi = _Pulumi(state, cloud, control_plane)
        with _step("pulumi destroy --stack local"):
            pulumi.take_over()
            count = pulumi.resource_count()
            pulumi.run("destroy", "--yes", "--skip-preview")
        left = receipt.left_behind(cloud, control_plane)
        _console.print(f"  {count} resources existed; left: {', '.join(left) or 'nothing'}")
    with _step("stopping servers, removing the state folder"):
        for server in (cloud, control_plane):
            if server:
                server.stop()
        shutil.rmtree(state)
    if left:
        raise SystemExit("`pulumi destroy` left something; here it is gone with the emulated AWS, but please report it")


def status() -> None:
    """Says what runs and what the stack put out."""
    state = state_folder()
    control_plane = ControlPlane.load(state / "cluster")
    cloud = _running_cloud(state)
    stopped = control_plane.stopped_parts if control_plane else []
    cluster = f"stopped: {', '.join(stopped)} (`make up` repairs it)" if stopped else "runs"
    _console.print(f"Kubernetes: {cluster if control_plane else 'not there (`make up` starts it)'}")
    _console.print(f"AWS:        {'runs' if cloud else 'not there (`make up` starts it)'}")
    if cloud and control_plane and not stopped:
        pulumi = _Pulumi(state, cloud, control_plane)
        _console.print(f"Resources:  {pulumi.resource_count()}")
        pulumi.run("stack", "output")


class _Pulumi:
    """The CLI on the local stack."""

    def __init__(self, state: Path, cloud: Cloud, control_plane: ControlPlane) -> None:
        self._cli = str(engine.cli(state))
        self._project = state / "project"
        self._environment = engine.environment(state, cloud, control_plane)
        engine.lay_out_project(self._project)
        engine.write_stack_file(self._project, STACK, {})

    def take_over(self) -> None:
        """Makes the stack where there is none, and takes up after an update that was killed (docs/operations.md)."""
        self._call("stack", "select", "--create", STACK)
        subprocess.run(
            [self._cli, "cancel", "--yes", "--stack", STACK],
            cwd=self._project,
            env=self._environment,
            capture_output=True,
        )
        export = self._call("stack", "export", "--stack", STACK)
        if json.loads(export)["deployment"].get("pending_operations"):
            recover = [sys.executable, "-m", "loraserve", "recover", "--yes"]
            subprocess.run(recover, cwd=engine.CHECKOUT, env=self._environment, input=export, text=True, check=False)
            self._call("refresh", "--yes", "--skip-preview", "--clear-pending-creates", "--stack", STACK)

    def run(self, *arguments: str) -> None:
        """Shows the CLI's own output; a failure ends this program with the CLI's message above it."""
        code = subprocess.call([self._cli, *arguments, "--stack", STACK], cwd=self._project, env=self._environment)
        if code:
            raise SystemExit(f"`pulumi {arguments[0]}` failed, see above; correct it and run the same command again")

    def resource_count(self) -> int:
        exported = self._call("stack", "export", "--stack", STACK)
        resources = json.loads(exported or "{}").get("deployment", {}).get("resources") or []
        return sum(1 for resource in resources if resource.get("custom"))

    def _call(self, *arguments: str) -> str:
        answer = subprocess.run(
            [self._cli, *arguments], cwd=self._project, env=self._environment, capture_output=True, text=True
        )
        if answer.returncode:
            raise SystemExit(f"`pulumi {' '.join(arguments)}` failed: {answer.stderr.strip()}")
        return answer.stdout


def _running_cloud(state: Path) -> Cloud | None:
    try:
        return Cloud.load(state / "aws")
    except FileNotFoundError:
        return None
    except CloudLostError as error:
        _console.print(f"note: {error}")
        return None


@contextmanager
def _step(title: str) -> Iterator[None]:
    """Says what is done, and how long it took."""
    _console.print(f"==> {title}")
    started = time.monotonic()
    yield
    _console.print(f"    done in {time.monotonic() - started:.0f} s")


def main() -> None:
    """Entry point."""
    verbs: dict[str, Callable[[], None]] = {"up": up, "down": down, "status": status}
    parser = argparse.ArgumentParser(prog="local", description=__doc__)
    parser.add_argument("verb", choices=verbs)
    action = verbs[parser.parse_args().verb]
    try:
        if action is status:
            return status()
        lock = state_folder().with_suffix(".lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock, lambda: _console.print("waiting for another `make up` or `make down` to end ...")):
            action()
    except (ToolchainError, ProcessError, CloudLostError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
