"""`make up`, `make status` and `make down`, as a person runs them, in a state folder of the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from local.engine import CHECKOUT


def local(verb: str, state: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "local", verb],
        cwd=CHECKOUT,
        env=os.environ | {"LORASERVE_STATE": str(state)},
        capture_output=True,
        text=True,
    )


def running(state: Path) -> list[str]:
    """Command lines of processes that name the state folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(state) in command:
            found.append(command)
    return found


def test_up_is_repeatable_and_down_leaves_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    stack_file = (CHECKOUT / "Pulumi.local.yaml").read_bytes()
    try:
        first = local("up", state)
        assert first.returncode == 0, first.stdout + first.stderr
        assert "The local stack is up" in first.stdout
        again = local("up", state)
        assert "unchanged" in again.stdout
        assert "created" not in again.stdout
        assert "Kubernetes: runs\nAWS:        runs" in local("status", state).stdout
        assert running(state)
    finally:
        down = local("down", state)
    assert down.returncode == 0, down.stdout + down.stderr
    assert "left: nothing" in down.stdout
    assert not state.exists()
    assert running(state) == []
    assert (CHECKOUT / "Pulumi.local.yaml").read_bytes() == stack_file  # the CLI's salt went into a copy


def test_up_goes_on_where_a_killed_one_stopped(tmp_path: Path) -> None:
    state = tmp_path / "state"
    try:
        first = subprocess.Popen(
            [sys.executable, "-m", "local", "up"],
            cwd=CHECKOUT,
            env=os.environ | {"LORASERVE_STATE": str(state)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert first.stdout
        for line in first.stdout:
            if "aws:ec2:Subnet" in line and "created" in line:
                os.killpg(first.pid, signal.SIGKILL)
                break
        first.communicate()
        assert first.returncode == -signal.SIGKILL
        again = local("up", state)
        assert again.returncode == 0, again.stdout + again.stderr
    finally:
        down = local("down", state)
    assert "left: nothing" in down.stdout
    assert running(state) == []


def test_down_without_a_stack_says_so(tmp_path: Path) -> None:
    down = local("down", tmp_path / "none")
    assert down.returncode == 0
    assert "there is no local stack" in down.stdout
