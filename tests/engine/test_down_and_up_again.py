"""A stack whose settings are changed, that is destroyed with its adapters kept, and comes back; by the real engine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from botocore.exceptions import ClientError

from infra.cluster import LOG_RETENTION_DAYS
from infra.names import PROJECT
from local.paths import CHECKOUT
from loraserve.catalog import adapters, base_weights
from loraserve.catalog.bucket import Bucket
from loraserve.contract.base_model import Mirror
from loraserve.contract.desired_state import Adapter
from tests.engine import simulated_nodes
from tests.engine.cli import Changes, Refused
from tests.engine.deployed import Deployment, World
from tests.engine.setting_changes import (
    APPLIED,
    CHANGES,
    DEPLOYED,
    PREVIEWED,
    REFUSED,
    added_up,
    documented,
    documented_runs,
    of_the_engine,
    told,
)
from tests.stack_values import stack_values
from tests.unit.adapters_and_vllm import safetensors_of, write_adapter

ROWS, RUNS = documented(), documented_runs()
ELSEWHERE = {
    "availabilityZoneCount": "tests/engine/test_life_of_a_stack.py: AWS is asked, and a third zone only adds",
    "gpuInstanceType": "tests/engine/test_life_of_a_stack.py: vLLM's pod needs a node of that size",
    "chartRepository": "there is one repository here: the charts stay as they are",
}
BUCKET = "aws:s3/bucket:Bucket loraserve-dev-adapters"
LOG_GROUP = "/aws/eks/loraserve-dev/cluster"


@pytest.fixture(scope="module")
def room(world: World) -> Iterator[None]:
    """A GPU node for the pod that comes before another goes."""
    simulated_nodes.register(world.core, simulated_nodes.GPU, "gpu-2")
    yield
    world.core.delete_node("gpu-2")


@pytest.fixture(scope="module")
def stack(world: World, room: None) -> Deployment:
    return Deployment(world, "dev", **DEPLOYED)


@pytest.fixture(scope="module")
def first_life(stack: Deployment) -> Changes:
    return stack.up()


@pytest.fixture(scope="module")
def dev(stack: Deployment, first_life: Changes) -> Deployment:
    return stack


def test_every_setting_of_pulumi_yaml_is_changed_on_a_stack() -> None:
    settings = {
        key.removeprefix(f"{PROJECT}:") for key in yaml.safe_load((CHECKOUT / "Pulumi.yaml").read_text())["config"]
    }
    refused = {setting for setting in settings if ROWS[setting] == REFUSED}
    assert settings == {*APPLIED, *PREVIEWED, *ELSEWHERE, *refused}


def test_what_would_be_touched_is_what_the_rows_say(dev: Deployment) -> None:
    with dev.proposed(**{setting: CHANGES[setting] for setting in PREVIEWED}):
        changes = dev.preview()
    assert set(of_the_engine(changes.touched).split(", ")) == added_up(ROWS[setting] for setting in PREVIEWED)


def test_the_first_up_makes_as_many_as_documented(first_life: Changes) -> None:
    assert told(first_life.counts) == RUNS["first `up`"]


@pytest.mark.skipif("EACH_SETTING" not in os.environ, reason="a preview for each setting takes some minutes")
@pytest.mark.parametrize("setting", [*APPLIED, *PREVIEWED])
def test_a_change_of_one_setting_would_touch_what_its_row_says(dev: Deployment, setting: str) -> None:
    with dev.proposed(**{setting: CHANGES[setting]}):
        changes = dev.preview()
    assert set(of_the_engine(changes.touched).split(", ")) == added_up([ROWS[setting]]) or {""}


@dataclass(frozen=True)
class Published:
    """What lies in the bucket, and where it came from."""

    bucket: str
    adapter: Adapter
    adapter_folder: Path
    mirror: Mirror
    base_folder: Path


@pytest.fixture(scope="module")
def published(world: World, dev: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """An adapter and a mirrored base model."""
    folder = tmp_path_factory.mktemp("published")
    adapter_folder, base_folder = write_adapter(folder / "adapter"), folder / "base"
    base_folder.mkdir()
    (base_folder / "config.json").write_text("{}")
    (base_folder / "model.safetensors").write_bytes(safetensors_of({"layers.0.weight": [64, 20]}, b"\x02"))
    name = dev.outputs()["adapterBucket"]
    with as_somebody(world.cloud.environment):
        adapter = adapters.publish(Bucket(name), adapter_folder, "mistral-7b-faq", "v1", "faq")
        mirror = base_weights.publish(Bucket(name), base_folder, stack_values("dev")["baseModel"], "v1")
    return Published(name, adapter, adapter_folder, mirror, base_folder)


@contextmanager
def as_somebody(variables: Mapping[str, str]) -> Iterator[None]:
    """With these credentials in the environment, as the commands of `loraserve` find them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def changed(dev: Deployment, published: Published) -> Changes:
    """Most settings changed at once."""
    return dev.change(**{setting: CHANGES[setting] for setting in APPLIED})


