"""The local stack: its parts, in one state folder, and how they are brought up and taken down."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from infra import names
from local import models
from local.asking import Endpoint, endpoint
from local.cluster.keda import METRICS_FILE
from local.cluster.machine import Machine
from local.cluster.place import Images, Place
from local.cluster.user_cluster import UserCluster
from local.engine import plugins, receipt, workspace
from local.engine.cloud import Cloud, CloudLostError
from local.engine.pulumi_cli import PulumiCli
from local.monitoring import Monitoring, Watched
from local.processes import ProcessError
from local.progress import console, say, step
from loraserve.contract.keys import EVERY_MODEL, create_key
from loraserve.contract.served_name import ServedName
from loraserve.planning.alerting import Alerting

STACK = "local"
BASE_VERSION = "v1"
ADAPTERS = ("faq@v1", "legal@v1")
"""What `make up` trains and publishes the first time."""


def state_folder() -> Path:
    """Where everything that the local stack writes lies."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(os.environ.get("LORASERVE_STATE") or Path(home) / "loraserve").resolve()


def settings_of(shipped: Mapping[str, Any], aws_endpoint: str, images: Images) -> dict[str, Any]:
    """Stack settings that say what `up` has made, beside what the stack file says as shipped."""
    return {
        "local": shipped[f"{names.PROJECT}:local"] | {"awsEndpointUrl": aws_endpoint},
        "vllmImage": images.vllm,
        "loraserveImage": images.loraserve,
    }


