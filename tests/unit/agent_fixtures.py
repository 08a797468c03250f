"""Fixtures of the agent's tests, as a pytest plugin that these tests name."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from loraserve.catalog import adapters
from loraserve.catalog.bucket import Bucket
from loraserve.contract.desired_state import Adapter
from tests.unit.adapters_and_vllm import BUCKET, FakeVllm, write_adapter
from tests.unit.agents import Agent, Publish, S3Server

pytest_plugins = ["tests.unit.catalog_fixtures"]


@pytest.fixture
def desired(tmp_path: Path) -> Path:
    return tmp_path / "desired.json"


@pytest.fixture
def publish(bucket: Bucket, tmp_path: Path) -> Publish:
    def publish(name: str, version: str = "v1", **peft: Any) -> Adapter:
        return adapters.publish(bucket, write_adapter(tmp_path / f"{name}-{version}", **peft), name, version)

    return publish


@pytest.fixture
def new_agent(desired: Path, disk: Path, vllm: FakeVllm, bucket: Bucket) -> Callable[[], Agent]:
    return functools.partial(Agent, desired, disk, vllm, bucket)


@pytest.fixture
def agent(new_agent: Callable[[], Agent]) -> Agent:
    return new_agent()


@pytest.fixture
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """With an empty BUCKET."""
    server = S3Server()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    httpx.post(f"{server.url}/moto-api/reset")
    boto3.Session().client("s3").create_bucket(Bucket=BUCKET)
    yield server
    server.stop()
