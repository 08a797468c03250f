"""What the gateway adds to a request, beside other proxies: one process each, against an upstream that answers at once.

Keys, aliases, limits, metrics and the access log are on; vegeta makes the load, a minute for each server. Others take part where
their executable is given, and the gateway of release 0.1.0 where a checkout of it is (its commit is in tests/releases.txt):
`python -m bench.gateway --before <checkout> --vllm-router <venv>/bin/vllm-router --litellm <venv>/bin/litellm`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench import before as release
from bench import report, vegeta
from bench.constant_upstream import SERVED
from bench.vegeta import Answers, Request
from local.processes import Process, free_port, free_ports
from loraserve.contract.gateway_settings import GatewaySettings
from loraserve.contract.keys import Key, KeyRing, create_key
from loraserve.planning.cold_start import HOLD_SECONDS

CONCURRENCY = (1, 50, 200)
STEADY_RATE = 200
SECONDS = 5.0
HELD = 1000
OURS = "gateway"
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
    second_key: str = ""
    """Another tenant's."""

    def request(self, *, stream: bool = False, slow: bool = False, key: str | None = None) -> Request:
        """A chat request of about 1 KB."""
        system, user = "You answer briefly. " * 10, "Why? " * 100
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        body = {"model": self.model, "messages": messages, "max_tokens": 64, "stream": stream}
        body |= {"user": "slow"} if slow else {}
        return Request(f"http://127.0.0.1:{self.port}/v1/chat/completions", key or self.key, body)


@dataclass(frozen=True, kw_only=True)
class Gateway(Target):
    metrics_port: int
    tls_port: int


@dataclass(frozen=True)
class Load:
    """What one run saw, and what it took."""

    answers: Answers
    cpu_seconds: float
    rss_mb: float

    @property
    def rate_per_core(self) -> float:
        return self.answers.count / self.cpu_seconds


def measure(target: Target, request: Request, load: Sequence[str], folder: Path) -> Load:
    """What comes while the server warms up does not count."""
    vegeta.answers(request, load, folder, WARM_UP_SECONDS)
    before = cpu_seconds(target.pid)
    answers = vegeta.answers(request, load, folder, SECONDS)
    return Load(answers, cpu_seconds(target.pid) - before, rss_mb(target.pid))


def cpu_seconds(pid: int) -> float:
    """Of a process, with its ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / _TICKS


def rss_mb(pid: int) -> float:
    """Resident memory."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def memory_of_held_requests(target: Gateway, behind: Upstream, folder: Path) -> float:
    """MB that HELD waiting requests take in a gateway whose model sleeps."""
    before = rss_mb(target.pid)
    behind.show_pods(awake=False)
    with calling([target.request(), target.request(key=target.second_key)], folder):
        deadline = time.monotonic() + 30
        while waiting(target) < HELD:
            assert time.monotonic() < deadline, f"{waiting(target)} of {HELD} requests wait"
            time.sleep(0.2)
        taken = rss_mb(target.pid) - before
    behind.show_pods(awake=True)
    return taken


def memory_of_slow_requests(target: Target, folder: Path) -> float:
    """MB that HELD requests take which a model answers after two seconds; a gateway sends it as many as it can take."""
    before, most = rss_mb(target.pid), 0.0
    with calling([target.request(slow=True), target.request(slow=True, key=target.second_key)], folder):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            most = max(most, rss_mb(target.pid))
            time.sleep(0.1)
    return most - before