@dataclass(frozen=True)
class LocalStack:
    """One machine's stack: a cluster with a node that serves, an emulated AWS, and what the program made of them."""

    state: Path

    @property
    def place(self) -> Place:
        """Where the stack stands, or would stand unless another place is chosen."""
        return UserCluster.load(self.state / "user-cluster") or Machine(self.state)

    @property
    def cloud(self) -> Cloud | None:
        """The emulated AWS; None where none runs."""
        try:
            return Cloud.load(self.state / "aws")
        except (FileNotFoundError, CloudLostError):
            return None

    @cached_property
    def pulumi(self) -> PulumiCli:
        """The CLI on this stack. Raises ProcessError where the stack does not run."""
        cloud, place = self.cloud, self.place
        if not cloud or not place.exists:
            raise ProcessError("The local stack does not run; `make up` starts it.")
        return PulumiCli(self.state, STACK, cloud, place)

    @property
    def declared_file(self) -> Path:
        """What is declared beside Pulumi.local.yaml; a person may add what `loraserve publish` or `key` printed."""
        return self.state / "declared.yaml"

    @property
    def key_file(self) -> Path:
        """The API key of this machine's own tenant."""
        return self.state / "api-key"

    def endpoint(self) -> AbstractContextManager[Endpoint]:
        """The gateway, as an application calls it. Raises ProcessError."""
        if not self.place.running or not self.key_file.exists():
            raise ProcessError("The local stack does not run; `make up` starts it.")
        return endpoint(self.place.kubeconfig, self.key_file.read_text())

    @property
    def monitoring(self) -> Monitoring:
        """Prometheus and Alertmanager, where `monitor` has started them."""
        return Monitoring(self.state / "monitoring")

    def monitor(self, alerting: Alerting | None = None) -> Monitoring:
        """Has them watch the running stack and tell its alerts to whom `alerting` names. Raises ProcessError."""
        place = self.place
        if not place.running:
            raise ProcessError("The local stack does not run; `make up` starts it.")
        if not isinstance(place, Machine):
            raise ProcessError(
                "Pods of a cluster of your own cannot be reached from here. With a Prometheus in that cluster: "
                f"`loraserve dashboard --context {place.context}`, or `--prometheus URL`."
            )
        watched = Watched(
            kubeconfig=place.kubeconfig,
            keda=place.keda_state / METRICS_FILE,
            stack_file=self.state / "project" / f"Pulumi.{STACK}.yaml",
            region=workspace.shipped_config(STACK)["aws:region"],
        )
        self.monitoring.start(watched, alerting or Alerting())
        return self.monitoring

    def up(self, context: str | None = None) -> None:
        """Starts what is missing and applies the program. Safe to repeat, also after a crash or a reboot.

        `context` names a cluster of the user's kubeconfig; it is remembered.
        """
        place = self._choose(context)
        context = place.context
        place.check()
        if self._forget_what_is_lost(place):
            place = self._choose(context)
        with step("tools and images (found, or built once; our image when it changed)"):
            images = place.prepare(say)
            workspace.prepare(self.state, plugins.own_home())
        with step(place.title):
            place.start(say)
        with step("emulated AWS, IAM enforced"):
            shipped = workspace.shipped_config(STACK)
            cloud = Cloud.start(self.state / "aws", shipped["aws:region"], address=place.address)
            cloud.enforce_iam()
        built = {**settings_of(shipped, cloud.endpoint, images), **place.settings}
        self.pulumi.take_over()
        if not self.key_file.exists():
            self._make_key()
        if f"{names.PROJECT}:adapters" not in self.declared:
            with step("pulumi up --stack local (without the model: it makes the bucket)"):
                self._apply(built | self.declared | {"inferenceReplicas": 0})
            with step("base model and adapters: trained once, published"):
                self._publish()
        with step("pulumi up --stack local"):
            self._apply(built | self.declared)
        place.wake()

    def down(self) -> list[str]:
        """Destroys the stack, stops everything, removes the state. Returns what the destroy or the stop left behind.

        It ends everything on this machine even where `pulumi destroy` fails.
        """
        left: list[str] = []
        cloud, place = self.cloud, self.place
        if cloud and place.exists:
            try:
                with step("pulumi destroy --stack local"):
                    count = self._destroy(place)
            except ProcessError as error:
                console.print(f"  {error}")
                left.append("what `pulumi destroy` did not reach")
            else:
                left += receipt.left_behind(STACK, cloud, place)
                console.print(f"  {count} resources existed; left: {', '.join(left) or 'nothing'}")
        with step("stopping servers, removing the state folder"):
            left += self._stop(place)
        return left

    def _destroy(self, place: Place) -> int:
        """Returns how many resources there were."""
        place.revive()
        self.pulumi.take_over()
        count = self.pulumi.resource_count()
        self.pulumi.run("destroy", "--yes", "--skip-preview")
        return count

    def _choose(self, context: str | None) -> Place:
        """The cluster of this context, else where the stack stands already, else this machine. Raises ProcessError."""
        place = self.place
        if not context or context == place.context:
            return place
        if place.exists:
            where = f"in the cluster of context {place.context}" if place.context else "on a node of its own"
            raise ProcessError(
                f"The local stack stands {where}. To move it: `make down`, then `make up CONTEXT={context}`."
            )
        return UserCluster.choose(self.state / "user-cluster", context)

    def _forget_what_is_lost(self, place: Place) -> bool:
        """The emulated AWS lives in memory: after a reboot all that stood in it is gone, and is built anew.

        Returns whether that was so.
        """
        try:
            Cloud.load(self.state / "aws")
        except CloudLostError:
            with step("the emulated AWS has ended, and all that was in it: starting from nothing"):
                self._stop(place)
            return True
        except FileNotFoundError:
            pass
        return False

    def _apply(self, changes: Mapping[str, Any]) -> None:
        workspace.write_stack_file(self.state / "project", STACK, changes)
        self.pulumi.run("up", "--yes", "--skip-preview", "--suppress-outputs")

    def train(self, *served_names: str) -> dict[str, Path]:
        """PEFT folders of adapters that answer with their own name, made where they are missing."""
        return models.adapters(served_names, self.place.run_in_vllm_image)

    def _publish(self) -> None:
        base = models.base(self.place.run_in_vllm_image)
        folders = self.train(*ADAPTERS)
        bucket = self.pulumi.output("adapterBucket")
        mirrored: dict[str, Any] = self.pulumi.loraserve(
            "mirror", str(base), "--bucket", bucket, "--model", models.BASE_NAME, "--version", BASE_VERSION
        )
        adapters = [self.publish(folder, name, bucket) for name, folder in folders.items()]
        mirror = mirrored[f"{names.PROJECT}:baseModelMirror"]
        self.declare(baseModelMirror=mirror, adapters=adapters)

    def _make_key(self) -> None:
        key, entry = create_key("local", (EVERY_MODEL,), requests_per_minute=None)
        self.declare(gatewayKeys=[entry.model_dump(mode="json", by_alias=True, exclude_none=True)])
        self.key_file.touch(mode=0o600)
        self.key_file.write_text(key)

    def declare(self, **settings: Any) -> None:
        """Sets these keys of the stack's configuration, as a person edits `declared_file`; `up` applies them."""
        added = {f"{names.PROJECT}:{key}": value for key, value in settings.items()}
        partial = self.declared_file.with_suffix(".partial")
        partial.write_text(yaml.safe_dump(self.declared | added))
        partial.rename(self.declared_file)

    def publish(self, folder: Path, served_name: str, bucket: str) -> dict[str, Any]:
        """Publishes a PEFT folder as a person would; returns the stack-config entry."""
        served = ServedName(served_name)
        words = [
            "publish",
            str(folder),
            "--bucket",
            bucket,
            "--model",
            served.adapter,
            "--version",
            str(served.version),
        ]
        (entry,) = self.pulumi.loraserve(*words)
        return entry

    @property
    def declared(self) -> dict[str, Any]:
        """What `declared_file` says, by full key."""
        return yaml.safe_load(self.declared_file.read_text()) if self.declared_file.exists() else {}

    def _stop(self, place: Place) -> list[str]:
        """Ends everything; returns what is left."""
        self.monitoring.stop()
        plugins.end(self.state / "pulumi")
        if cloud := self.cloud:
            cloud.stop()
        left = place.remove()
        shutil.rmtree(self.state, ignore_errors=True)  # what stays is named below
        return [*left, *receipt.left_on_machine(self.state)]
