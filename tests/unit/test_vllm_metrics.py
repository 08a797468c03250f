"""Our metrics inside vLLM, in the place of its own: bounded, whatever is used together for however long."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY, Gauge, generate_latest

from bench.soak import mount
from loraserve.agent import vllm as agent_vllm
from loraserve.planning.settings_parser import parse
from loraserve.vllm_plugins import guard
from tests.stack_values import stack_values

SETS = "vllm:lora_requests_info"
USES = "vllm:lora_last_used_timestamp_seconds"


class VllmsOwn:
    """The part of vLLM 0.32.0's PrometheusStatLogger that is about adapters (vllm/v1/metrics/loggers.py)."""

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        for collector in list(REGISTRY._collector_to_names):
            if getattr(collector, "_name", "").startswith("vllm:"):
                REGISTRY.unregister(collector)
        self.records = 0
        self.gauge_lora_info: Gauge | None = None
        if vllm_config.lora_config is not None:
            labels = ["max_lora", "waiting_lora_adapters", "running_lora_adapters"]
            self.gauge_lora_info = Gauge(SETS, "Running stats on lora requests.", labels)

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        self.records += 1
        if scheduler_stats is not None and self.gauge_lora_info is not None:
            self.gauge_lora_info.labels(
                running_lora_adapters=",".join(scheduler_stats.running_lora_adapters),
                waiting_lora_adapters=",".join(scheduler_stats.waiting_lora_adapters),
                max_lora=8,
            ).set_to_current_time()


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """As vLLM imports it."""
    loggers = ModuleType("vllm.v1.metrics.loggers")
    loggers.PrometheusStatLogger = VllmsOwn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, loggers.__name__, loggers)
    for package in ("vllm", "vllm.v1", "vllm.v1.metrics"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    name = "loraserve.vllm_plugins.lora_metrics"
    yield import_module(name)
    del sys.modules[name]
    VllmsOwn(SimpleNamespace(lora_config=None))


def logger(plugin: ModuleType, lora: bool = True) -> Any:
    return plugin.LoraMetrics(SimpleNamespace(lora_config=object() if lora else None), [0])


def use(logger: Any, running: tuple[str, ...] = (), waiting: tuple[str, ...] = ()) -> None:
    stats = SimpleNamespace(
        running_lora_adapters=dict.fromkeys(running, 1), waiting_lora_adapters=dict.fromkeys(waiting, 1)
    )
    logger.record(stats, None, mm_cache_stats=None, engine_idx=0)


def series(metric: str) -> list[str]:
    return [line for line in generate_latest(REGISTRY).decode().splitlines() if line.startswith(metric + "{")]


def test_of_the_sets_of_adapters_in_use_only_the_present_one_is_told(plugin: ModuleType) -> None:
    ours = logger(plugin)
    for together in itertools.permutations(("a@v1", "b@v1", "c@v1", "d@v1")):
        use(ours, together)
    use(ours, ("b@v1", "a@v1"), waiting=("c@v1",))

    (present,) = series(SETS)
    assert 'running_lora_adapters="b@v1,a@v1",waiting_lora_adapters="c@v1"' in present


def test_every_adapter_in_use_or_waiting_has_the_time_of_its_last_use(plugin: ModuleType) -> None:
    ours = logger(plugin)
    use(ours, ("a@v1",), waiting=("b@v1",))
    use(ours)
    ours.record(None, None)

    assert [line.partition("}")[0] for line in series(USES)] == [
        f'{USES}{{lora_name="{name}"' for name in ("a@v1", "b@v1")
    ]
    assert ours.records == 3, "vLLM's own metrics are all there"


def test_years_of_versions_leave_a_bounded_number_of_series(plugin: ModuleType) -> None:
    ours = logger(plugin)
    for number in range(3 * plugin.MOST_ADAPTERS):
        use(ours, (f"a@v{number}", "stays@v1"))

    assert len(series(USES)) == plugin.MOST_ADAPTERS
    assert any("stays@v1" in line for line in series(USES)), "those unused for longest go"
    assert len(generate_latest(REGISTRY)) < 100_000


def test_an_hour_of_fifty_adapters_takes_a_few_kilobytes(plugin: ModuleType) -> None:
    """Without the plugin, the same hour leaves a series for nearly every pass."""
    ours, chance = logger(plugin), random.Random(7)
    for _ in range(5000):
        use(ours, tuple(f"tenant-{number}@v1" for number in chance.sample(range(50), 6)))
    assert len(series(SETS)) == 1
    assert len(series(USES)) == 50

    vllms = VllmsOwn(SimpleNamespace(lora_config=object()))
    for _ in range(100):
        use(vllms, tuple(f"tenant-{number}@v1" for number in chance.sample(range(50), 6)))
    assert len(series(SETS)) == 100


def test_a_vllm_without_adapters_has_its_metrics(plugin: ModuleType) -> None:
    use(logger(plugin, lora=False))
    assert series(SETS) == []


def test_the_agent_asks_for_what_the_plugin_tells(plugin: ModuleType) -> None:
    assert agent_vllm._LAST_USED == plugin.LAST_USED == USES
    use(logger(plugin), ("a@v1",))
    ((name, at),) = agent_vllm._LAST_USED_SAMPLE.findall(generate_latest(REGISTRY).decode())
    assert (name, float(at) > 1.7e9) == ("a@v1", True)


def test_vllm_finds_the_plugin_as_that_of_an_installed_package(
    tmp_path: Path, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder that its container mounts, as the kubelet lays it out."""
    monkeypatch.syspath_prepend(mount(parse(stack_values("dev")), tmp_path / "vllm"))

    (found,) = entry_points(group="vllm.stat_logger_plugins")

    assert isinstance(found, EntryPoint)
    assert issubclass(found.load(), VllmsOwn), "a PrometheusStatLogger takes the place of vLLM's own"
    assert import_module("loraserve_guard").Guard.__doc__ == guard.Guard.__doc__
