"""One tenant against all others: what the gateway takes of memory, how its neighbours and its probe fare, attack by attack.

The gateway runs in a memory cgroup with its pod's limit, so root is needed; a neighbour asks steadily, and /livez is asked all the
time. `python -m bench.attacks [--before CHECKOUT] [NAME ...]`; with a checkout of release 0.1.0 its gateway is the one attacked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench import report, vegeta
from bench.gateway import Gateway, Upstream, gateway, rss_mb, upstream
from bench.vegeta import Answers, Request
from loraserve.contract.keys import create_key
from loraserve.planning.pod_resources import GATEWAY_MEMORY_LIMIT_MIB

SECONDS = 6.0
OVERLOAD_SECONDS = 60.0
OVERLOAD_RATE = 400
NEIGHBOUR_RATE = 10
_MIB = 1 << 20
_LARGE = 4 * _MIB - 1000
_CGROUPS = Path("/sys/fs/cgroup")


class MemoryGroup:
    """A cgroup, version 1 or 2."""

    def __init__(self, name: str, limit_mib: int) -> None:
        second = (_CGROUPS / "cgroup.controllers").exists()
        self.folder = (_CGROUPS if second else _CGROUPS / "memory") / name
        limit, self._peak = (
            ("memory.max", "memory.peak") if second else ("memory.limit_in_bytes", "memory.max_usage_in_bytes")
        )
        self.folder.mkdir()
        (self.folder / limit).write_text(str(limit_mib * _MIB))

    def command(self, *command: str) -> tuple[str, ...]:
        """The same command, run in the group from its first byte on."""
        return ("sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh", *command)

    @property
    def peak_mb(self) -> float:
        return int((self.folder / self._peak).read_text()) / _MIB

    def remove(self) -> None:
        self.folder.rmdir()


@dataclass
class Target:
    """The gateway under attack, and what attackers have seen of it."""

    gateway: Gateway
    limited: str
    """A key of one request a minute."""
    unlimited: str
    statuses: Counter[str] = field(default_factory=Counter)

    async def ask(self, key: str, body: bytes = b"", path: str = "/v1/completions") -> None:
        """One request on a connection of its own; notes the status, or that there was none."""
        writer = None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
            method = "POST" if body else "GET"
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            status = (await reader.readline()).split()[1:2]
            self.statuses[status[0].decode() if status else "none"] += 1
            while await reader.read(_MIB):
                pass
        except OSError:
            self.statuses["none"] += 1
        finally:
            if writer:
                writer.close()


Attack = Callable[[Target], Coroutine[Any, Any, None]]


async def by_callers(count: int, ask: Callable[[], Awaitable[None]]) -> None:
    """Each asks as soon as it has its answer."""

    async def keep_asking() -> None:
        while time.monotonic() < end:
            await ask()

    end = time.monotonic() + SECONDS
    await asyncio.gather(*(keep_asking() for _ in range(count)))


async def large_bodies(target: Target) -> None:
    """64 bodies of 4 MiB at once on a key of one request a minute, held there."""
    body = json.dumps({"model": "faq", "prompt": "word " * (_LARGE // 5), "user": "slow"}).encode()
    await asyncio.gather(*(target.ask(target.limited, body) for _ in range(64)))


async def large_bodies_without_limit(target: Target) -> None:
    body = json.dumps({"model": "faq", "prompt": "word " * (_LARGE // 5), "user": "slow"}).encode()
    await by_callers(64, lambda: target.ask(target.unlimited, body))


async def large_headers(target: Target) -> None:
    """427 connections without a key, each with a megabyte of headers that never ends."""
    await hold_lines(target, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n")


async def large_trailers(target: Target) -> None:
    """427 requests without a key, each with a megabyte behind its body."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    await hold_lines(target, head + b"1\r\n{\r\n0\r\n")


async def hold_lines(target: Target, head: bytes) -> None:
    """427 connections that send this, then a megabyte of lines without an end."""

    async def hold() -> None:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", target.gateway.port)
            writer.write(head)
            for number in range(120):
                writer.write(b"X-%d: " % number + b"x" * 8000 + b"\r\n")
                await writer.drain()
            await asyncio.sleep(SECONDS)
            writer.close()

    await asyncio.gather(*(hold() for _ in range(427)))


async def unread_answers(target: Target) -> None:
    """2,100 connections without a key that ask a thousand times, and read nothing."""
    question = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" * 1000

    async def hold() -> None:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, TimeoutError):
            await loop.sock_connect(client, ("127.0.0.1", target.gateway.port))
            async with asyncio.timeout(SECONDS):
                await loop.sock_sendall(client, question)
                await asyncio.Event().wait()
        client.close()

    await asyncio.gather(*(hold() for _ in range(2100)))


