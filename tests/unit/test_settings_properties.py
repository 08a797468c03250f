"""Over many stack files: what is refused names the key that was changed, and what is taken can be planned.

That it can be declared too is seen in test_policy.py, with settings far from the shipped ones.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraserve.operator.beforehand.plan import plan
from loraserve.planning import cost
from loraserve.planning.settings_parser import InvalidSettings, parse
from tests.stack_values import OWN_MODEL_SHAPE, adapter, stack_values

_SMALL = st.integers(-1, 6)
_ADAPTERS = st.lists(
    st.builds(
        lambda name, rank, modules: adapter(name, rank=rank, targetModules=modules),
        st.sampled_from(["one", "two", "three", "Four", "mistral"]),
        st.sampled_from([8, 16, 64, 7, 512]),
        st.sampled_from([["q_proj"], ["q_proj", "v_proj"], ["wrong_proj"], []]),
    ),
    max_size=3,
)
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "adapters": _ADAPTERS,
    "adapterSlots": st.integers(-1, 80),
    "availabilityZoneCount": _SMALL,
    "baseModelShape": st.sampled_from([OWN_MODEL_SHAPE, OWN_MODEL_SHAPE | {"vocabSize": 0}, {"hiddenSize": 1}]),
    "environment": st.sampled_from(["development", "production", "staging"]),
    "gatewayReplicas": _SMALL,
    "gatewayWaitSeconds": st.integers(0, 4000),
    "gpuInstanceType": st.sampled_from(["g6.xlarge", "g6.2xlarge", "g5.xlarge", "t3.micro"]),
    "gpuMaxSize": _SMALL,
    "gpuMinSize": _SMALL,
    "gpuNvmeRaid0": st.booleans(),
    "gpuRootVolumeGib": st.integers(10, 400),
    "gpuWarmPool": st.booleans(),
    "inferenceReplicas": _SMALL,
    "longestGenerationSeconds": st.integers(1, 900),
    "maxModelLen": st.integers(-1, 70_000),
    "nat": st.sampled_from(["instance", "gateway", "gateway-per-zone", "none"]),
    "prometheusVolumeGib": st.integers(-1, 200),
    "publicAccessCidrs": st.sampled_from([[], ["203.0.113.0/24"], ["0.0.0.0/0"], ["no range"]]),
    "systemInstanceType": st.sampled_from(["t3a.medium", "t3.medium", "t4g.medium"]),
    "systemNodeCount": _SMALL,
    "vpcCidr": st.sampled_from(["10.0.0.0/16", "172.16.0.0/20", "10.0.0.0/24", "10.0.0.1/16", "wrong"]),
}
_KEYS = st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=4, unique=True)


@st.composite
def stack_files(draw: st.DrawFn) -> dict[str, Any]:
    """A few keys of dev's, changed to what may be good or bad."""
    return {key: draw(CHANGES[key]) for key in draw(_KEYS)}


@given(stack_files())
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_refused_names_a_changed_key_and_what_is_taken_can_be_planned(changes: dict[str, Any]) -> None:
    try:
        taken = parse(stack_values("dev", **changes))
    except InvalidSettings as refused:
        unnamed = [problem for problem in refused.problems if not any(key in problem for key in changes)]
        assert unnamed == []
        return
    offer = plan(taken, "eu-central-1").offer
    assert offer.fits
    assert offer.full_requests >= 1
    assert cost.describe(taken, "eu-central-1", taken.availability_zone_count)
