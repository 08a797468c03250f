"""The emulated AWS: moto's server as a process of its own, found again through a state folder.

moto keeps everything in memory: when its process ends, every object in it is gone, and a Pulumi state that speaks of
them is void. `Cloud.start` and `Cloud.load` say so instead of starting an empty one in its place.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from local.paths import CHECKOUT
from local.processes import Process, free_port

ACCOUNT_ID = "123456789012"
"""The account that moto emulates."""

_NAME = "aws"
_RECORD = "aws.json"
_ADMINISTRATOR_POLICY = "arn:aws:iam::aws:policy/AdministratorAccess"


class CloudLostError(Exception):
    """The emulated AWS of this state folder is gone, and everything in it."""

    def __init__(self, state: Path) -> None:
        super().__init__(
            f"the emulated AWS of {state} has ended, and its objects with it (it keeps them in memory). Next step: "
            "`make down`, which forgets the stack that stood in it, then `make up`"
        )


@dataclass(frozen=True)
class Cloud:
    """A running emulated AWS with one administrator, whose keys stand in `environment`."""

    state: Path
    endpoint: str
    region: str
    access_key_id: str
    secret_access_key: str

    @classmethod
    def start(
        cls, state: Path, region: str = "us-east-1", *, address: str = "127.0.0.1", die_with_parent: bool = False
    ) -> Cloud:
        """Starts it, or returns the one that runs already. Raises CloudLostError, or ProcessError with the log's tail."""
        if (state / _RECORD).exists():
            return cls.load(state)
        port = free_port()
        endpoint = f"http://{address}:{port}"
        command = [sys.executable, "-m", "local.stand_ins.moto_gaps", address, str(port)]
        process = Process.start(_NAME, command, state, env=_server_environment(), die_with_parent=die_with_parent)
        try:
            process.wait_until(lambda: _answers(endpoint))
            cloud = cls(state, endpoint, region, *_make_administrator(endpoint, region))
        except BaseException:
            process.stop()
            raise
        record = {key: value for key, value in asdict(cloud).items() if key != "state"}
        (state / _RECORD).write_text(json.dumps(record))
        return cloud

    @classmethod
    def load(cls, state: Path) -> Cloud:
        """The one that an earlier process started here. Raises FileNotFoundError where none was, or CloudLostError."""
        record = json.loads((state / _RECORD).read_text())
        if Process.load(_NAME, state) is None:
            raise CloudLostError(state)
        return cls(state, **record)

    @property
    def environment(self) -> dict[str, str]:
        """What an AWS client needs to reach it as the administrator."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
        }

    def client(self, service: str, **credentials: str) -> Any:
        """A boto3 client: the administrator's, unless other credentials are given."""
        own = {"aws_access_key_id": self.access_key_id, "aws_secret_access_key": self.secret_access_key}
        return _client(service, self.endpoint, self.region, **(credentials or own))

    def enforce_iam(self, enforced: bool = True) -> None:
        """From now on every call needs a known key and a policy that allows it; until asked, all are let through."""
        free_calls = b"0" if enforced else b"inf"
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.endpoint}/moto-api/reset-auth", data=free_calls, headers=plain)
        urllib.request.urlopen(request, timeout=10).close()

    def stop(self) -> None:
        """Ends it; what was in it is gone. Does nothing where it has ended already."""
        if process := Process.load(_NAME, self.state):
            process.stop()
        (self.state / _RECORD).unlink(missing_ok=True)

    def __enter__(self) -> Cloud:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _server_environment() -> dict[str, str]:
    foreign = ("AWS_", "MOTO_", "INITIAL_NO_AUTH")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return kept | {"PYTHONPATH": str(CHECKOUT), "MOTO_IAM_LOAD_MANAGED_POLICIES": "true"}


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


def _make_administrator(endpoint: str, region: str) -> tuple[str, str]:
    """Creates the account's one user; returns its access key id and secret."""
    anyone = {"aws_access_key_id": "anyone", "aws_secret_access_key": "anyone"}
    iam = _client("iam", endpoint, region, **anyone)
    iam.create_user(UserName="administrator")
    iam.attach_user_policy(UserName="administrator", PolicyArn=_ADMINISTRATOR_POLICY)
    key: Mapping[str, str] = iam.create_access_key(UserName="administrator")["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


def _client(service: str, endpoint: str, region: str, **credentials: str) -> Any:
    import boto3

    return boto3.client(service, endpoint_url=endpoint, region_name=region, **credentials)