async def silent_bodies(target: Target) -> None:
    """2,100 requests of one key that announce a byte and do not send it."""

    async def hold() -> None:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", target.gateway.port)
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {target.unlimited}\r\n"
            writer.write(f"{head}Content-Length: 1\r\n\r\n".encode())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SECONDS):
                    target.statuses[(await reader.readline()).decode()[9:12] or "none"] += 1
            writer.close()

    await asyncio.gather(*(hold() for _ in range(2100)))


async def silent_handshakes(target: Target) -> None:
    """3,000 connections that begin TLS and never end it."""
    outgoing = ssl.MemoryBIO()
    hello = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="x")
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.do_handshake()
    first = outgoing.read()

    async def hold() -> None:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", target.gateway.tls_port)
            writer.write(first)
            await asyncio.sleep(SECONDS)
            writer.close()

    await asyncio.gather(*(hold() for _ in range(3000)))


async def bursting_json(target: Target) -> None:
    body = b'{"model": "faq", "prompt": [' + b"[]," * (_LARGE // 3) + b"[]]}"
    await by_callers(8, lambda: target.ask(target.unlimited, body))


async def quotation_marks(target: Target) -> None:
    body = b"[" + b"," * 160_000 + b'"' + b'\\"' * 1_900_000
    await by_callers(8, lambda: target.ask(target.unlimited, body))


async def bad_json(target: Target) -> None:
    body = b'{"model": "faq", "prompt": "' + b"x" * _LARGE
    await by_callers(8, lambda: target.ask(target.unlimited, body))


async def unknown_models(target: Target) -> None:
    await by_callers(50, lambda: target.ask(target.unlimited, b'{"model": "nope", "prompt": "Hi"}'))


async def lists_of_models(target: Target) -> None:
    await by_callers(50, lambda: target.ask(target.unlimited, path="/v1/models"))


async def wrong_keys(target: Target) -> None:
    await by_callers(50, lambda: target.ask("lsk-0-wrong", b"{}"))


async def large_answers(target: Target) -> None:
    """8 answers of 256 MiB each, as `prompt_logprobs` makes them, to clients that hardly read."""
    await hold_answers(target, b'{"model": "faq", "prompt": "Hi", "prompt_logprobs": 20}')


async def large_events(target: Target) -> None:
    """8 streams with one event of 256 MiB, as `echo` with `logprobs` makes them, to clients that hardly read."""
    await hold_answers(target, b'{"model": "faq", "prompt": "Hi", "echo": true, "logprobs": 20, "stream": true}')


async def hold_answers(target: Target, body: bytes) -> None:
    async def hold() -> None:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", target.gateway.port, limit=1 << 16)
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {target.unlimited}\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await reader.readline()
            await asyncio.sleep(SECONDS)
            writer.close()

    await asyncio.gather(*(hold() for _ in range(8)))


async def overload(target: Target) -> None:
    """400 requests/s for a minute of an answer that takes 2 s: three times of what 256 places can do."""
    body = {"model": "faq", "prompt": "Hi", "user": "slow"}
    request = Request(f"http://127.0.0.1:{target.gateway.port}/v1/completions", target.unlimited, body)
    with tempfile.TemporaryDirectory(prefix="loraserve-overload-") as folder:
        load = vegeta.at_rate(OVERLOAD_RATE)
        answers = await asyncio.to_thread(vegeta.answers, request, load, Path(folder), OVERLOAD_SECONDS)
    target.statuses.update(answers.statuses)


ATTACKS: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        *(large_bodies, large_bodies_without_limit, silent_bodies, large_headers, large_trailers, silent_handshakes),
        *(unread_answers, bursting_json, quotation_marks, bad_json, unknown_models, lists_of_models, wrong_keys),
        *(large_answers, large_events, overload),
    )
}


