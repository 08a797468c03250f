"""What the gateway adds to a request, beside other proxies: one process each, against an upstream that answers at once.

Keys, aliases, limits, metrics and the access log are on. Others take part where their executable is given:
`python -m bench.gateway --vllm-router <venv>/bin/vllm-router --litellm <venv>/bin/litellm`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import uvloop
from rich.console import Console
from rich.table import Table

from bench.constant_upstream import SERVED
from local.engine.workspace import CHECKOUT
from loraserve.contract.gateway_settings import GatewaySettings
from loraserve.contract.keys import KeyRing, create_key

CONCURRENCY = (1, 50, 200)
STEADY_RATE = 200
SECONDS = 5.0
HELD = 1000
WARM_UP_SECONDS = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Target:
    """A server under load: where it listens, and the process whose CPU and memory count."""

    name: str
    port: int
    pid: int
    key: str
    model: str


@dataclass
class Load:
    """What one run saw."""

    latencies: list[float] = field(default_factory=list)
    failures: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    rss_mb: float = 0.0

    def percentile(self, share: float) -> float:
        """Milliseconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def rate_per_core(self) -> float:
        return len(self.latencies) / self.cpu_seconds


def request(target: Target, *, stream: bool) -> bytes:
    """A chat request of about 1 KB."""
    messages = [{"role": "system", "content": "You answer briefly. " * 10}, {"role": "user", "content": "Why? " * 100}]
    body = json.dumps({"model": target.model, "messages": messages, "max_tokens": 64, "stream": stream}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {target.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """Asks again and again on one connection."""

    def __init__(self, message: bytes, on_answer: Callable[[Connection, float, bool], None]) -> None:
        self._message = message
        self._on_answer = on_answer
        self._received = bytearray()
        self._asked_at = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, due_at: float | None = None) -> None:
        """Latency counts from when the request was due, so that a late client does not hide a slow server."""
        assert self._transport
        self._asked_at = time.perf_counter() if due_at is None else due_at
        self._transport.write(self._message)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._complete():
            succeeded = self._received.startswith(b"HTTP/1.1 200")
            self._received.clear()
            self._on_answer(self, time.perf_counter() - self._asked_at, succeeded)

    def close(self) -> None:
        assert self._transport
        self._transport.abort()

    def _complete(self) -> bool:
        head, found, body = bytes(self._received).partition(b"\r\n\r\n")
        if not found:
            return False
        lengths = [line.split(b":")[1] for line in head.lower().splitlines() if line.startswith(b"content-length:")]
        return len(body) >= int(lengths[0]) if lengths else body.endswith(b"0\r\n\r\n")


async def closed_loop(target: Target, concurrency: int, *, stream: bool) -> Load:
    """Every connection asks as soon as it has its answer."""
    load, stopped = Load(), False

    def on_answer(connection: Connection, latency: float, succeeded: bool) -> None:
        load.latencies.append(latency)
        load.failures += not succeeded
        if not stopped:
            connection.ask()

    connections = await connect(target, concurrency, stream, on_answer)
    for connection in connections:
        connection.ask()
    await measure(target, load)
    stopped = True
    for connection in connections:
        connection.close()
    return load


async def open_loop(target: Target, rate: float, *, stream: bool) -> Load:
    """Requests come at a steady rate, whether answers do or not."""
    load = Load()
    idle: list[Connection] = []

    def on_answer(connection: Connection, latency: float, succeeded: bool) -> None:
        load.latencies.append(latency)
        load.failures += not succeeded
        idle.append(connection)

    idle += await connect(target, 50, stream, on_answer)
    everyone = list(idle)

    async def keep_asking() -> None:
        due = time.perf_counter()
        while True:
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if idle:
                idle.pop().ask(due)
            else:
                load.failures += 1

    asking = asyncio.create_task(keep_asking())
    await measure(target, load)
    asking.cancel()
    for connection in everyone:
        connection.close()
    return load


async def connect(
    target: Target, count: int, stream: bool, on_answer: Callable[[Connection, float, bool], None]
) -> list[Connection]:
    """Open connections."""
    loop, message = asyncio.get_running_loop(), request(target, stream=stream)

    async def one() -> Connection:
        _, protocol = await loop.create_connection(lambda: Connection(message, on_answer), "127.0.0.1", target.port)
        return protocol

    return [await one() for _ in range(count)]


async def measure(target: Target, load: Load) -> None:
    """Lets a load run; what came while it warmed up does not count."""
    await asyncio.sleep(WARM_UP_SECONDS)
    load.latencies.clear()
    began, cpu = time.perf_counter(), cpu_seconds(target.pid)
    await asyncio.sleep(SECONDS)
    load.latencies, load.seconds = list(load.latencies), time.perf_counter() - began
    load.cpu_seconds, load.rss_mb = cpu_seconds(target.pid) - cpu, rss_mb(target.pid)


def cpu_seconds(pid: int) -> float:
    """Of a process, with its ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / _TICKS


def rss_mb(pid: int) -> float:
    """Resident memory."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


async def memory_of_held_requests(target: Target, upstream: Upstream) -> float:
    """MB that HELD waiting requests take in a gateway whose model sleeps."""
    before = rss_mb(target.pid)
    await upstream.show_pods(awake=False)
    connections = await connect(target, HELD, False, lambda *_: None)
    for connection in connections:
        connection.ask()
    await asyncio.sleep(3)
    held = rss_mb(target.pid) - before
    for connection in connections:
        connection.close()
    await upstream.show_pods(awake=True)
    return held


def free_port() -> int:
    """Free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen[bytes], path: str = "/") -> None:
    """Until something answers there."""
    import httpx

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"{process.args} ended with exit code {process.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code < 500:
                return
        time.sleep(0.2)
    raise SystemExit(f"{process.args} does not answer on port {port}")


@contextlib.contextmanager
def running(*command: str, environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process, ended afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=CHECKOUT, env=os.environ | environment, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass(frozen=True)
class Upstream:
    """The constant upstream's ports: vLLM, agent, Kubernetes API."""

    vllm: int
    agent: int
    kubernetes: int
    pid: int

    async def show_pods(self, *, awake: bool) -> None:
        """Whether the EndpointSlice names the pod."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.kubernetes)
        writer.write(b"POST /%s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % (b"awake" if awake else b"asleep"))
        await reader.readline()
        writer.close()
        await asyncio.sleep(1)


@contextlib.contextmanager
def upstream(folder: Path) -> Iterator[Upstream]:
    ports = [free_port() for _ in range(3)]
    command = (sys.executable, "-m", "bench.constant_upstream", *map(str, ports))
    with running(*command, environment={}, log=folder / "upstream.log") as process:
        wait_for(ports[1], process, "/v1/state")
        yield Upstream(*ports, pid=process.pid)


@contextlib.contextmanager
def gateway(folder: Path, behind: Upstream) -> Iterator[Target]:
    key, entry = create_key("bench", ("*",), 100_000_000)
    (folder / "keys.json").write_text(KeyRing(keys=(entry,)).to_json())
    (folder / "token").write_text("token")
    port, metrics_port = free_port(), free_port()
    environment = GatewaySettings.variables(
        kubernetes_url=f"http://127.0.0.1:{behind.kubernetes}",
        kubernetes_namespace="bench",
        kubernetes_credentials=folder,
        vllm_service="vllm-service",
        gateway_service="gateway",
        desired_config_map="desired-state",
        keys_file=folder / "keys.json",
        vllm_api_key="upstream",
        port=port,
        metrics_port=metrics_port,
        vllm_port=behind.vllm,
        agent_port=behind.agent,
        max_waiting=HELD * 3,
    )
    command = (sys.executable, "-m", "loraserve", "gateway")
    with running(*command, environment=environment, log=folder / "gateway.log") as process:
        wait_for(metrics_port, process, "/readyz")
        yield Target("loraserve gateway", port, process.pid, key, SERVED.partition("@")[0])


@contextlib.contextmanager
def vllm_router(executable: str, folder: Path, behind: Upstream) -> Iterator[Target]:
    port, metrics_port = free_port(), free_port()
    command = (
        *(executable, "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics_port)),
        *("--worker-urls", f"http://127.0.0.1:{behind.vllm}"),
    )
    with running(*command, environment={}, log=folder / "router.log") as process:
        wait_for(port, process, "/v1/models")
        yield Target("vllm-router", port, process.pid, "none", SERVED)


@contextlib.contextmanager
def litellm(executable: str, folder: Path, behind: Upstream) -> Iterator[Target]:
    port = free_port()
    parameters = {
        "model": f"openai/{SERVED}",
        "api_base": f"http://127.0.0.1:{behind.vllm}/v1",
        "api_key": "upstream",
    }
    config = {
        "model_list": [{"model_name": "faq", "litellm_params": parameters}],
        "general_settings": {"master_key": "sk-bench"},
        "litellm_settings": {"telemetry": False},
    }
    (folder / "litellm.json").write_text(json.dumps(config))
    command = (executable, "--config", str(folder / "litellm.json"), "--host", "127.0.0.1", "--port", str(port))
    with running(*command, environment={}, log=folder / "litellm.log") as process:
        wait_for(port, process, "/health/liveliness")
        yield Target("LiteLLM", port, process.pid, "sk-bench", "faq")


def measure_target(target: Target, rows: list[tuple[str, str, Load]]) -> None:
    """Every load, one after the other."""
    for stream in (False, True):
        kind = "stream" if stream else "whole"
        steady = uvloop.run(open_loop(target, STEADY_RATE, stream=stream))
        rows.append((target.name, f"{kind}, {STEADY_RATE}/s", steady))
        for concurrency in CONCURRENCY:
            load = uvloop.run(closed_loop(target, concurrency, stream=stream))
            rows.append((target.name, f"{kind}, {concurrency} at once", load))


def main() -> None:
    """Prints a table for people and a line of JSON for machines; exit code 1 where the gateway misses a target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm-router", help="its executable")
    parser.add_argument("--litellm", help="its executable")
    options = parser.parse_args()
    rows: list[tuple[str, str, Load]] = []
    with tempfile.TemporaryDirectory(prefix="loraserve-bench-") as name, upstream(Path(name)) as behind:
        folder = Path(name)
        measure_target(Target("direct", behind.vllm, behind.pid, "none", SERVED), rows)
        with gateway(folder, behind) as target:
            measure_target(target, rows)
            held = uvloop.run(memory_of_held_requests(target, behind))
        if options.vllm_router:
            with vllm_router(options.vllm_router, folder, behind) as target:
                measure_target(target, rows)
        if options.litellm:
            with litellm(options.litellm, folder, behind) as target:
                measure_target(target, rows)
    show(rows)
    print(f"{HELD} held requests take {held:.0f} MB")
    sys.exit(any(missed(rows)))


def show(rows: list[tuple[str, str, Load]]) -> None:
    table = Table("server", "load", "p50 ms", "p99 ms", "requests/s", "per core", "MB", "failed")
    results = []
    for name, kind, load in rows:
        p50, p99 = load.percentile(0.5), load.percentile(0.99)
        table.add_row(
            *(name, kind, f"{p50:.2f}", f"{p99:.2f}", f"{load.rate:.0f}", f"{load.rate_per_core:.0f}"),
            *(f"{load.rss_mb:.0f}", str(load.failures)),
        )
        results.append({"server": name, "load": kind, "p50": round(p50, 3), "p99": round(p99, 3), "rate": load.rate})
    Console().print(table)
    print(json.dumps(results))


def missed(rows: list[tuple[str, str, Load]]) -> Iterator[bool]:
    """The promises: at most 1 ms added at a steady rate, 1,000 requests a second and core, 100 MB."""
    by_load = {(name, kind): load for name, kind, load in rows}
    steady = f"whole, {STEADY_RATE}/s"
    ours, direct = by_load["loraserve gateway", steady], by_load["direct", steady]
    yield ours.percentile(0.5) - direct.percentile(0.5) > 1.0
    busy = by_load["loraserve gateway", f"whole, {CONCURRENCY[1]} at once"]
    yield busy.rate_per_core < 1000
    yield busy.rss_mb > 100
    yield any(load.failures for (name, _), load in by_load.items() if name == "loraserve gateway")


if __name__ == "__main__":
    main()
