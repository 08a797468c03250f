"""This project's own program and stack files under the real CLI, in a folder where a test may change the stack file."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kubernetes import client, config
from pulumi import automation

from infra import names
from local.cluster import simulated_nodes
from local.cluster.control_plane import ControlPlane
from local.engine import plugins, workspace
from local.engine.cloud import Cloud
from local.engine.receipt import left_behind
from tests.engine.chart_repository import RECEIPT, ChartRepository
from tests.stack_values import PRODUCTION_CHOICES

REGION = "eu-central-1"
T = TypeVar("T")
_LIMIT_S = 60


def eventually(look: Callable[[], T]) -> T:
    """The first true answer. Fails once the limit has passed."""
    deadline = time.monotonic() + _LIMIT_S
    while time.monotonic() < deadline:
        if answer := look():
            return answer
        time.sleep(0.2)
    raise AssertionError(f"nothing within {_LIMIT_S} s")


@dataclass
class World:
    """An emulated AWS, a control plane with one node of each group and a chart repository, for one test module."""

    folder: Path
    cloud: Cloud
    control_plane: ControlPlane
    charts: ChartRepository

    @classmethod
    def start(cls, folder: Path) -> World:
        control_plane = ControlPlane.start(folder / "cluster", die_with_parent=True)
        cloud = Cloud.start(folder / "aws", REGION, die_with_parent=True)
        world = cls(folder, cloud, control_plane, ChartRepository(folder / "charts"))
        simulated_nodes.register(world.core, simulated_nodes.SYSTEM, "system-1")
        simulated_nodes.register(world.core, simulated_nodes.GPU, "gpu-1")
        simulated_nodes.apply_daemon_sets(client.AppsV1Api(world.api))
        workspace.prepare(folder)
        return world

    def stop(self) -> None:
        plugins.end(self.folder / "pulumi")
        self.charts.stop()
        self.cloud.stop()
        self.control_plane.stop()

    @property
    def api(self) -> client.ApiClient:
        return config.new_client_from_config(str(self.control_plane.kubeconfig))

    @property
    def core(self) -> client.CoreV1Api:
        return client.CoreV1Api(self.api)

    def left_behind(self, stack: str) -> list[str]:
        """Everything that a destroyed stack could have made and that is still there, as `kind name`."""
        maps = self.plain(self.core.list_namespaced_config_map(names.SYSTEM_NAMESPACE))["items"]
        found = [map_["metadata"]["name"] for map_ in maps]
        charts = [f"chart {name}" for name in found if name.startswith(RECEIPT)]
        return [*left_behind(stack, self.cloud, self.control_plane), *charts]

    def plain(self, answer: Any) -> Any:
        """An answer of the Kubernetes client as plain dicts, spelled as in YAML."""
        return self.api.sanitize_for_serialization(answer)


@dataclass
class Changes:
    """What one run of the engine did: operation by `type name`, and all it printed."""

    operations: dict[str, str] = field(default_factory=dict)
    output: str = ""

    @property
    def touched(self) -> dict[str, str]:
        """Everything but what stayed the same or was only read."""
        return {name: op for name, op in self.operations.items() if op not in ("same", "read")}

    def count(self, operation: str) -> int:
        """Resources that met this fate, such as `create`."""
        return list(self.operations.values()).count(operation)

    def record(self, event: automation.events.EngineEvent) -> None:
        if event.resource_pre_event and event.resource_pre_event.metadata:
            metadata = event.resource_pre_event.metadata
            kind, name = metadata.urn.split("::")[2:]
            op = str(getattr(metadata.op, "value", metadata.op))
            if op in ("create-replacement", "delete-replaced"):
                op = "replace"
            self.operations[f"{kind.split('$')[-1]} {name}"] = op


class Deployment:
    """One stack of this project."""

    def __init__(self, world: World, stack: str, **changes: Any) -> None:
        self.world = world
        self.name = stack
        self.project = world.folder / f"project-{stack}"
        workspace.lay_out_project(self.project)
        self.configure(**changes)
        self.environment = workspace.environment(world.folder, world.cloud, world.control_plane)
        self.stack = automation.create_or_select_stack(
            stack,
            work_dir=str(self.project),
            opts=automation.LocalWorkspaceOptions(
                pulumi_home=self.environment["PULUMI_HOME"],
                pulumi_command=automation.PulumiCommand(root=str(workspace.cli(world.folder).parents[1])),
                env_vars=self.environment,
            ),
        )

    def configure(self, **changes: Any) -> bool:
        """Writes the stack file as shipped, with these keys changed. Returns whether it differs from before."""
        own = PRODUCTION_CHOICES if self.name == "prod" else {}
        here = {"chartRepository": self.world.charts.address}
        return workspace.write_stack_file(self.project, self.name, own | here | changes)

    def up(self) -> Changes:
        """Raises automation.CommandError, as the next three do."""
        return self._run(self.stack.up)

    def preview(self) -> Changes:
        return self._run(self.stack.preview)

    def refresh(self) -> Changes:
        return self._run(self.stack.refresh)

    def destroy(self) -> Changes:
        return self._run(self.stack.destroy)

    def _run(self, operation: Callable[..., Any]) -> Changes:
        changes = Changes()
        changes.output = operation(on_event=changes.record).stdout
        return changes

    def output(self, name: str) -> Any:
        return self.stack.outputs()[name].value

    def refusal(self) -> str:
        """What `preview` prints where it must fail."""
        try:
            self.preview()
        except automation.CommandError as error:
            return str(error)
        raise AssertionError("the preview was expected to fail")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The CLI in a process group of its own, for a test that kills it."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.project,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), cwd=self.project, env=self.environment, text=True, capture_output=True
        )

    def command(self, *arguments: str) -> Sequence[str]:
        return [str(workspace.cli(self.world.folder)), *arguments, "--stack", self.name, "--non-interactive"]