@dataclass(frozen=True)
class Outcome:
    idle_mb: float
    peak_mb: float
    alive: bool
    slowest_probe: float
    """Seconds."""
    neighbour: Answers
    statuses: Counter[str]


def suffer(name: str, folder: Path, behind: Upstream, before: Path | None) -> Outcome:
    """A fresh gateway through one attack."""
    group = MemoryGroup(f"loraserve-bench-{os.getpid()}", GATEWAY_MEMORY_LIMIT_MIB)
    limited, limited_entry = create_key("attacker-limited", ("*",), 1)
    unlimited, unlimited_entry = create_key("attacker", ("*",), None)
    try:
        others = [limited_entry, unlimited_entry]
        with gateway(folder, behind, others, group.command, tls=True, before=before) as under:
            target, idle = Target(under, limited, unlimited), rss_mb(under.pid)
            with ThreadPoolExecutor(1) as pool, probing(under) as probes:
                seconds = (OVERLOAD_SECONDS if name == "overload" else SECONDS) + 4
                neighbour = pool.submit(
                    vegeta.answers, under.request(), vegeta.at_rate(NEIGHBOUR_RATE), folder, seconds
                )
                time.sleep(2)
                asyncio.run(bounded(ATTACKS[name](target), 2 * seconds))
                answers = neighbour.result()
            return Outcome(idle, group.peak_mb, alive(under), max(probes, default=0), answers, target.statuses)
    finally:
        with contextlib.suppress(OSError):
            group.remove()


async def bounded(attack: Awaitable[None], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await attack


def alive(under: Gateway) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{under.metrics_port}/livez", trust_env=False, timeout=30).status_code == 200
    return False


@contextlib.contextmanager
def probing(under: Gateway) -> Iterator[list[float]]:
    """How long each probe took, in seconds; 60 where none was answered."""
    took, stop = list[float](), threading.Event()

    def probe() -> None:
        while not stop.wait(0.1):
            begin = time.monotonic()
            try:
                httpx.get(f"http://127.0.0.1:{under.metrics_port}/livez", trust_env=False, timeout=60)
                took.append(time.monotonic() - begin)
            except httpx.HTTPError:
                took.append(60)
                return

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join()


def main() -> None:
    """Prints a table; exit code 1 where the gateway died, or its probe was not answered within a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ATTACKS)}; default: all")
    parser.add_argument("--before", type=Path, help="a checkout of release 0.1.0")
    options = parser.parse_args()
    failed = list[str]()
    columns = (
        "attack",
        "idle MB",
        "peak MB",
        "alive",
        "slowest probe s",
        "neighbour's p50 ms",
        "p99 ms",
        "failed",
        "answers",
    )
    report.markdown(columns, rows(options.names or ATTACKS, options.before, failed))
    sys.exit(bool(failed))


def rows(names: Iterable[str], before: Path | None, failed: list[str]) -> Iterator[list[str]]:
    """Notes what was not survived as promised."""
    for name in names:
        with tempfile.TemporaryDirectory(prefix="loraserve-attack-") as folder, upstream(Path(folder)) as behind:
            outcome = suffer(name, Path(folder), behind, before)
        if not outcome.alive or outcome.slowest_probe > 1:
            failed.append(name)
        neighbour = outcome.neighbour
        yield [
            *(name, f"{outcome.idle_mb:.0f}", f"{outcome.peak_mb:.0f}", "yes" if outcome.alive else "NO"),
            *(f"{outcome.slowest_probe:.2f}", f"{neighbour.p50:.1f}", f"{neighbour.p99:.0f}"),
            f"{neighbour.failed} of {neighbour.count + neighbour.failed}",
            ", ".join(f"{count} x {status}" for status, count in sorted(outcome.statuses.items())),
        ]


if __name__ == "__main__":
    main()
