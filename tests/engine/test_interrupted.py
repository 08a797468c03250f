"""`up` killed at random points: the runbook's four commands, and the next `up` ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from local.engine import plugins, workspace
from local.engine.receipt import delete
from local.engine.workspace import CHECKOUT
from loraserve.operator.stack.leftovers import StackState, find
from tests.engine.deployed import Deployment, World

KILLS = int(os.environ.get("KILLS", "4"))
SEED = 20261123


def kill_after(deployment: Deployment, created: int) -> bool:
    """Runs `up` and kills the CLI and everything it started once so many resources exist. False if it ended before."""
    process = deployment.start("up", "--yes", "--skip-preview")
    assert process.stdout
    seen = 0
    for line in process.stdout:
        seen += bool(re.search(r"\bcreated\b", line))
        if seen >= created:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
    process.wait()
    return False


def recover(deployment: Deployment) -> None:
    """docs/operations.md, "An `up` that was killed"."""
    cancelled = deployment.run("cancel", "--yes")
    assert cancelled.returncode == 0, cancelled.stderr
    export = deployment.run("stack", "export").stdout
    shown = subprocess.run(
        [sys.executable, "-m", "loraserve", "leftovers", deployment.name],
        cwd=deployment.project,
        env=deployment.environment | {"PYTHONPATH": str(CHECKOUT)},
        input=export,
        capture_output=True,
        text=True,
    )
    left = find(deployment.name, StackState.read(export, deployment.name), deployment.world.cloud.client)
    assert shown.returncode == (2 if left else 0), shown.stdout + shown.stderr
    assert all(f"{item.kind} {item.name}" in shown.stdout for item in left)
    delete(left, deployment.world.cloud.client)
    assert find(deployment.name, StackState.read(export, deployment.name), deployment.world.cloud.client) == []
    refreshed = deployment.run("refresh", "--yes", "--skip-preview", "--clear-pending-creates")
    assert refreshed.returncode == 0, refreshed.stdout + refreshed.stderr


@pytest.mark.timeout(225 * KILLS)
def test_up_killed_at_random_points_converges(world: World) -> None:
    dev = Deployment(world, "dev")
    chance = random.Random(SEED)
    kills = 0
    for _ in range(KILLS):
        if not kill_after(dev, created=chance.randint(1, 25)):
            break
        kills += 1
        time.sleep(1)  # stand-ins notice that the engine is gone
        plugins.end(world.folder / "pulumi")
        workspace.restore_checkpoint(world.folder, "dev")  # a file backend only: it does not write atomically
        refused = dev.run("up", "--yes", "--skip-preview")
        assert "currently locked" in refused.stdout + refused.stderr
        recover(dev)
    assert kills >= 2, "`up` ended before it could be killed: nothing was tested"

    dev.up()
    assert dev.up().touched == {}
    dev.destroy()
    assert world.left_behind("dev") == []
