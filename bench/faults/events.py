"""What is done to the running stack. Each event returns once it is over on its own side; what clients noticed is seen elsewhere."""

from __future__ import annotations

import base64
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.faults.s3 import S3, Mood
from bench.served import (
    cgroup,
    containers,
    core,
    desired,
    kill_container,
    machine,
    node,
    pods,
    put_desired,
    swapped,
    wait_until,
)
from bench.steady import Steady
from infra.names import (
    ADAPTERS_VOLUME,
    GATEWAY,
    GATEWAY_PORT,
    GATEWAY_SELECTOR,
    SERVING_NAMESPACE,
    VLLM,
    VLLM_SELECTOR,
)
from local.cluster import keda
from local.cluster.control_plane import ControlPlane
from local.cluster.kubectl import kubectl
from local.cluster.node import NAME as NODE
from local.commands import CommandError
from local.processes import Process
from local.stack import LocalStack
from local.tools.toolchain import Tool
from loraserve.contract.addresses import GATEWAY_KEYS, GATEWAY_KEYS_FILE
from loraserve.contract.desired_state import Adapter
from loraserve.contract.keys import EVERY_MODEL, KeyRing, create_key

_AWAY_S = 60
_BAD_S3_S = 15
_STARTING_S = 15
_REPLACED_S = 20
"""How long after a drain the next node comes."""
_SWAPPED = "faq"
_HOG = """
import time
held = []
while True:
    held.append(bytearray(8 << 20))
    time.sleep(0.02)
"""


@dataclass
class World:
    """The stack, who asks it, and versions that nobody has declared yet."""

    stack: LocalStack
    load: Steady
    versions: Iterator[Adapter]
    s3: S3
    told: dict[str, str] = field(default_factory=dict)
    """What an event found out beside what clients noticed, by its name."""


def kill_gateway(world: World) -> None:
    kill_container(world.stack, GATEWAY_SELECTOR, GATEWAY)


def kill_agent(world: World) -> None:
    kill_container(world.stack, VLLM_SELECTOR, "agent")


def kill_vllm(world: World) -> None:
    kill_container(world.stack, VLLM_SELECTOR, VLLM)


def delete_vllm_pod(world: World) -> None:
    """Without its grace period."""
    name = pods(world.stack, VLLM_SELECTOR)[0].metadata
    assert name
    core(world.stack).delete_namespaced_pod(str(name.name), SERVING_NAMESPACE, grace_period_seconds=0)


def kill_keda(world: World) -> None:
    """Operator and adapter; away for 20 s."""
    place = machine(world.stack)
    for tool in keda.PARTS:
        process = Process.load(tool, place.keda_state)
        assert process
        process.signal(signal.SIGKILL)
    time.sleep(20)
    assert place.control_plane
    keda.start(place.keda_state, place.control_plane)


def starve_vllm(world: World) -> None:
    """Its group gets no more memory than it has, and something in it wants more: the kernel ends vLLM."""
    (pod, *_) = pods(world.stack, VLLM_SELECTOR)
    assert pod.metadata
    container = containers(pod)[VLLM]
    group = cgroup(world.stack, container)
    limit, held = group / "memory.limit_in_bytes", group / "memory.usage_in_bytes"
    if not limit.exists():
        limit, held = group / "memory.max", group / "memory.current"
    for process in (group / "cgroup.procs").read_text().split():
        Path("/proc", process, "oom_score_adj").write_text("500")  # before what only wants more
    limit.write_text(held.read_text())
    command = ["exec", str(pod.metadata.name), "--container", VLLM, "--", "python3", "-c", _HOG]
    with suppress(CommandError):  # it ends with the container
        kubectl(world.stack.place.kubeconfig, "--namespace", SERVING_NAMESPACE, *command)
    wait_until(lambda: containers(pods(world.stack, VLLM_SELECTOR)[0]).get(VLLM) != container, "vLLM to be killed", 60)


def kill_kubelet(world: World) -> None:
    """The node's init starts it again."""
    node(world.stack).run("pkill", "-KILL", "-x", "kubelet")


def stop_api_server(world: World) -> None:
    plane = machine(world.stack).control_plane
    assert plane
    process = Process.load(Tool.KUBE_APISERVER, plane.state)
    assert process
    process.signal(signal.SIGKILL)
    time.sleep(_AWAY_S)
    ControlPlane.start(plane.state)
    swap(world)


def lose_node(world: World) -> None:
    """The plug is pulled; the machine boots again."""
    node(world.stack).stop()
    node(world.stack).boot()


def lose_node_while_vllm_starts(world: World) -> None:
    kill_vllm(world)
    time.sleep(_STARTING_S)
    lose_node(world)


def drain(world: World) -> None:
    """As after a Spot notice: the pod is evicted within its two minutes, then another node comes. This one is its own successor."""
    kubeconfig, began = world.stack.place.kubeconfig, time.monotonic()
    selector = ",".join(f"{key}={value}" for key, value in VLLM_SELECTOR.items())
    flags = (f"--pod-selector={selector}", "--delete-emptydir-data", "--force", "--timeout=120s")
    kubectl(kubeconfig, "drain", NODE, "--ignore-daemonsets", *flags)
    world.told["drained after"] = f"{time.monotonic() - began:.0f} s"
    time.sleep(_REPLACED_S)
    kubectl(kubeconfig, "uncordon", NODE)


