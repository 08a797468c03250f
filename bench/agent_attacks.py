"""What hostile adapters, a slow or missing S3, a load that hangs and endless metrics do to the agent and to a good adapter beside them.

The agent runs in a memory cgroup with its container's limit, so root is needed; S3 and vLLM only keep their APIs' promises.
`python -m bench.agent_attacks [--before CHECKOUT] [NAME ...]`; with a checkout of release 0.1.0 its agent is the one attacked.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import http.server
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx

from bench import before as release
from bench import report
from bench.attacks import MemoryGroup
from local.processes import Process, free_port
from loraserve.catalog.gate import MAX_HEADER_BYTES
from loraserve.contract.agent_settings import AgentSettings
from loraserve.contract.base_model import Base
from loraserve.contract.desired_state import Adapter, DesiredState
from loraserve.planning.pod_resources import AGENT_LIMITS
from tests.unit.adapters_and_vllm import BUCKET, FakeVllm, upload, write_adapter
from tests.unit.agents import S3Server

MOST_SECONDS = 60.0
"""A good adapter that is not ready by then is called late."""
LOOK_ON_SECONDS = 20.0
"""Of an attack that holds up no adapter."""
AWAY_SECONDS = 15.0
GOOD = "z-good"
"""It comes last in the document."""
_SERIES = 150_000
_OWN_HEADERS = ("connection", "date", "server", "transfer-encoding")


@dataclass
class World:
    """What is around the agent. Attributes may be changed while it runs."""

    s3: Any
    vllm: Vllm
    away_until: float = 0.0
    """S3 answers 503 before (monotonic clock)."""
    good_comes_last: bool = False
    """Also from S3, by some seconds."""
    adapters: list[Adapter] = field(default_factory=list)

    def publish(self, folder: Path, name: str, weights: bytes | None = None) -> None:
        """Around the gate, with a manifest that fits the bytes."""
        files = {path.name: path.read_bytes() for path in write_adapter(folder / name).iterdir()}
        files |= {"adapter_model.safetensors": weights} if weights else {}
        self.adapters.append(upload(self.s3, name, files))


class Vllm(FakeVllm):
    hangs = ""
    """Served name whose load never ends."""
    endless_metrics = ""

    def _load(self, name: str, path: str) -> tuple[int, str]:
        while name == self.hangs:
            time.sleep(0.1)
        return super()._load(name, path)

    def _metrics(self) -> str:
        return super()._metrics() + self.endless_metrics


def hostile_headers(world: World, folder: Path) -> None:
    """Four adapters at once whose weights are nothing but a header of 4 MiB, which takes thirty times as much once it is read."""
    header = b'{"a":[' + b"[{}]," * ((MAX_HEADER_BYTES - 20) // 5) + b"[]]}"
    for number in range(4):
        world.publish(folder, f"a-{number}", len(header).to_bytes(8, "little") + header)


def slow_s3(world: World, folder: Path) -> None:
    """Four adapters of which S3 gives one byte a second."""
    for number in range(4):
        world.publish(folder, f"slow-{number}")


def hanging_load(world: World, folder: Path) -> None:
    """An adapter whose load vLLM never ends."""
    world.publish(folder, "a-hangs")
    world.good_comes_last = True
    world.vllm.hangs = "a-hangs@v1"


def s3_away(world: World, _: Path) -> None:
    """S3 is away for 15 s from the agent's start on."""
    world.away_until = time.monotonic() + AWAY_SECONDS


def endless_metrics(world: World, _: Path) -> None:
    """vLLM's metrics have 150,000 series, and are scraped every second."""
    name = "vllm:lora_requests_info"
    labels = ",".join(f"tenant-{number}" for number in range(40))
    world.vllm.endless_metrics = "".join(
        f'{name}{{max_lora="50",running_lora_adapters="{number},{labels}",waiting_lora_adapters=""}} 1.7e9\n'
        for number in range(_SERIES)
    )


ATTACKS = {attack.__name__: attack for attack in (hostile_headers, slow_s3, hanging_load, s3_away, endless_metrics)}


@dataclass
class Outcome:
    peak_mb: float = 0.0
    alive: bool = False
    slowest_probe: float = 0.0
    """Seconds."""
    good_after: float | None = None
    """Seconds from the agent's start until the good adapter was ready."""
    ready_without: bool = False
    """The pod got requests before."""


def suffer(name: str, folder: Path, before: Path | None) -> Outcome:
    """A fresh agent through one attack."""
    group = MemoryGroup(f"loraserve-bench-agent-{os.getpid()}", AGENT_LIMITS.memory_mib)
    try:
        with surroundings() as world:
            world.publish(folder, GOOD)
            ATTACKS[name](world, folder)
            world.adapters.sort(key=lambda adapter: adapter.name)
            with s3_in_between(world) as url, agent(folder, world, url, group, before) as (process, port):
                outcome = watch(process, port, LOOK_ON_SECONDS if name == "endless_metrics" else 0)
            return outcome_with(outcome, group)
    finally:
        with contextlib.suppress(OSError):
            group.remove()


def outcome_with(outcome: Outcome, group: MemoryGroup) -> Outcome:
    outcome.peak_mb = group.peak_mb
    return outcome


