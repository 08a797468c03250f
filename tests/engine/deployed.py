"""This project's own program and stack files under the real CLI, in a folder where a test may change the stack file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import client

from infra import names
from local.cluster.control_plane import ControlPlane
from local.engine import plugins, workspace
from local.engine.cloud import Cloud
from local.engine.receipt import left_behind
from tests.engine import simulated_nodes
from tests.engine.chart_repository import RECEIPT, ChartRepository
from tests.engine.cli import Changes, PulumiStack
from tests.engine.warm import warm_python
from tests.stack_values import PRODUCTION_CHOICES

REGION = "eu-central-1"


@dataclass
class World:
    """An emulated AWS, a control plane with one simulated node of each group, and a chart repository."""

    folder: Path
    cloud: Cloud
    control_plane: ControlPlane
    charts: ChartRepository

    @classmethod
    @contextmanager
    def run(cls, folder: Path) -> Iterator[World]:
        with (
            ControlPlane.start(folder / "cluster", die_with_parent=True) as control_plane,
            simulated_nodes.kwok(control_plane),
            Cloud.start(folder / "aws", REGION, die_with_parent=True) as cloud,
            ChartRepository(folder / "charts") as charts,
        ):
            world = cls(folder, cloud, control_plane, charts)
            simulated_nodes.register(world.core, simulated_nodes.SYSTEM, "system-1")
            simulated_nodes.register(world.core, simulated_nodes.GPU, "gpu-1")
            simulated_nodes.apply_daemon_sets(client.AppsV1Api(world.api))
            workspace.prepare(folder)
            yield world
            plugins.end(folder / "pulumi")

    @property
    def api(self) -> client.ApiClient:
        return self.control_plane.client()

    @property
    def core(self) -> client.CoreV1Api:
        return client.CoreV1Api(self.api)

    @property
    def empty(self) -> bool:
        return not any(self.left_behind(stack) for stack in ("dev", "prod"))

    def left_behind(self, stack: str) -> list[str]:
        """Everything that a destroyed stack could have made and that is still there, as `kind name`."""
        maps = self.plain(self.core.list_namespaced_config_map(names.SYSTEM_NAMESPACE))["items"]
        found = [map_["metadata"]["name"] for map_ in maps]
        charts = [f"chart {name}" for name in found if name.startswith(RECEIPT)]
        return [*left_behind(stack, self.cloud, self.control_plane), *charts]

    @contextmanager
    def enforced_iam(self) -> Iterator[None]:
        """Every call to AWS inside needs a policy that allows it."""
        self.cloud.enforce_iam()
        try:
            yield
        finally:
            self.cloud.enforce_iam(False)

    def pod(self, role: str) -> dict[str, str]:
        """AWS credentials as a pod has them, by the variables that hold them: of the role that its projected token stands for."""
        sts = self.cloud.client("sts")
        session = sts.assume_role_with_web_identity(RoleArn=role, RoleSessionName="pod", WebIdentityToken="projected")
        return variables(session["Credentials"])

    def plain(self, answer: Any) -> Any:
        """An answer of the Kubernetes client as plain dicts, spelled as in YAML."""
        return self.api.sanitize_for_serialization(answer)


def variables(credentials: Mapping[str, str]) -> dict[str, str]:
    """What STS gave, as AWS clients find it in an environment."""
    return {
        "AWS_ACCESS_KEY_ID": credentials["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": credentials["SecretAccessKey"],
        "AWS_SESSION_TOKEN": credentials["SessionToken"],
    }


class Deployment(PulumiStack):
    """One stack of this project: its stack file as shipped, with other settings on top."""

    def __init__(self, world: World, name: str, **settings: Any) -> None:
        project = world.folder / f"project-{name}"
        workspace.lay_out_project(project, warm_python())
        self.world = world
        self._settings = {"chartRepository": world.charts.address} | settings
        if name == "prod":
            self._settings |= PRODUCTION_CHOICES
        workspace.write_stack_file(project, name, self._settings)
        environment = workspace.environment(world.folder, world.cloud, world.control_plane)
        environment["LORASERVE_PYTHON"] = str(warm_python() / "bin" / "python")
        super().__init__(project, name, workspace.cli(world.folder), environment)

    def change(self, **settings: Any) -> Changes:
        """Sets these too, and applies all. Raises Refused."""
        self._settings |= settings
        workspace.write_stack_file(self.project, self.name, self._settings)
        return self.up()

    def elsewhere(self, environment: Mapping[str, str]) -> Deployment:
        """The same stack and settings where these variables are others, such as those of a backend; made where missing."""
        other = copy(self)
        other.environment = {**self.environment, **environment}
        other.select()
        return other

    @contextmanager
    def proposed(self, **settings: Any) -> Iterator[None]:
        """Sets these too, for a while: nothing is applied."""
        workspace.write_stack_file(self.project, self.name, self._settings | settings)
        try:
            yield
        finally:
            workspace.write_stack_file(self.project, self.name, self._settings)