def bad_s3(mood: Mood) -> Callable[[World], None]:
    """A new version is declared while S3 is so; it must come once S3 is well, and not before."""

    def happen(world: World) -> None:
        world.s3.mood = mood
        version = declare_next(world)
        time.sleep(_BAD_S3_S)
        already = world.load.last_said(_SWAPPED) == answer_of(version)
        world.s3.mood = Mood.WELL
        world.told["new version"] = "came all the same" if already else follow(world, version, "after S3 was well")

    return happen


def corrupt_desired_state(world: World) -> None:
    good = desired(world.stack).to_json()
    put_desired(world.stack, good[: len(good) // 2])
    time.sleep(20)
    put_desired(world.stack, good)
    swap(world)


def swap(world: World) -> None:
    """The next version is declared; the time until it answers is told."""
    world.told["new version"] = follow(world, declare_next(world), "after it was declared")


def declare_next(world: World) -> Adapter:
    version = next(world.versions)
    put_desired(world.stack, swapped(desired(world.stack), version))
    return version


def follow(world: World, version: Adapter, since: str) -> str:
    seconds = wait_until(
        lambda: world.load.last_said(_SWAPPED) == answer_of(version), str(version.served_name), 120, 0.2
    )
    return f"{seconds:.0f} s {since}"


def answer_of(version: Adapter) -> str:
    return f"I am {version.name} {version.version}."


def fill_disk(world: World) -> None:
    """The adapters' volume is full while a new version is declared, then has room again. See `small_disk`."""
    folder = _volume(world.stack)
    node(world.stack).run("sh", "-c", f"dd if=/dev/zero of={folder}/filler bs=64k 2>/dev/null; test -s {folder}/filler")
    version = declare_next(world)
    time.sleep(_BAD_S3_S)
    assert world.load.last_said(_SWAPPED) != answer_of(version)
    node(world.stack).run("rm", f"{folder}/filler")
    world.told["new version"] = follow(world, version, "after there was room")


def small_disk(world: World) -> None:
    """Gives the serving pod's containers an adapters' volume of their own that can be filled; both start anew on it."""
    folder = _volume(world.stack)
    node(world.stack).run("mount", "-t", "tmpfs", "-o", "size=8m,mode=0777", "tmpfs", folder)
    kill_agent(world)
    kill_vllm(world)


def _volume(stack: LocalStack) -> str:
    pod = pods(stack, VLLM_SELECTOR)[0].metadata
    assert pod
    return str(
        node(stack).state / "kubelet" / "pods" / str(pod.uid) / "volumes/kubernetes.io~empty-dir" / ADAPTERS_VOLUME
    )


def two_ups(world: World) -> None:
    """Of two operators, four seconds apart."""

    def up(after_s: float) -> bool:
        time.sleep(after_s)
        try:
            world.stack.pulumi.run("up", "--yes", "--skip-preview", "--suppress-outputs")
        except CommandError:
            return False
        return True

    with ThreadPoolExecutor() as operators:
        went_on = list(operators.map(up, (0, 4)))
    assert went_on == [True, False], went_on
    world.told["of the two"] = "the second was refused"


def kill_up(world: World) -> None:
    """Twice, at a random moment; the next one converges."""
    for _ in range(2):
        world.stack.declare(adapterSlots=random.choice(("5", "6")))
        environment = os.environ | {"LORASERVE_STATE": str(world.stack.state)}
        up = subprocess.Popen(
            [sys.executable, "-m", "local", "up"], env=environment, start_new_session=True, stdout=subprocess.DEVNULL
        )
        time.sleep(random.uniform(3, 15))
        os.killpg(up.pid, signal.SIGKILL)
        up.wait()
    world.stack.declare(adapterSlots="")
    began = time.monotonic()
    world.stack.up()
    world.told["the next `make up`"] = f"{time.monotonic() - began:.0f} s"


def upgrade(world: World) -> None:
    """An `up` that changes the templates of all our pods: gateways, agent and vLLM are replaced."""
    world.stack.declare(logFormat="json", adapterSlots="5")
    world.stack.up()


def rotate_key(world: World) -> None:
    """A second key of a tenant is added, then taken away, as an `up` does; told is how long each took to hold at every gateway."""
    api, (key, entry) = core(world.stack), create_key("local", (EVERY_MODEL,), requests_per_minute=None)
    held = api.read_namespaced_secret(GATEWAY_KEYS, SERVING_NAMESPACE)
    assert held.data
    before = KeyRing.parse(base64.b64decode(held.data[GATEWAY_KEYS_FILE]))
    urls = [
        f"http://{pod.status.pod_ip}:{GATEWAY_PORT}/v1/models"
        for pod in pods(world.stack, GATEWAY_SELECTOR)
        if pod.status
    ]
    added = before.model_copy(update={"keys": (*before.keys, entry)})
    headers = {"Authorization": f"Bearer {key}"}
    for what, ring, status in (("a new key held", added, 200), ("a revoked one was refused", before, 401)):
        time.sleep(random.uniform(0, 20))  # at no fixed distance from the kubelet's own rounds
        api.patch_namespaced_secret(
            GATEWAY_KEYS, SERVING_NAMESPACE, {"stringData": {GATEWAY_KEYS_FILE: ring.to_json()}}
        )

        def holds(status: int = status) -> bool:
            return all(httpx.get(url, headers=headers, trust_env=False).status_code == status for url in urls)

        world.told[what] = f"after {wait_until(holds, what, 150, 0.2):.0f} s"


def roll_out(world: World) -> None:
    """Every gateway is replaced, as by a new image."""
    for words in ("restart", "status"):
        kubectl(
            world.stack.place.kubeconfig, "--namespace", SERVING_NAMESPACE, "rollout", words, f"deployment/{GATEWAY}"
        )