@contextlib.contextmanager
def calling(requests: Sequence[Request], folder: Path) -> Iterator[None]:
    """HELD callers, as many for each request: no tenant of the gateway may hold more than half of what it holds."""
    with contextlib.ExitStack() as stack:
        for number, request in enumerate(requests):
            own = folder / f"callers-{number}"
            own.mkdir(exist_ok=True)
            command = vegeta.attack(request, vegeta.by_callers(HELD // len(requests)), own)
            stack.enter_context(running("callers", command, own))
        yield


def waiting(target: Gateway) -> int:
    """Requests that the gateway holds."""
    return httpx.get(f"http://127.0.0.1:{target.metrics_port}/scale", trust_env=False).json()["waiting"]


@contextlib.contextmanager
def running(
    name: str, command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """A process, ended afterwards."""
    process = Process.start(name, command, folder, env=os.environ | dict(environment or {}), die_with_parent=True)
    try:
        yield process
    finally:
        process.stop()


def answers(port: int, path: str) -> Callable[[], bool]:
    """Whether something does there."""

    def asked() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code < 500
        return False

    return asked


@dataclass(frozen=True)
class Upstream:
    """The constant upstream's ports: vLLM, agent, Kubernetes API."""

    vllm: int
    agent: int
    kubernetes: int
    pid: int

    def show_pods(self, *, awake: bool) -> None:
        """Whether the EndpointSlice names the pod."""
        httpx.post(f"http://127.0.0.1:{self.kubernetes}/{'awake' if awake else 'asleep'}", trust_env=False)
        time.sleep(1)


@contextlib.contextmanager
def upstream(folder: Path) -> Iterator[Upstream]:
    ports = free_ports(3)
    with running("upstream", (sys.executable, "-m", "bench.constant_upstream", *map(str, ports)), folder) as process:
        process.wait_until(answers(ports[1], "/v1/state"))
        yield Upstream(*ports, pid=process.pid)


@contextlib.contextmanager
def gateway(
    folder: Path,
    behind: Upstream,
    others: Sequence[Key] = (),
    wrap: Callable[..., tuple[str, ...]] = lambda *command: command,
    *,
    tls: bool = False,
    before: Path | None = None,
    traced: bool = False,
) -> Iterator[Gateway]:
    """`others` may call it too; `wrap` makes a command of its command; `before` is a checkout of release 0.1.0.

    `traced`: its spans go to the upstream as well, which takes them for requests.
    """
    key, entry = create_key("bench", ("*",), 100_000_000)
    second_key, second = create_key("bench-2", ("*",), 100_000_000)
    (folder / "keys.json").write_text(KeyRing(keys=(entry, second, *others)).to_json())
    (folder / "token").write_text("token")
    port, metrics_port, tls_port = free_ports(3)
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
        tls_port=tls_port if tls else None,
        traces_url=f"http://127.0.0.1:{behind.vllm}/v1/traces" if traced else None,
        vllm_port=behind.vllm,
        agent_port=behind.agent,
        wait_seconds=HOLD_SECONDS,
        balancer_idle_seconds=HOLD_SECONDS,
    )
    if before:
        environment |= {"GATEWAY_NAMESPACE": "bench", "GATEWAY_KUBERNETES_TOKEN_FILE": str(folder / "token")}
    command = release.command(before, sys.executable, "-m", "loraserve", "gateway")
    with running("gateway", wrap(*command), folder, environment) as process:
        process.wait_until(answers(metrics_port, "/readyz"))
        yield Gateway(
            f"{OURS} {release.NAME}" if before else f"{OURS}, traced" if traced else OURS,
            port,
            process.pid,
            key,
            SERVED.adapter,
            second_key,
            metrics_port=metrics_port,
            tls_port=tls_port,
        )


@contextlib.contextmanager
def vllm_router(executable: str, folder: Path, behind: Upstream) -> Iterator[Target]:
    port, metrics_port = free_ports(2)
    command = (
        *(executable, "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics_port)),
        *("--worker-urls", f"http://127.0.0.1:{behind.vllm}"),
    )
    with running("router", command, folder) as process:
        process.wait_until(answers(port, "/v1/models"), limit_s=120)
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
    with running("litellm", command, folder) as process:
        process.wait_until(answers(port, "/health/liveliness"), limit_s=120)
        yield Target("LiteLLM", port, process.pid, "sk-bench", "faq")


def measure_target(target: Target, folder: Path, rows: list[tuple[str, str, Load]]) -> None:
    """Every load, one after the other."""
    loads = {f"{STEADY_RATE}/s": vegeta.at_rate(STEADY_RATE)}
    loads |= {f"{count} at once": vegeta.by_callers(count) for count in CONCURRENCY}
    for kind in ("whole", "stream"):
        request = target.request(stream=kind == "stream")
        rows += [
            (target.name, f"{kind}, {name}", measure(target, request, load, folder)) for name, load in loads.items()
        ]


def main() -> None:
    """Prints a table for people and a line of JSON for machines; exit code 1 where the gateway misses a target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="a checkout of release 0.1.0")
    parser.add_argument("--vllm-router", help="its executable")
    parser.add_argument("--litellm", help="its executable")
    parser.add_argument("--traces", action="store_true", help="our gateway once more, with each request traced")
    options = parser.parse_args()
    rows: list[tuple[str, str, Load]] = []
    held: dict[str, tuple[float, float | None]] = {}
    with tempfile.TemporaryDirectory(prefix="loraserve-bench-") as name, upstream(Path(name)) as behind:
        folder = Path(name)
        measure_target(Target("direct", behind.vllm, behind.pid, "none", SERVED), folder, rows)
        for before in [options.before, None] if options.before else [None]:
            with gateway(folder, behind, before=before) as target:
                measure_target(target, folder, rows)
                held[target.name] = (
                    memory_of_slow_requests(target, folder),
                    memory_of_held_requests(target, behind, folder),
                )
        if options.traces:
            with gateway(folder, behind, traced=True) as target:
                measure_target(target, folder, rows)
        if options.vllm_router:
            with vllm_router(options.vllm_router, folder, behind) as target:
                measure_target(target, folder, rows)
                held[target.name] = memory_of_slow_requests(target, folder), None
        if options.litellm:
            with litellm(options.litellm, folder, behind) as target:
                measure_target(target, folder, rows)
    show(rows)
    for name, (slow, asleep) in held.items():
        waiting_for_none = "" if asleep is None else f", and {asleep:.0f} MB while the model sleeps"
        print(f"{name}: {HELD} requests to a slow model take {slow:.0f} MB{waiting_for_none}")
    sys.exit(any(missed(rows)))


def show(rows: list[tuple[str, str, Load]]) -> None:
    columns = ("server", "load", "p50 ms", "p99 ms", "requests/s", "per core", "MB", "failed")
    table, results = [], []
    for name, kind, load in rows:
        p50, p99, rate = load.answers.p50, load.answers.p99, load.answers.rate
        table.append(
            [
                *(name, kind, f"{p50:.2f}", f"{p99:.2f}", f"{rate:.0f}", f"{load.rate_per_core:.0f}"),
                *(f"{load.rss_mb:.0f}", str(load.answers.failed)),
            ]
        )
        results.append({"server": name, "load": kind, "p50": round(p50, 3), "p99": round(p99, 3), "rate": rate})
    report.markdown(columns, table)
    print(json.dumps(results))


def missed(rows: list[tuple[str, str, Load]]) -> Iterator[bool]:
    """The promises: at most 1 ms added at a steady rate, 1,000 requests a second and core, 100 MB."""
    by_load = {(name, kind): load for name, kind, load in rows}
    steady = f"whole, {STEADY_RATE}/s"
    ours, direct = by_load[OURS, steady], by_load["direct", steady]
    yield ours.answers.p50 - direct.answers.p50 > 1.0
    busy = by_load[OURS, f"whole, {CONCURRENCY[1]} at once"]
    yield busy.rate_per_core < 1000
    yield busy.rss_mb > 100
    yield any(load.answers.failed for (name, _), load in by_load.items() if name == OURS)


if __name__ == "__main__":
    main()
