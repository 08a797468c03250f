"""`python -m loraserve agent` as a process: environment in, HTTP and exit code out."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import pytest

from local.processes import free_port
from loraserve.agent.main import _reconcile_until, run
from loraserve.agent.metrics import Metrics
from loraserve.catalog import adapters, base_weights
from loraserve.catalog.bucket import Bucket
from loraserve.contract.agent_settings import AgentSettings
from loraserve.contract.agent_state import AgentState, State
from loraserve.contract.base_model import Base
from loraserve.contract.desired_state import DesiredState
from loraserve.contract.environment import InvalidEnvironment
from tests.unit.adapters_and_vllm import BUCKET, FakeVllm, safetensors_of, write_adapter
from tests.unit.agents import S3Server
from tests.unit.kubernetes_api import CONFIG_MAP, NAMESPACE, FakeKubernetesApi

pytest_plugins = ["tests.unit.agent_fixtures"]


@pytest.fixture
def environment(s3_server: S3Server) -> dict[str, str]:
    """Of a process outside a pod that reaches an S3 server with an empty BUCKET."""
    return outside_a_pod()


def outside_a_pod() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("KUBERNETES_", "AGENT_"))}


def start(environment: dict[str, str], **settings: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "loraserve", "agent"],
        cwd=Path(__file__).parents[2],
        env=environment | AgentSettings.variables(**settings),
        stderr=subprocess.PIPE,
        text=True,
    )


def stop(process: subprocess.Popen[str]) -> str:
    """What it has logged; fails where it does not stop, and leaves nothing."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.communicate(timeout=60)[1]
    finally:
        process.kill()


def test_the_agent_serves_state_and_probes_and_stops_cleanly(
    environment: dict[str, str], vllm: FakeVllm, tmp_path: Path
) -> None:
    adapter = adapters.publish(Bucket(BUCKET), write_adapter(tmp_path / "peft"), "a", "v1")
    desired = tmp_path / "desired.json"
    desired.write_text(DesiredState(base=Base(name=vllm.base), bucket=BUCKET, adapters=(adapter,)).to_json())
    port = free_port()
    process = start(
        environment,
        desired_file=desired,
        adapter_dir=tmp_path / "mnt",
        port=port,
        vllm_url=vllm.url,
        vllm_api_key=vllm.api_key,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=8)) as http:
            while http.get("/readyz").status_code != 200:
                assert process.poll() is None, "the agent ended"
                time.sleep(0.05)
            report = AgentState.model_validate_json(http.get("/v1/state").text)
            assert [status.state for status in report.adapters] == [State.READY]
            assert http.get("/livez").status_code == 200
            assert http.get("/startupz").status_code == 200, "no base weights are mirrored, so vLLM may start"
            assert "loraserve_vllm_up 1.0" in http.get("/metrics").text
            assert http.get("/secrets").status_code == 404
    finally:
        log = stop(process)
    assert process.returncode == 0
    assert "INFO adapter ready adapter=a@v1" in log
    assert log.splitlines()[-1].endswith("INFO agent stopped")


def test_the_agent_holds_vllm_back_until_the_base_weights_are_there(
    environment: dict[str, str], vllm: FakeVllm, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(safetensors_of({"w": [4, 4]}))
    mirror = base_weights.publish(Bucket(BUCKET), model, "acme/tiny", "v1")
    desired, folder, port = tmp_path / "desired.json", tmp_path / "base" / mirror.folder_name, free_port()
    process = start(
        environment,
        desired_file=desired,
        adapter_dir=tmp_path / "mnt",
        base_folder=folder,
        port=port,
        vllm_url=vllm.url,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=8)) as http:
            assert http.get("/startupz").status_code == 503
            desired.write_text(DesiredState(base=Base(name="acme/tiny", mirror=mirror), bucket=BUCKET).to_json())
            while http.get("/startupz").status_code != 200:
                assert process.poll() is None, "the agent ended"
                time.sleep(0.05)
        assert base_weights.is_complete(folder)
    finally:
        stop(process)