def test_what_is_touched_is_what_the_rows_say(changed: Changes) -> None:
    assert set(of_the_engine(changed.touched).split(", ")) == added_up(ROWS[setting] for setting in APPLIED)


def test_running_nodes_are_replaced_only_where_that_was_announced(changed: Changes) -> None:
    replaced = {name for name, op in changed.touched.items() if op == "replace"}
    assert replaced == {"aws:eks/nodeGroup:NodeGroup system-nodes"}
    assert "this replaces the system nodes that run: systemInstanceType t3a.medium -> t3.medium" in changed.output
    assert (
        "this replaces the GPU nodes that run: gpuRootVolumeGib 100 -> 120, gpuNvmeRaid0 False -> True"
        in changed.output
    )


@pytest.fixture(scope="module")
def destroyed(dev: Deployment, changed: Changes) -> None:
    dev.destroy()


def test_destroy_keeps_the_bucket_alone(world: World, dev: Deployment, published: Published, destroyed: None) -> None:
    assert world.left_behind("dev") == [f"s3:bucket {published.bucket}"]
    s3 = world.cloud.client("s3")
    key = f"llm-models/{published.adapter.model}/v1/adapter_model.safetensors"
    with world.enforced_iam(), pytest.raises(ClientError, match=r"AccessDenied|Forbidden"):
        s3.delete_object(Bucket=published.bucket, Key=key)


@pytest.fixture(scope="module")
def again(world: World, dev: Deployment, published: Published, destroyed: None) -> Deployment:
    """The same stack, its settings as at first; its next `destroy` keeps nothing."""
    entry = published.adapter.model_dump(mode="json", by_alias=True, exclude_none=True)
    mirror = published.mirror.model_dump(mode="json", by_alias=True)
    settings = DEPLOYED | {"adapters": [entry], "baseModelMirror": mirror, "retainAdapters": False}
    return Deployment(world, "dev", **settings)


@pytest.fixture(scope="module")
def second_life(world: World, again: Deployment) -> Changes:
    """The next `up`. Meanwhile EKS has made the log group again, for its last lines."""
    world.cloud.client("logs").create_log_group(logGroupName=LOG_GROUP)
    return again.up()


def test_the_bucket_is_taken_back_and_the_pod_finds_the_same_bytes_in_it(
    world: World, again: Deployment, published: Published, second_life: Changes, tmp_path: Path
) -> None:
    outputs = again.outputs()
    assert second_life.operations[BUCKET] != "create"
    assert outputs["adapterBucket"] == published.bucket
    assert "publish that version" not in second_life.output, "preflight has found it"
    with world.enforced_iam(), as_somebody(world.cloud.environment | world.pod(outputs["servingRole"])):
        bucket = Bucket(outputs["adapterBucket"])
        adapter = adapters.fetch(bucket, published.adapter, tmp_path)
        base_weights.fetch(bucket, stack_values("dev")["baseModel"], published.mirror, tmp_path / "base")
    for fetched, source in ((adapter, published.adapter_folder), (tmp_path / "base", published.base_folder)):
        assert {path.name: (fetched / path.name).read_bytes() for path in source.iterdir()} == contents(source)


def test_a_log_group_that_eks_has_made_again_is_adopted(world: World, second_life: Changes) -> None:
    logs = world.cloud.client("logs")
    [group] = logs.describe_log_groups(logGroupNamePrefix=LOG_GROUP)["logGroups"]
    assert group["retentionInDays"] == LOG_RETENTION_DAYS
    tags = logs.list_tags_for_resource(resourceArn=group["arn"].removesuffix(":*"))["tags"]
    assert tags["loraserve/stack"] == "dev"


def test_what_was_taken_back_stays_as_it_is(again: Deployment, second_life: Changes) -> None:
    changes = again.up()
    assert changes.touched == {}
    assert told(changes.counts) == RUNS["second `up`"]


def test_another_vpc_is_refused_on_a_stack_that_stands(again: Deployment, second_life: Changes) -> None:
    with again.proposed(vpcCidr="10.8.0.0/16"), pytest.raises(Refused, match=r"is another than the 10\.0\.0\.0/16"):
        again.preview()


def test_without_the_setting_destroy_takes_the_bucket_along(
    world: World, again: Deployment, second_life: Changes
) -> None:
    changes = again.destroy()
    assert world.left_behind("dev") == []
    assert told(changes.counts) == RUNS["one `destroy`"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
