"""The local stack: its parts, in one state folder, and how they are brought up and taken down."""

from __future__ import annotations

import os
import shutil
import string
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from infra import names
from local import containerd, engine, images, keda, models, node, receipt
from local.asking import Endpoint, endpoint
from local.cloud import Cloud, CloudLostError
from local.control_plane import ControlPlane
from local.debian import Commands
from local.network import Network
from local.node import Node
from local.processes import ProcessError
from local.pulumi_cli import PulumiCli
from local.toolchain import Tool, ensure
from loraserve.gateway.keys import EVERY_MODEL, create_key

STACK = "local"
BASE_VERSION = "v1"
ADAPTERS = ("faq@v1", "legal@v1")
"""What `make up` trains and publishes the first time."""
_ADAPTERS, _KEYS = f"{names.PROJECT}:adapters", f"{names.PROJECT}:gatewayKeys"
_NEEDED_MEMORY_GB = 6

console = Console(highlight=False, soft_wrap=True)


def state_folder() -> Path:
    """Where everything that the local stack writes lies."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(os.environ.get("LORASERVE_STATE") or Path(home) / "loraserve").resolve()


def say(message: str) -> None:
    """One line below the step that runs."""
    console.print(f"    {message}")


@contextmanager
def step(title: str) -> Iterator[None]:
    """Says what is done, and how long it took."""
    console.print(f"==> {title}")
    started = time.monotonic()
    yield
    console.print(f"    done in {time.monotonic() - started:.0f} s")


@dataclass(frozen=True)
class LocalStack:
    """One machine's stack: a control plane with one real node, an emulated AWS, and what the program made of them."""

    state: Path

    @property
    def control_plane(self) -> ControlPlane | None:
        return ControlPlane.load(self.state / "cluster")

    @property
    def cloud(self) -> Cloud | None:
        """The emulated AWS; None where none runs."""
        try:
            return Cloud.load(self.state / "aws")
        except (FileNotFoundError, CloudLostError):
            return None

    @property
    def node(self) -> Node | None:
        control_plane = self.control_plane
        return Node(self.state / "node", control_plane) if control_plane and control_plane.network else None

    @cached_property
    def pulumi(self) -> PulumiCli:
        """The CLI on this stack. Raises ProcessError where the stack does not run."""
        cloud, control_plane = self.cloud, self.control_plane
        if not cloud or not control_plane:
            raise ProcessError("The local stack does not run; `make up` starts it.")
        return PulumiCli(self.state, STACK, cloud, control_plane)

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
        control_plane = self.control_plane
        if not control_plane or control_plane.stopped_parts or not self.key_file.exists():
            raise ProcessError("The local stack does not run; `make up` starts it.")
        return endpoint(control_plane.kubeconfig, self.key_file.read_text())

    def up(self) -> None:
        """Starts what is missing and applies the program. Safe to repeat, also after a crash or a reboot."""
        self._check_machine()
        self._forget_what_is_lost()
        with step("tools (found, or built once)"):
            Commands.ensure(say)
            ensure(*Tool)
            engine.prepare(self.state, Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi"))
        with step("images (built once; ours when it changed)"):
            pause, dns, vllm, own = images.pause(), images.coredns(), images.vllm(), images.loraserve()
            template = containerd.template([dns, vllm], pause, say)
            own_archive = own.ensure_archive(say)
        with step("Kubernetes: control plane and one node"):
            control_plane = self._start_cluster(template, own_archive, dns.reference)
        with step("emulated AWS, IAM enforced"):
            assert control_plane.network
            region = engine.stack_region(STACK)
            cloud = Cloud.start(self.state / "aws", region, address=str(control_plane.network.host))
            cloud.enforce_iam()
        with step("KEDA's operator"):
            keda.start(self.state / "keda", control_plane)
        built = {
            "awsEndpointUrl": cloud.endpoint,
            "vllmImage": vllm.reference,
            "loraserveImage": own.reference,
        }
        self.pulumi.take_over()
        if not self.key_file.exists():
            self._make_key()
        if _ADAPTERS not in self._declared():
            with step("pulumi up --stack local (without the model: it makes the bucket)"):
                self._apply(built | self._declared() | {"inferenceReplicas": 0})
            with step("base model and adapters: trained once, published"):
                self._publish()
        with step("pulumi up --stack local"):
            self._apply(built | self._declared())

    def down(self) -> list[str]:
        """Destroys the stack, stops everything, removes the state. Returns what the destroy or the stop left behind.

        It ends everything on this machine even where `pulumi destroy` fails.
        """
        left: list[str] = []
        cloud, control_plane = self.cloud, self.control_plane
        if cloud and control_plane:
            try:
                with step("pulumi destroy --stack local"):
                    count = self._destroy(control_plane)
            except ProcessError as error:
                console.print(f"  {error}")
                left.append("what `pulumi destroy` did not reach")
            else:
                left += receipt.left_behind(cloud, control_plane)
                console.print(f"  {count} resources existed; left: {', '.join(left) or 'nothing'}")
        with step("stopping servers, removing the state folder"):
            left += self._stop()
        return left

    def _destroy(self, control_plane: ControlPlane) -> int:
        """Returns how many resources there were."""
        self._revive(control_plane)
        self.pulumi.take_over()
        count = self.pulumi.resource_count()
        self.pulumi.run("destroy", "--yes", "--skip-preview")
        return count

    def _check_machine(self) -> None:
        if os.geteuid():
            raise ProcessError(
                "The local stack makes a Kubernetes node on this machine, which needs root: run `sudo make up`. Where you "
                "have a cluster of your own (kind, k3d), name its context instead: `make up CONTEXT=kind-kind`."
            )
        memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available_gb = int(memory["MemAvailable"].split()[0]) / 1e6
        running = self.node is not None and self.node.running
        if available_gb < _NEEDED_MEMORY_GB and not running:
            raise ProcessError(
                f"The local stack needs about {_NEEDED_MEMORY_GB} GB of free memory and {available_gb:.1f} GB are free: "
                f"{_NEEDED_MEMORY_GB - available_gb:.1f} GB are missing. Stop something, then run the same command again."
            )

    def _forget_what_is_lost(self) -> None:
        """The emulated AWS lives in memory: after a reboot all that stood in it is gone, and is built anew."""
        try:
            Cloud.load(self.state / "aws")
        except CloudLostError:
            with step("the emulated AWS has ended, and all that was in it: starting from nothing"):
                self._stop()
        except FileNotFoundError:
            pass

    def _start_cluster(self, template: Path, own_archive: Path, dns_image: str) -> ControlPlane:
        known = self.control_plane
        network = (known.network if known else None) or Network.choose()
        network.connect()
        control_plane = ControlPlane.start(self.state / "cluster", network=network)
        machine = Node(self.state / "node", control_plane)
        machine.start(template)
        machine.import_image(own_archive)
        template_text = Path(__file__).with_name("coredns.yaml").read_text()
        manifest = string.Template(template_text).substitute(
            image=dns_image, domain=node.CLUSTER_DOMAIN, address=network.dns_service
        )
        kubectl(control_plane.kubeconfig, "apply", "--server-side", "--filename", "-", stdin=manifest)
        return control_plane

    def _revive(self, control_plane: ControlPlane) -> None:
        """Repairs what a crash has stopped, so that pods can be ended as they should be."""
        if control_plane.network:
            control_plane.network.connect()
        ControlPlane.start(self.state / "cluster")
        if self.node and self.node.state.exists() and not self.node.running:
            self.node.start(self.node.state / "containerd")
        keda.start(self.state / "keda", control_plane)

    def _apply(self, changes: Mapping[str, Any]) -> None:
        engine.write_stack_file(self.state / "project", STACK, changes)
        self.pulumi.run("up", "--yes", "--skip-preview", "--suppress-outputs")

    def train(self, *served_names: str) -> dict[str, Path]:
        """PEFT folders of adapters that answer with their own name, made where they are missing."""
        return models.adapters(served_names, self._run_in_vllm_image)

    def _run_in_vllm_image(self, command: Sequence[str], folders: Sequence[Path]) -> None:
        assert self.node
        self.node.run_in_image(images.vllm().reference, command, folders)

    def _publish(self) -> None:
        base = models.base(self._run_in_vllm_image)
        folders = self.train(*ADAPTERS)
        bucket = self.pulumi.output("adapterBucket")
        mirrored: dict[str, Any] = self.pulumi.loraserve(
            "mirror", str(base), "--bucket", bucket, "--model", models.BASE_NAME, "--version", BASE_VERSION
        )
        adapters = [entry for name, folder in folders.items() for entry in self.publish(folder, name, bucket)]
        self._declare(mirrored | {_ADAPTERS: adapters})

    def _make_key(self) -> None:
        key, entry = create_key("local", (EVERY_MODEL,), requests_per_minute=None)
        self._declare({_KEYS: [entry.model_dump(mode="json", by_alias=True, exclude_none=True)]})
        self.key_file.touch(mode=0o600)
        self.key_file.write_text(key)

    def _declare(self, added: Mapping[str, Any]) -> None:
        partial = self.declared_file.with_suffix(".partial")
        partial.write_text(yaml.safe_dump(self._declared() | dict(added)))
        partial.rename(self.declared_file)

    def publish(self, folder: Path, served_name: str, bucket: str) -> list[dict[str, Any]]:
        """Publishes a PEFT folder as a person would; returns the stack-config entry in a list."""
        name, version = served_name.split("@")
        return self.pulumi.loraserve("publish", str(folder), "--bucket", bucket, "--model", name, "--version", version)

    def _declared(self) -> dict[str, Any]:
        return yaml.safe_load(self.declared_file.read_text()) if self.declared_file.exists() else {}

    def _stop(self) -> list[str]:
        """Ends everything; returns what is left on this machine."""
        machine, control_plane, cloud = self.node, self.control_plane, self.cloud
        network = control_plane.network if control_plane else None
        if machine:
            machine.remove()
        keda.stop(self.state / "keda")
        for server in (cloud, control_plane):
            if server:
                server.stop()
        if network:
            network.disconnect()
        shutil.rmtree(self.state)
        return receipt.left_on_machine(self.state, network)


def kubectl(kubeconfig: Path, *arguments: str, stdin: str | None = None) -> str:
    """What kubectl prints. Raises ProcessError."""
    command = [ensure(Tool.KUBECTL)[Tool.KUBECTL], "--kubeconfig", kubeconfig, *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise ProcessError(f"`kubectl {arguments[0]}` failed: {done.stderr.strip()}")
    return done.stdout
