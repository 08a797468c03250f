"""`python -m loraserve gateway` as a process: environment in, HTTP and exit code out."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from local.processes import free_port
from loraserve.contract.environment import InvalidEnvironment
from loraserve.contract.gateway_settings import GatewaySettings
from tests.unit.gateway_world import World, adapter, chat, stream_lines, world

CHECKOUT = Path(__file__).parents[2]
NEEDED = {
    "GATEWAY_KUBERNETES_NAMESPACE": "ml-models",
    "GATEWAY_VLLM_SERVICE": "vllm-service",
    "GATEWAY_GATEWAY_SERVICE": "gateway",
    "GATEWAY_DESIRED_CONFIG_MAP": "desired-state",
    "GATEWAY_VLLM_API_KEY": "key",
    "GATEWAY_WAIT_SECONDS": "540",
    "GATEWAY_BALANCER_IDLE_SECONDS": "730",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "KUBERNETES_SERVICE_PORT": "443",
}


@contextmanager
def process(environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "loraserve", "gateway"]
    started = subprocess.Popen(command, cwd=CHECKOUT, env=os.environ | environment, stderr=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@pytest.fixture
def around(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        made.pods[0].holds("faq@v1")
        yield made


def test_it_answers_finishes_what_runs_on_sigterm_and_ends_cleanly(around: World) -> None:
    port, inner = free_port(), free_port()
    environment = around.surround(adapter()) | {"GATEWAY_PORT": str(port), "GATEWAY_METRICS_PORT": str(inner)}
    around.url, around.inner_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{inner}"
    with process(environment) as gateway, ThreadPoolExecutor() as pool:
        around.wait_until(lambda: answers(gateway, f"{around.inner_url}/readyz"))
        around.wait_for_status("ready")
        assert around.post(chat(seed=10**1000)).status_code == 400, (
            "the longer a number, the longer it holds up all others"
        )
        around.pods[0].go_on = asyncio.Semaphore(1)
        running = pool.submit(around.post, chat(stream=True))
        around.wait_for_load(running=1)

        gateway.send_signal(signal.SIGTERM)
        around.wait_until(lambda: not answers(gateway, f"{around.url}/v1/models"))
        around.pods[0].permit(100)

        assert running.result().content == b"".join(stream_lines("faq@v1"))
        _, log = gateway.communicate(timeout=60)
    assert gateway.returncode == 0
    assert "request path=/v1/chat/completions status=200 outcome=ok model=faq" in log
    assert log.splitlines()[-1].endswith("INFO gateway stopped")


def answers(gateway: subprocess.Popen[str], url: str) -> bool:
    assert gateway.poll() is None, "the gateway ended"
    try:
        return httpx.get(url, trust_env=False).status_code < 500
    except httpx.TransportError:
        return False


def test_an_unusable_setting_ends_it_with_a_clear_error() -> None:
    with process(NEEDED | {"GATEWAY_KUBERNETES_CREDENTIALS": "/nowhere"}) as gateway:
        _, log = gateway.communicate(timeout=60)
    assert gateway.returncode == 1
    assert log.splitlines()[-1].startswith("loraserve: /nowhere holds no usable token and ca.crt: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATEWAY_PORT", "http"),
        ("GATEWAY_PORT", "70000"),
        ("GATEWAY_MAX_WAITING", "0"),
        ("GATEWAY_KUBERNETES_URL", "kubernetes"),
        ("GATEWAY_VLLM_API_KEY", ""),
        ("GATEWAY_KUBERNETES_NAMESPACE", ""),
    ],
)
def test_a_bad_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(InvalidEnvironment, match=name):
        GatewaySettings.from_environment(NEEDED | {name: value})
