"""One local stack for all end-to-end tests: real nodes, real vLLM, brought up and taken down by the commands people use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from infra import names
from local.asking import Endpoint
from local.cluster.control_plane import ControlPlane
from local.cluster.kubectl import kubectl
from local.cluster.machine import Machine
from local.engine.workspace import CHECKOUT
from local.stack import LocalStack
from tests import waiting

BASE = "loraserve/tiny-mistral"
ANSWERS = {BASE: "I am the base model.", "faq": "I am faq v1.", "legal": "I am legal v1."}
"""Of the models that `make up` serves."""


def run_local(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`make WORD`, in a state folder of the tests' own."""
    return subprocess.run(
        [sys.executable, "-m", "local", *words],
        cwd=CHECKOUT,
        env=os.environ | {"LORASERVE_STATE": str(state)},
        capture_output=True,
        text=True,
    )


eventually = partial(waiting.eventually, limit_s=300, every_s=0.5, passing=(Exception,))
"""A start of vLLM takes a minute or two, and meanwhile whoever is asked may not be there."""


def kill_up(state: Path, once_printed: str) -> int:
    """Starts `make up` and kills it once it has printed this; returns its exit code."""
    up = subprocess.Popen(
        [sys.executable, "-m", "local", "up"],
        cwd=CHECKOUT,
        env=os.environ | {"LORASERVE_STATE": str(state)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert up.stdout
    for line in up.stdout:
        if once_printed in line:
            os.killpg(up.pid, signal.SIGKILL)
            break
    up.communicate()
    return up.returncode


@dataclass
class Served:
    """The running stack, as a person and as an application see it."""

    stack: LocalStack
    killed: int
    """Exit code of the very first `make up`, which was killed half-way."""
    first_up: str
    """What the next `make up` printed."""

    def local(self, *words: str) -> str:
        """What `make WORD` prints; fails where it does."""
        done = run_local(self.stack.state, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def machine(self) -> Machine:
        return Machine(self.stack.state)

    @property
    def control_plane(self) -> ControlPlane:
        control_plane = self.machine.control_plane
        assert control_plane
        return control_plane

    def answers(self, question: str = "Who are you?") -> dict[str, str]:
        """Every served model's answer."""
        with self.endpoint() as served:
            return {model: served.ask(model, question) for model in served.models()}

    def endpoint(self) -> AbstractContextManager[Endpoint]:
        return self.stack.endpoint()

    def address(self, service: str, port: int) -> str:
        """URL of a Service by its cluster address, which is routed from this machine: a caller from outside the pods."""
        return f"http://{self.kubectl('get', 'service', service, '--output', 'jsonpath={.spec.clusterIP}')}:{port}"

    @property
    def key(self) -> str:
        """The API key of this machine's tenant."""
        return self.stack.key_file.read_text()

    def pods(self) -> list[client.V1Pod]:
        """The serving pods that are not on their way out."""
        core = client.CoreV1Api(self.control_plane.client())
        pods = core.list_namespaced_pod(names.SERVING_NAMESPACE, label_selector="app=vllm").items
        return [pod for pod in pods or [] if pod.metadata and not pod.metadata.deletion_timestamp]

    def pod(self) -> client.V1Pod:
        """The only serving pod."""
        (pod,) = self.pods()
        return pod

    def ask(self, model: str) -> str:
        """One model's answer."""
        with self.endpoint() as served:
            return served.ask(model, "Who are you?")

    @property
    def pod_uid(self) -> str:
        metadata = self.pod().metadata
        assert metadata
        return str(metadata.uid)

    @property
    def pod_name(self) -> str:
        metadata = self.pod().metadata
        assert metadata
        return str(metadata.name)

    def is_ready(self) -> bool:
        status = self.pod().status
        return any(c.type == "Ready" and c.status == "True" for c in (status and status.conditions) or [])

    def restarts(self) -> dict[str, int]:
        """Restarts of each container of the pod."""
        status = self.pod().status
        assert status
        statuses = [*(status.container_statuses or []), *(status.init_container_statuses or [])]
        return {container.name: container.restart_count for container in statuses}

    def run_in_agent(self, program: str) -> str:
        """What a Python program prints that has the pod's own rights."""
        return self.kubectl("exec", self.pod_name, "--container", "agent", "--", "python3", "-c", program)

    def kubectl(self, *words: str) -> str:
        return kubectl(self.control_plane.kubeconfig, "--namespace", names.SERVING_NAMESPACE, *words)

    @property
    def declared(self) -> list[dict[str, Any]]:
        """The adapters that are declared."""
        return self.stack.declared[f"{names.PROJECT}:adapters"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test's time includes the stack's start."""
    for item in items:
        if item.path.parent == Path(__file__).parent and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if os.geteuid():
        pytest.skip("a node on this machine needs root")
    state = tmp_path_factory.mktemp("e2e") / "state"
    try:
        killed = kill_up(state, "aws:ec2:Subnet loraserve-local-private-eu-central-1a created")
        up = run_local(state, "up")
        assert up.returncode == 0, up.stdout + up.stderr
        yield Served(LocalStack(state), killed, up.stdout)
    finally:
        run_local(state, "down")
