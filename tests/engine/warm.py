"""A Python that has imported the SDKs already: plugins and programs are forked from it, where a start takes a second or three.

Each `up` starts six. `warm_python` is the folder of a virtual environment whose `bin/python` hands its arguments, environment and
standard streams to a server, and ends as the forked process ends.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from local.processes import Process
from tests.stack_values import CHECKOUT

_CLIENT, _SERVER = (Path(__file__).with_name(f"warm_{part}.py") for part in ("client", "server"))
_LIBRARIES = (
    *("grpc", "boto3", "botocore.session", "pydantic_settings", "yaml"),
    *("pulumi", "pulumi.automation", "pulumi_docker_build", "pulumi_eks", "pulumi_random"),
    *(f"pulumi_aws.{name}" for name in ("autoscaling", "cloudwatch", "ec2", "ecr", "eks", "iam", "lb", "s3", "ssm")),
    *(f"pulumi_aws.{name}" for name in ("resourcegroupstaggingapi", "servicequotas", "vpc")),
    *(f"pulumi_kubernetes.{name}" for name in ("apiextensions", "apps.v1", "core.v1", "helm.v4", "meta.v1")),
    *(f"pulumi_kubernetes.{name}" for name in ("networking.v1", "policy.v1", "rbac.v1")),
    *(
        f"grafana_foundation_sdk.builders.{name}"
        for name in ("common", "dashboard", "prometheus", "stat", "timeseries")
    ),
    *(f"local.{name}" for name in ("commands", "stand_ins.aws.plugin", "stand_ins.run_program")),
)
"""Nothing of the program's own: it is imported from the folder in which it runs."""


@cache
def warm_python() -> Path:
    """Started once; ends with the tests."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    atexit.register(shutil.rmtree, folder)
    address, python = folder / "socket", folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {_CLIENT} {address} "$@"\n')
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-P", _SERVER, address, *_LIBRARIES]
    server = Process.start("warm", command, folder, env=environment, die_with_parent=True)
    atexit.register(server.stop)
    server.wait_until(address.exists, limit_s=300)
    return folder