@contextlib.contextmanager
def surroundings() -> Iterator[World]:
    server, vllm = S3Server(), Vllm()
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        httpx.post(f"{server.url}/moto-api/reset", trust_env=False)
        s3 = boto3.Session().client("s3", endpoint_url=server.url)
        s3.create_bucket(Bucket=BUCKET)
        yield World(s3, vllm)
    finally:
        vllm.hangs = ""
        vllm.stop()
        server.stop()


@contextlib.contextmanager
def s3_in_between(world: World) -> Iterator[str]:
    """The same S3, slow or away as the attack wants it."""
    host = world.s3.meta.endpoint_url.removeprefix("http://")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if time.monotonic() < world.away_until:
                self.send_error(503)
                return
            if world.good_comes_last and GOOD in self.path:
                time.sleep(1)
            behind = http.client.HTTPConnection(host)
            behind.request(self.command, self.path, headers=dict(self.headers))
            answer = behind.getresponse()
            self.send_response(answer.status)
            for header, value in answer.getheaders():
                if header.lower() not in _OWN_HEADERS:
                    self.send_header(header, value)
            self.end_headers()
            content = answer.read()
            slow = "/slow-" in self.path and "safetensors" in self.path
            with contextlib.suppress(OSError):
                if slow and self.command == "GET":
                    for at in range(len(content)):
                        self.wfile.write(content[at : at + 1])
                        time.sleep(1)
                else:
                    self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@contextlib.contextmanager
def agent(
    folder: Path, world: World, s3_url: str, group: MemoryGroup, before: Path | None
) -> Iterator[tuple[Process, int]]:
    port, document, disk = free_port(), folder / "desired.json", folder / "mnt"
    desired = DesiredState(base=Base(name=FakeVllm.base), bucket=BUCKET, adapters=tuple(world.adapters))
    document.write_text(release.document(desired))
    environment = AgentSettings.variables(
        desired_file=document, adapter_dir=disk, port=port, vllm_url=world.vllm.url, vllm_api_key=world.vllm.api_key
    )
    command = release.command(before, sys.executable, "-m", "loraserve", "agent")
    if before:
        environment = {
            "LORASERVE_DESIRED_FILE": str(document),
            "LORASERVE_ADAPTER_DIR": str(disk),
            "LORASERVE_PORT": str(port),
            "VLLM_URL": world.vllm.url,
            "VLLM_API_KEY": world.vllm.api_key,
        }
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KUBERNETES_", "AGENT_"))}
    process = Process.start(
        "agent",
        group.command(*command),
        folder,
        env=clean | environment | {"AWS_ENDPOINT_URL": s3_url},
        die_with_parent=True,
    )
    try:
        yield process, port
    finally:
        process.stop()


def watch(process: Process, port: int, look_on: float) -> Outcome:
    """Until the good adapter is ready and `look_on` seconds are over, or MOST_SECONDS are."""
    began, outcome = time.monotonic(), Outcome()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as http:
        while process.running and (seconds := time.monotonic() - began) < MOST_SECONDS:
            good = timed(outcome, lambda: is_ready(http)) if outcome.good_after is None else True
            if good and outcome.good_after is None:
                outcome.good_after = seconds
            if outcome.good_after is None:
                outcome.ready_without |= answered(http, "/readyz")
            if look_on:
                timed(outcome, lambda: answered(http, "/metrics"))
            timed(outcome, lambda: answered(http, "/livez"))
            if good and seconds > look_on:
                break
            time.sleep(0.2)
        outcome.alive = process.running and answered(http, "/livez")
    return outcome


def timed(outcome: Outcome, ask: Callable[[], bool]) -> bool:
    begin = time.monotonic()
    found = ask()
    outcome.slowest_probe = max(outcome.slowest_probe, time.monotonic() - begin)
    return found


def is_ready(http: httpx.Client) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        adapters = http.get("/v1/state").json()["adapters"]
        return any(adapter["name"] == GOOD and adapter["state"] == "ready" for adapter in adapters)
    return False


def answered(http: httpx.Client, path: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return http.get(path).status_code == 200
    return False


def main() -> None:
    """Prints a table; exit code 1 where the agent died, the good adapter was late, or the pod was ready without it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ATTACKS)}; default: all")
    parser.add_argument("--before", type=Path, help="a checkout of release 0.1.0")
    options = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    failed = list[str]()
    columns = ("attack", "peak MB", "alive", "slowest answer s", "a good adapter ready after s", "pod ready without it")
    report.markdown(columns, rows(options.names or ATTACKS, options.before, failed))
    sys.exit(bool(failed))


def rows(names: Iterable[str], before: Path | None, failed: list[str]) -> Iterator[list[str]]:
    """Notes what was not survived as promised."""
    for name in names:
        with tempfile.TemporaryDirectory(prefix="loraserve-attack-") as folder:
            outcome = suffer(name, Path(folder), before)
        if not outcome.alive or outcome.good_after is None or outcome.ready_without:
            failed.append(name)
        yield [
            *(name, f"{outcome.peak_mb:.0f}", "yes" if outcome.alive else "NO", f"{outcome.slowest_probe:.2f}"),
            f"not in {MOST_SECONDS:.0f}" if outcome.good_after is None else f"{outcome.good_after:.1f}",
            "YES" if outcome.ready_without else "no",
        ]


if __name__ == "__main__":
    main()