def test_in_a_pod_a_change_of_the_object_is_followed_before_its_mounted_copy_changes(
    environment: dict[str, str], vllm: FakeVllm, tmp_path: Path
) -> None:
    bucket = Bucket(BUCKET)
    first, second = (
        adapters.publish(bucket, write_adapter(tmp_path / version), "a", version) for version in ("v1", "v2")
    )
    lying = adapters.publish(bucket, write_adapter(tmp_path / "lies"), "lies", "v1")
    documents = [
        DesiredState(base=Base(name=vllm.base), bucket=BUCKET, adapters=adapters).to_json()
        for adapters in ((first,), (second, lying.model_copy(update={"rank": 4})))
    ]
    mounted = tmp_path / "desired.json"
    mounted.write_text(documents[0])
    api = FakeKubernetesApi(tmp_path)
    api.put(documents[0])
    port = free_port()
    told_by_the_kubelet = {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(urlsplit(api.url).port),
    }
    process = start(
        environment | told_by_the_kubelet,
        desired_file=mounted,
        adapter_dir=tmp_path / "mnt",
        port=port,
        vllm_url=vllm.url,
        vllm_api_key=vllm.api_key,
        kubernetes_namespace=NAMESPACE,
        kubernetes_pod_name="vllm-0",
        kubernetes_pod_uid="uid-1",
        kubernetes_config_map=CONFIG_MAP,
        kubernetes_credentials=api.credentials,
    )
    try:
        api.watches.get(timeout=60)
        api.put(documents[1])
        while "a@v2" not in vllm.loaded or not api.events:
            assert process.poll() is None, "the agent ended"
            time.sleep(0.05)
    finally:
        log = stop(process)
        api.stop()
    (told,) = api.events.values()
    assert told["note"].startswith("lies@v1: the stack config says rank 4")
    assert "following the ConfigMap through the API name=desired-state" in log


def test_an_unusable_setting_ends_the_agent_with_a_clear_error(tmp_path: Path) -> None:
    process = start(outside_a_pod(), desired_file=tmp_path / "desired.json", adapter_dir="/proc/adapters")
    _, log = process.communicate(timeout=60)

    assert process.returncode == 1
    assert log.splitlines()[-1].startswith("loraserve: AGENT_ADAPTER_DIR /proc/adapters: ")


def test_an_agent_that_nobody_told_anything_ends_with_a_clear_error(tmp_path: Path) -> None:
    """Outside a pod the defaults lead nowhere; it would wait for ever."""
    settings = AgentSettings(desired_file=tmp_path / "loraserve" / "desired.json", adapter_dir=tmp_path / "mnt")
    with pytest.raises(InvalidEnvironment, match=r"AGENT_DESIRED_FILE .*there is no such folder"):
        run(settings)
    assert not settings.adapter_dir.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AGENT_PORT", "http"),
        ("AGENT_PORT", "70000"),
        ("AGENT_VLLM_URL", "127.0.0.1:8000"),
        ("AGENT_ENVELOPE", '{"slots": 0}'),
        ("AGENT_ENVELOPE", "{"),
        ("AGENT_ADAPTER_DISK_BYTES", "10Gi"),
    ],
)
def test_a_bad_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(InvalidEnvironment, match=name):
        AgentSettings.from_environment({name: value})


def test_settings_have_the_pods_defaults() -> None:
    settings = AgentSettings.from_environment({})

    assert (str(settings.desired_file), settings.port) == ("/etc/loraserve/desired.json", 9090)
    assert (str(settings.adapter_dir), settings.vllm_url) == ("/mnt/adapters", "http://127.0.0.1:8000")


class _LosesTheExit:
    """A pass in which the signal's exception met a finalizer, which Python prints and forgets."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def step(self) -> None:
        self._stop.set()


def test_a_signal_whose_exception_is_lost_ends_the_agent_after_the_pass() -> None:
    stop, wake = threading.Event(), threading.Event()
    wake.set()
    _reconcile_until(stop, cast(Any, _LosesTheExit(stop)), Metrics(), wake)
