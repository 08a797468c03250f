"""Background processes: found again, stopped with their children, never mistaken for somebody else's."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local.processes import Process, ProcessError, free_ports, is_free
from tests.waiting import eventually

_WITH_CHILD = "sleep 300 & echo $! > {pid_file}; wait"
_DEAF = "trap '' TERM; echo deaf; while true; do sleep 0.05; done"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    started: list[Process] = []

    def shell(script: str) -> Process:
        started.append(Process.start("job", ["sh", "-c", script], tmp_path, die_with_parent=True))
        return started[-1]

    yield shell
    for process in started:
        process.stop(limit_s=0)


def test_a_later_command_finds_and_stops_the_process(start: Callable[[str], Process], tmp_path: Path) -> None:
    start("sleep 300")
    found = Process.load("job", tmp_path)
    assert found
    assert found.running
    found.stop()
    assert not found.running
    assert Process.load("job", tmp_path) is None


def test_stopping_takes_the_children_along(start: Callable[[str], Process], tmp_path: Path) -> None:
    pid_file = tmp_path / "child"
    process = start(_WITH_CHILD.format(pid_file=pid_file))
    process.wait_until(lambda: pid_file.exists() and bool(pid_file.read_text().strip()))
    process.stop()
    assert not _lives(int(pid_file.read_text()))


def test_children_that_outlive_their_leader_are_stopped_too(start: Callable[[str], Process], tmp_path: Path) -> None:
    pid_file = tmp_path / "child"
    process = start(f"sleep 300 & echo $! > {pid_file}")
    eventually(lambda: not process.running)
    assert _lives(int(pid_file.read_text()))
    process.stop()
    assert not _lives(int(pid_file.read_text()))


def test_a_process_that_ignores_sigterm_is_killed(start: Callable[[str], Process]) -> None:
    process = start(_DEAF)
    process.wait_until(lambda: "deaf" in process.log.read_text())
    process.stop(limit_s=0.2)
    assert not process.running


def test_a_process_that_ends_while_starting_shows_its_log(start: Callable[[str], Process]) -> None:
    process = start("echo cannot bind to port 80 >&2; exit 1")
    with pytest.raises(ProcessError, match=r"ended while it was starting(.|\n)*cannot bind to port 80"):
        process.wait_until(lambda: False)


def test_a_process_that_is_never_ready_shows_its_log(start: Callable[[str], Process]) -> None:
    process = start("echo waiting for etcd; sleep 300")
    process.wait_until(lambda: "etcd" in process.log.read_text())
    with pytest.raises(ProcessError, match=r"not ready after 0 s(.|\n)*waiting for etcd"):
        process.wait_until(lambda: False, limit_s=0)


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="job cannot be started: no-such-program"):
        Process.start("job", ["no-such-program"], tmp_path)


def test_another_process_with_a_recycled_id_is_left_alone(tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        (tmp_path / "job.pid").write_text(json.dumps({"pid": bystander.pid, "start_ticks": 1}))
        assert Process.load("job", tmp_path) is None
        Process("job", tmp_path, bystander.pid, start_ticks=1).stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_killed_starter_leaves_nothing_running(tmp_path: Path) -> None:
    program = (
        "import pathlib, time; from local.processes import Process\n"
        f"Process.start('job', ['sleep', '300'], pathlib.Path({str(tmp_path)!r}), die_with_parent=True)\n"
        "time.sleep(300)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    eventually(lambda: Process.load("job", tmp_path) is not None)
    job = Process.load("job", tmp_path)
    assert job
    starter.kill()
    starter.wait()
    eventually(lambda: not job.running)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return ") Z " not in Path(f"/proc/{pid}/stat").read_text()


def test_a_free_port_is_none_that_the_kernel_gives_away_meanwhile() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = free_ports(50, ["127.0.0.1", "127.0.0.2"])
    assert len(set(ports)) == 50
    assert not [port for port in ports if first <= port <= last]


def test_a_port_in_use_on_one_of_the_addresses_is_not_free() -> None:
    with socket.socket() as server:
        port = free_ports(1)[0]
        server.bind(("127.0.0.2", port))
        server.listen()
        assert is_free(port)
        assert not is_free(port, "127.0.0.2")
