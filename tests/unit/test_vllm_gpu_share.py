"""Our plugin inside vLLM that fits its share to what a card has free."""

from __future__ import annotations

import logging
import math
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bench.soak import mount
from loraserve.planning.settings_parser import parse
from loraserve.vllm_plugins import gpu_share
from tests.stack_values import stack_values

GIB = 1024**3
CARD = 24 * GIB


def vllms_own(init_snapshot: Any, cache_config: Any, external_weight_memory: int = 0) -> int:
    """As in vLLM 0.32.0 (vllm/v1/worker/utils.py)."""
    requested = math.ceil(init_snapshot.total_memory * cache_config.gpu_memory_utilization)
    if init_snapshot.free_memory < requested:
        raise ValueError("Free memory on device is less than desired GPU memory utilization")
    return requested - external_weight_memory


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules that the plugin touches, as they are when vLLM loads it; the worker has the function by name."""
    utils, worker = ModuleType("vllm.v1.worker.utils"), ModuleType("vllm.v1.worker.gpu_worker")
    utils.request_memory = worker.request_memory = vllms_own  # type: ignore[attr-defined]
    package = ModuleType("vllm.v1.worker")
    package.utils = utils  # type: ignore[attr-defined]
    for module in (ModuleType("vllm"), ModuleType("vllm.v1"), package, utils, worker):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv(gpu_share.SPARE_VARIABLE, "512")
    monkeypatch.setenv("VLLM_ENABLE_STARTUP_PLAN", "1")
    return SimpleNamespace(utils=utils, worker=worker)


def request(vllm: SimpleNamespace, free_gib: float, share: float = 0.95) -> tuple[int, float]:
    """What vLLM then works with: bytes, and the share."""
    snapshot = SimpleNamespace(free_memory=int(free_gib * GIB), total_memory=CARD, device_="cuda:0")
    config = SimpleNamespace(gpu_memory_utilization=share)
    return vllm.worker.request_memory(snapshot, config), config.gpu_memory_utilization


def test_a_card_that_has_less_free_is_served_from_with_what_there_is(
    vllm: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    gpu_share.lower_share_where_needed()
    with caplog.at_level(logging.WARNING):
        requested, share = request(vllm, free_gib=20)

    assert share == 0.81, "20 GiB less half a GiB, of 24"
    assert requested <= 20 * GIB - GIB // 2
    (told,) = caplog.messages
    assert told.startswith("cuda:0 has 20.0 of 24.0 GiB free, less than the share 0.95 that was planned")
    assert "The share is 0.81 for this start" in told


def test_a_card_that_has_enough_is_left_alone(vllm: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    gpu_share.lower_share_where_needed()
    assert request(vllm, free_gib=23) == (math.ceil(CARD * 0.95), 0.95)
    assert not caplog.messages


def test_a_card_that_has_next_to_nothing_is_left_for_vllm_to_refuse(vllm: SimpleNamespace) -> None:
    gpu_share.lower_share_where_needed()
    with pytest.raises(ValueError, match="less than desired GPU memory utilization"):
        request(vllm, free_gib=0.6)


def test_a_cache_that_was_cut_short_is_not_remembered_for_the_next_start(
    vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM keeps its size beside the compile cache, and the key knows nothing of the share."""
    gpu_share.lower_share_where_needed()
    request(vllm, free_gib=23)
    assert os.environ["VLLM_ENABLE_STARTUP_PLAN"] == "1"
    request(vllm, free_gib=20)
    assert os.environ["VLLM_ENABLE_STARTUP_PLAN"] == "0"


def test_it_also_serves_a_worker_that_is_imported_later(vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vllm.v1.worker.gpu_worker")
    gpu_share.lower_share_where_needed()
    vllm.worker.request_memory = vllm.utils.request_memory
    assert request(vllm, free_gib=20)[1] == 0.81


def test_a_vllm_without_the_function_does_not_start(vllm: SimpleNamespace) -> None:
    del vllm.utils.request_memory
    with pytest.raises(AttributeError, match="request_memory"):
        gpu_share.lower_share_where_needed()


def test_vllm_finds_it_as_that_of_an_installed_package(
    tmp_path: Path, vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder that its container mounts; `load_general_plugins` calls what it has loaded."""
    monkeypatch.syspath_prepend(mount(parse(stack_values("dev")), tmp_path / "vllm"))
    (found,) = entry_points(group="vllm.general_plugins")
    found.load()()
    assert vllm.worker.request_memory is vllm.utils.request_memory is not vllms_own
