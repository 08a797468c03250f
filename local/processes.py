"""Background processes of the local stack: started once, found again by a later command, stopped by process id.

A process called `name` leaves two files in its state folder: `<name>.log` and `<name>.pid`. It leads a session of its
own, so that stopping it stops its children too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.05
_LOG_TAIL_LINES = 20
_KERNELS_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT = 1024
"""Below it only root listens."""


class ProcessError(Exception):
    """A process that did not start, did not become ready or did not stop. The message ends with its log's tail."""


@dataclass(frozen=True)
class Process:
    """A started process. `start_ticks` (clock ticks since boot) tells it from a later one with the same id."""

    name: str
    state: Path
    pid: int
    start_ticks: int

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str | Path],
        state: Path,
        *,
        env: Mapping[str, str] | None = None,
        die_with_parent: bool = False,
    ) -> Process:
        """Start `command` with its output appended to `<name>.log`; `env` replaces the whole environment.

        With `die_with_parent` the kernel kills the process when the calling thread ends, however it ends.
        """
        state.mkdir(parents=True, exist_ok=True)
        words = [str(word) for word in command]
        if die_with_parent:
            words = ["setpriv", "--pdeathsig", "KILL", "--", *words]
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            pid = os.posix_spawnp(
                words[0],
                words,
                os.environ if env is None else env,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(state / f"{name}.log"), append, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
            )
        except OSError as error:
            raise ProcessError(f"{name} cannot be started: {words[0]}: {error.strerror}") from error
        process = cls(name, state, pid, _start_ticks(pid) or 0)
        process._pid_file.write_text(json.dumps({"pid": pid, "start_ticks": process.start_ticks}))
        return process

    @classmethod
    def load(cls, name: str, state: Path) -> Process | None:
        """The process that was started under this name, or None where it is not running any more."""
        try:
            recorded = json.loads((state / f"{name}.pid").read_text())
            process = cls(name, state, recorded["pid"], recorded["start_ticks"])
        except (FileNotFoundError, ValueError, KeyError):
            return None
        return process if process.running else None

    @property
    def log(self) -> Path:
        return self.state / f"{self.name}.log"

    @property
    def running(self) -> bool:
        _reap(self.pid)
        return _start_ticks(self.pid) == self.start_ticks

    def wait_until(self, ready: Callable[[], bool], limit_s: float = 60) -> None:
        """Wait until `ready()` is true. Raises ProcessError when the process ends first or `limit_s` passes."""
        deadline = time.monotonic() + limit_s
        while not ready():
            if not self.running:
                raise ProcessError(f"{self.name} ended while it was starting.{self._log_tail()}")
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.name} is not ready after {limit_s:.0f} s.{self._log_tail()}")
            time.sleep(_POLL_S)

    def stop(self, limit_s: float = 20) -> None:
        """End the process and its children: SIGTERM, then SIGKILL after `limit_s`. Does nothing if it is gone."""
        for signal_number, patience_s in ((signal.SIGTERM, limit_s), (signal.SIGKILL, 5.0)):
            if self._signal_and_wait(signal_number, patience_s):
                self._pid_file.unlink(missing_ok=True)
                return
        raise ProcessError(f"{self.name} (process {self.pid}) survived SIGKILL.{self._log_tail()}")

    def signal(self, signal_number: signal.Signals) -> None:
        """Send a signal to the process and its children, if they are still there."""
        if self._members():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal_number)

    def _signal_and_wait(self, signal_number: signal.Signals, limit_s: float) -> bool:
        self.signal(signal_number)
        deadline = time.monotonic() + limit_s
        while self._members():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _members(self) -> list[int]:
        """Living processes of the session; none once its id belongs to somebody else."""
        _reap(self.pid)
        if _start_ticks(self.pid) not in (None, self.start_ticks):
            return []
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in pids if _session(pid) == self.pid]

    @property
    def _pid_file(self) -> Path:
        return self.state / f"{self.name}.pid"

    def _log_tail(self) -> str:
        return f" Its log, {self.log}, ends with:\n{tail(self.log)}"


def tail(log: Path, lines: int = _LOG_TAIL_LINES) -> str:
    """The last lines of a log, or a word about its absence."""
    try:
        return last_lines(log.read_text(errors="replace"), lines)
    except FileNotFoundError:
        return "(no log)"


def last_lines(text: str, lines: int = _LOG_TAIL_LINES) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:]) or "(nothing)"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    return free_ports(1)[0]


def free_ports(count: int, addresses: Sequence[str] = ("127.0.0.1",)) -> list[int]:
    """As many different ports, free on each of these addresses.

    They lie below those that the kernel itself gives to connections and to servers that ask for any port:
    between this look and the server's start one of those may be taken by anybody.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.choice(_ports_of_ours())
        if port not in found and all(is_free(port, address) for address in addresses):
            found.append(port)
    return found


def _ports_of_ours() -> range:
    end = max(int(_KERNELS_PORTS.read_text().split()[0]), 2 * _LOWEST_PORT)
    return range(max(end // 2, _LOWEST_PORT), end)


def is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Whether a server could listen on this TCP port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock between processes; `waiting` is called once if somebody else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stat_fields(pid: int) -> list[str] | None:
    """/proc/<pid>/stat from its third field (the state) on, or None for a process that has ended.

    A zombie counts as ended only with its last thread: until then its ports are still taken.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, threads = fields[0], int(fields[17])
    return None if state in "ZX" and threads <= 1 else fields


def _start_ticks(pid: int) -> int | None:
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else None


def _session(pid: int) -> int | None:
    fields = _stat_fields(pid)
    return int(fields[3]) if fields else None


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
