"""`up` killed at random points: the next one takes up the work, and what it lost sight of can be named."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from typing import Any

import pytest
from deployed import Deployment, World

from local.receipt import left_behind

KILLS = 4
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


def interrupted_creations(deployment: Deployment) -> list[dict[str, Any]]:
    """Creations that the state says were under way when the CLI died."""
    state = json.loads(deployment.run("stack", "export").stdout)
    return state["deployment"].get("pending_operations") or []


@pytest.mark.timeout(900)
def test_up_killed_at_random_points_converges(world: World) -> None:
    dev = Deployment(world, "dev")
    chance = random.Random(SEED)
    unsure: list[dict[str, Any]] = []
    for _ in range(KILLS):
        if not kill_after(dev, created=chance.randint(1, 25)):
            break
        time.sleep(1)  # plugins notice that the engine is gone
        refused = dev.run("up", "--yes", "--skip-preview")
        assert "currently locked" in refused.stdout + refused.stderr
        assert dev.run("cancel", "--yes").returncode == 0
        unsure += interrupted_creations(dev)

    dev.up()
    assert dev.up().touched == {}

    dev.destroy()
    in_doubt = {_KIND_OF_TYPE.get(operation["resource"]["type"], "") for operation in unsure}
    lost = [name for name in left_behind(world.cloud, world.control_plane) if name.split()[0] not in in_doubt]
    assert lost == [], f"the engine had no record of these, nor of a creation under way ({in_doubt})"


_KIND_OF_TYPE = {
    "aws:ec2/vpc:Vpc": "vpc",
    "aws:ec2/launchTemplate:LaunchTemplate": "launch-template",
    "aws:ec2/instance:Instance": "instance",
    "aws:s3/bucket:Bucket": "bucket",
    "aws:iam/role:Role": "role",
    "aws:iam/openIdConnectProvider:OpenIdConnectProvider": "oidc-provider",
    "aws:ecr/repository:Repository": "repository",
}
