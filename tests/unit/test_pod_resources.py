"""What the serving pod asks for fits the nodes and the disks that it is meant for; what does not is refused."""

from __future__ import annotations

from loraserve.contract.desired_state import Adapter, Envelope
from loraserve.planning import pod_resources
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES
from loraserve.planning.known_models import MISTRAL_7B_AWQ
from tests.stack_values import adapter

GIB = 1024**3


def adapters(count: int, size: int) -> list[Adapter]:
    return [Adapter.model_validate(adapter(f"a{number}", sizeBytes=size)) for number in range(count)]


def disk(count: int, size: int, node_gib: int = 100) -> pod_resources.PodDisk:
    return pod_resources.PodDisk(adapters(count, size), 4 * GIB, node_gib)


def test_the_volume_holds_all_adapters_where_the_node_has_room_for_them_during_a_swap() -> None:
    assert [disk(count, 6 * GIB).adapter_volume_gib for count in (1, 4, 5)] == [20, 40, 40]
    assert disk(5, 6 * GIB, node_gib=138).adapter_volume_gib == 80, "with two new versions beside the five"
    assert disk(50, 6 * GIB).problem() is None, "the least used wait for a request"


def test_a_disk_that_no_three_adapters_fit_on_is_refused_with_what_would_do() -> None:
    assert disk(50, 6 * GIB, node_gib=60).adapter_volume_gib == 10
    told = disk(50, 6 * GIB, node_gib=60).problem() or ""
    assert "set it to 63" in told
    assert disk(50, 6 * GIB, node_gib=63).problem() is None
    assert "no disk for three of it" in (disk(1, 110 * GIB, node_gib=10_000).problem() or "")


def test_the_volume_grows_with_the_adapters_in_few_steps() -> None:
    megabytes = 1024**2
    volumes = {count: disk(count, 200 * megabytes).adapter_volume_gib for count in (1, 40, 50, 90, 150, 1000)}
    assert volumes == {1: 10, 40: 10, 50: 20, 90: 20, 150: 40, 1000: 40}


def test_the_pod_fits_a_g6_xlarge_and_14_gib_would_not() -> None:
    node = GPU_INSTANCE_TYPES["g6.xlarge"]
    assert pod_resources.node_fit_problem(node) is None
    beside = sum(requests.memory_mib for requests in pod_resources.GPU_NODE_DAEMONSETS.values())
    assert 14 * 1024 + pod_resources.AGENT_REQUESTS.memory_mib + beside > node.allocatable_memory_mib


def test_the_hosts_memory_holds_more_adapters_than_the_gpu() -> None:
    attention = Envelope(slots=32, rank=8, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
    wide = attention.model_copy(update={"rank": 64})
    kept = {
        name: [
            pod_resources.adapters_in_memory(MISTRAL_7B_AWQ, envelope, GPU_INSTANCE_TYPES[name])
            for envelope in (attention, wide)
        ]
        for name in ("g6.xlarge", "g6.2xlarge", "g6.12xlarge")
    }
    assert kept == {"g6.xlarge": [236, 29], "g6.2xlarge": [512, 177], "g6.12xlarge": [512, 364]}


def test_a_pod_takes_all_that_its_node_has_beside_the_daemonsets() -> None:
    on = {name: pod_resources.on_gpu(instance) for name, instance in GPU_INSTANCE_TYPES.items()}
    assert on["g6.xlarge"].requests == pod_resources.Requests(3000, 12 * 1024)
    assert on["g6.12xlarge"].requests == pod_resources.Requests(47_000, 176 * 1024)
    for name, node in GPU_INSTANCE_TYPES.items():
        beside = [pod_resources.AGENT_REQUESTS, *pod_resources.GPU_NODE_DAEMONSETS.values()]
        asked = on[name].requests
        assert asked.cpu_millis + sum(part.cpu_millis for part in beside) <= node.allocatable_cpu_millis
        assert asked.memory_mib + sum(part.memory_mib for part in beside) <= node.allocatable_memory_mib
        assert asked.memory_mib < on[name].limits.memory_mib <= node.allocatable_memory_mib
