"""What a plan says is loaded on demand is what the agent leaves for a request."""

from __future__ import annotations

import random

import pytest

from loraserve.agent.working_set import WorkingSet
from loraserve.contract.desired_state import Adapter
from loraserve.operator.beforehand.plan import plan
from loraserve.planning import holding
from loraserve.planning.advice import advice
from loraserve.planning.settings_parser import parse
from tests.stack_values import adapter, stack_values


def declared(chance: random.Random) -> list[Adapter]:
    """Some with a canary beside them, some prewarmed, of all sizes."""
    names = [f"a{number}" for number in range(chance.randint(1, 12))]
    versions = [(name, "v1", {}) for name in names]
    versions += [(name, "v2", {"canaryPercent": 10}) for name in names if chance.random() < 0.2]
    return [
        Adapter.model_validate(
            adapter(name, version=version, sizeBytes=chance.randint(1, 100), prewarm=chance.random() < 0.3, **more)
        )
        for name, version, more in versions
    ]


@pytest.mark.parametrize("seed", range(50))
def test_plan_and_agent_agree(seed: int) -> None:
    chance = random.Random(seed)
    adapters, most, disk = declared(chance), chance.choice([None, 1, 4, 20]), chance.randint(100, 1000)
    agents = WorkingSet(most, disk)
    agents.choose(adapters, keep=())
    left_out = [one for one in adapters if one.name not in agents.names]

    assert holding.on_demand(adapters, most, disk) == len(left_out)
    assert agents.is_all == (not left_out)


def test_plan_and_preview_say_how_many_are_loaded_on_demand() -> None:
    few, many = ([adapter(f"n{number:03}", sizeBytes=14 << 20) for number in range(count)] for count in (200, 300))
    assert parse(stack_values("dev", adapters=few)).adapters_on_demand == 0
    settings = parse(stack_values("dev", adapters=many))
    assert settings.adapters_on_demand == 300 - 236, "a g6.xlarge has memory for 236 of rank 8 on attention"
    (told,) = [sentence for sentence in advice(settings) if "on demand" in sentence]
    assert "64 of 300 adapter versions are loaded on demand: vLLM keeps 236" in told
    assert plan(settings, "eu-central-1").on_demand == 64


def test_a_disk_that_is_too_small_for_all_leaves_the_rest_on_demand() -> None:
    large = [adapter(f"n{number:02}", sizeBytes=1 << 30) for number in range(50)]
    settings = parse(stack_values("dev", adapters=large, gpuRootVolumeGib=100, gpuNvmeRaid0=False))
    assert (settings.pod_disk.adapter_volume_gib, settings.adapters_on_demand) == (40, 50 - 36)
