"""Bad configuration gets one clear error that names the key and the fix, before anything is created."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.core.models import DEFAULT_ACCOUNT_ID
from pydantic.alias_generators import to_camel

from infra import preflight
from infra.errors import ConfigError
from loraserve.planning import pod_resources
from loraserve.planning.advice import advice
from loraserve.planning.gpu_memory import plan_memory
from loraserve.planning.known_models import MISTRAL_7B_AWQ
from loraserve.planning.setting_sections import Local
from loraserve.planning.settings_parser import InvalidSettings, parse
from loraserve.planning.settings_rules import EMULATED_ACCOUNT
from loraserve.planning.stack_settings import Settings
from tests.stack_values import OWN_MODEL_SHAPE, adapter, stack_file, stack_values
from tests.unit.declared import Program, declare, run


def problems(stack: str = "dev", **changes: Any) -> str:
    with pytest.raises(InvalidSettings) as caught:
        parse(stack_values(stack, **changes))
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize("stack", ["dev", "prod", "local"])
def test_the_stack_files_are_valid(stack: str) -> None:
    assert parse(stack_values(stack)).gpu_instance_type == "g6.xlarge"


def test_the_production_file_asks_for_what_only_its_owner_knows() -> None:
    assert "loraserve:baseModelRevision 'main' moves" in problems("prod", baseModelRevision="main")


def test_a_misspelt_key_is_named_with_the_one_that_was_meant() -> None:
    assert "loraserve:gpuMaxsize is not a known key: did you mean gpuMaxSize?" in problems(gpuMaxsize=3)


def test_every_problem_is_told_at_once() -> None:
    told = problems(gpuMaxsize=3, nat="magic", gpuMinSize="two")
    assert "gpuMaxsize" in told
    assert "loraserve:nat: Input should be 'gateway', 'gateway-per-zone' or 'instance'" in told
    assert "loraserve:gpuMinSize: Input should be a valid integer" in told


INDEPENDENT = {
    "a type": ({"systemNodeCount": "two"}, "loraserve:systemNodeCount: Input should be a valid integer"),
    "a choice": ({"nat": "magic"}, "loraserve:nat: Input should be"),
    "a field of a structured value": (
        {"clusterAccess": [{"name": "me"}]},
        "loraserve:clusterAccess[0].principalArn: is missing",
    ),
    "a missing key": ({"requestsPerReplica": None}, "loraserve:requestsPerReplica: is missing"),
    "an unknown key": ({"gpuMaxsize": 3}, "loraserve:gpuMaxsize is not a known key"),
    "bounds": ({"gpuMinSize": 3}, "loraserve:gpuMaxSize 2 is below gpuMinSize 3"),
    "disks": ({"gpuWarmPool": True}, "loraserve:gpuWarmPool keeps stopped instances"),
    "reach": ({"publicAccessCidrs": []}, "loraserve:publicAccessCidrs is empty"),
    "memory": ({"gpuMemoryUtilization": "0.99"}, "loraserve:gpuMemoryUtilization 0.99 leaves too little"),
    "names": ({"adapters": [adapter("faq"), adapter("faq")]}, "loraserve:adapters: 2 adapters are named 'faq'"),
}
"""Problems that have no setting in common, but for the adapters, without which memory cannot be judged."""


@settings(deadline=None, max_examples=40)
@given(st.sets(st.sampled_from(sorted(INDEPENDENT)), min_size=1))
def test_whatever_is_wrong_at_once_is_told_at_once(wrong: set[str]) -> None:
    if "names" in wrong:
        wrong.discard("memory")
    changes = {key: value for name in wrong for key, value in INDEPENDENT[name][0].items()}
    told = problems(**changes).splitlines()
    assert len(told) == len(wrong)
    for name in wrong:
        assert any(INDEPENDENT[name][1] in problem for problem in told)


@pytest.mark.parametrize("key", [to_camel(field) for field in Settings.model_fields])
def test_a_value_of_no_use_in_any_key_is_told_with_that_key_and_hides_no_rule(key: str) -> None:
    told = problems(**{"gpuWarmPool": True, key: {"no": "such value"}}).splitlines()
    assert any(problem.startswith(f"loraserve:{key}") for problem in told)
    if key not in ("gpuWarmPool", "gpuNvmeRaid0"):
        assert any("loraserve:gpuWarmPool keeps stopped instances" in problem for problem in told)
    if key != "gpuWarmPool":
        assert all(problem.startswith((f"loraserve:{key}", "loraserve:gpuWarmPool")) for problem in told)


def test_a_rule_says_nothing_of_a_value_that_is_not_valid() -> None:
    told = problems(gpuMinSize=3, gpuMaxSize="many")
    assert told.splitlines() == [told]
    assert told.startswith("loraserve:gpuMaxSize: Input should be a valid integer")


def test_a_volume_needs_a_system_node_in_its_zone_whatever_happens() -> None:
    assert "set systemNodeCount to 2" in problems(prometheusVolumeGib=50)
    assert "set systemNodeCount to 3" in problems(prometheusVolumeGib=50, systemNodeCount=2, availabilityZoneCount=3)
    parse(stack_values("dev", prometheusVolumeGib=50, systemNodeCount=2))
    parse(stack_values("dev", prometheusVolumeGib=50, monitoringEnabled=False))


def test_the_local_section_is_refused_beside_a_real_account() -> None:
    def read(**changes: Any) -> Settings:
        return parse(stack_values("local", **changes), allowed_accounts=["210987654321"])

    with pytest.raises(InvalidSettings, match=r"loraserve:local is for an emulated AWS.*names 210987654321: remove it"):
        read()
    with pytest.raises(InvalidSettings, match=r"loraserve:local is for an emulated AWS"):
        read(local={"awsEndpointUrl": "http://10.0.0.1:4566"}, nat="magic")
    assert read(local=None).local == Local()
    assert parse(stack_values("local"), allowed_accounts=[EMULATED_ACCOUNT]).local.single_node


def test_the_program_refuses_the_local_section_for_a_real_account(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = stack_file("local") | {"aws:allowedAccountIds": ["210987654321"]}
    monkeypatch.setattr("tests.unit.declared.stack_file", lambda _: shipped)
    with pytest.raises(ConfigError, match="loraserve:local is for an emulated AWS"):
        run("local")


def test_what_only_a_local_stack_has_needs_a_local_section() -> None:
    assert "loraserve:local.vllmDevice: Input should be 'gpu' or 'cpu'" in problems(local={"vllmDevice": "tpu"})
    assert "loraserve:local.awsEndpointUrl" in problems(local={"awsEndpointUrl": "moto"})
    for key in ("vllmDevice", "singleNode", "adaptersInMemory", "awsEndpointUrl"):
        assert f"loraserve:{key} is not a known key" in problems(**{key: "cpu"})


def test_namespaces_of_clients_are_namespaces_and_not_the_models_own() -> None:
    assert "'Team A' is no Kubernetes namespace: give" in problems(gatewayClientNamespaces=["team-a", "Team A"])
    assert "ml-models is where the model runs" in problems(gatewayClientNamespaces=["ml-models"])


def test_the_emulated_account_is_motos() -> None:
    assert EMULATED_ACCOUNT == DEFAULT_ACCOUNT_ID


@pytest.mark.parametrize("accounts", [None, [], ["123456789012", "210987654321"]])
def test_a_stack_file_is_for_one_account_and_says_so_with_all_else(
    accounts: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = {k: v for k, v in stack_file("dev").items() if k != "aws:allowedAccountIds"}
    monkeypatch.setattr(
        "tests.unit.declared.stack_file", lambda _: shipped | ({"aws:allowedAccountIds": accounts} if accounts else {})
    )
    with pytest.raises(ConfigError, match=r"(?s)aws:allowedAccountIds must name exactly one account.*gpuMinSize"):
        declare("dev", gpuMinSize=3)


def test_the_gpu_group_cannot_be_smaller_at_most_than_at_least() -> None:
    assert "loraserve:gpuMaxSize 2 is below gpuMinSize 3: raise it to 3" in problems(gpuMinSize=3)


def test_replicas_need_as_many_gpu_nodes() -> None:
    assert "loraserve:inferenceReplicas 3 needs as many GPU nodes" in problems(inferenceReplicas=3)


def test_an_image_of_ours_is_named_by_its_digest_but_on_this_machine() -> None:
    assert "loraserve:loraserveImage app:v1 names no digest" in problems(loraserveImage="app:v1")
    for image in (f"app@sha256:{'0' * 64}", "localhost/loraserve:local"):
        assert parse(stack_values("dev", loraserveImage=image)).loraserve_image == image


def test_an_instance_type_without_a_gpu_is_refused_with_those_that_have_one() -> None:
    told = problems(gpuInstanceType="t3a.medium")
    assert "loraserve:gpuInstanceType: has no GPU" in told
    assert "g6.xlarge" in told


def test_an_instance_type_too_small_for_the_pod_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_resources, "LEAST_ON_GPU", pod_resources.Requests(3000, 14 * 1024))
    assert "loraserve:gpuInstanceType g6.xlarge is too small" in problems()


def test_a_rank_vllm_does_not_allow_is_refused() -> None:
    assert "loraserve:adapters[0].rank" in problems(adapters=[adapter(rank=513)])


def test_two_adapters_cannot_share_a_name() -> None:
    told = problems(adapters=[adapter("faq"), adapter("faq", version="v2")])
    assert "loraserve:adapters: 2 adapters are named 'faq': rename all but one" in told


def test_a_canary_beside_its_stable_version_is_one_of_two_entries_of_a_name() -> None:
    entries = [adapter("faq"), adapter("faq", version="v2", canaryPercent=10)]
    slots = parse(stack_values("dev", adapters=entries)).envelope
    assert slots == parse(stack_values("dev", adapters=[adapter("faq"), adapter("other")])).envelope


def test_an_adapter_cannot_have_the_base_models_name() -> None:
    told = problems(adapters=[adapter("own-1b")], baseModel="own-1b", baseModelShape=json.dumps(OWN_MODEL_SHAPE))
    assert "loraserve:adapters: 'own-1b' is the base model's name: rename that adapter" in told


def test_an_adapter_entry_with_an_unknown_field_is_refused() -> None:
    assert "loraserve:adapters[0].alpha: is not a known key" in problems(adapters=[adapter(alpha=16)])


def test_an_adapter_on_layers_the_base_model_lacks_is_refused() -> None:
    assert "target modules lm_head are not LoRA layers" in problems(adapters=[adapter(targetModules=["lm_head"])])


def test_a_context_without_room_for_one_request_is_refused_with_the_length_that_fits() -> None:
    shape = MISTRAL_7B_AWQ.model_copy(update={"max_position_embeddings": None}).model_dump_json(by_alias=True)
    told = problems(maxModelLen=200_000, baseModelShape=shape)
    assert "loraserve:maxModelLen 200,000 leaves no room for one request on g6.xlarge" in told
    assert re.search(r"The smallest change that fits: maxModelLen 1\d{5}\b", told)


def test_a_context_longer_than_the_model_was_made_for_is_refused() -> None:
    told = problems(maxModelLen=40_000)
    assert "loraserve:maxModelLen 40,000 is more than the 32,768" in told
    assert "set it to 32768 or less" in told


def test_what_lies_outside_vllms_share_needs_room() -> None:
    assert "set it to 0.95 or less" in problems(gpuMemoryUtilization="0.97")


def test_the_share_is_computed_unless_it_is_given() -> None:
    assert parse(stack_values("dev")).serving.utilization == 0.95
    assert parse(stack_values("dev", gpuMemoryUtilization="0.8")).serving.utilization == 0.8


def test_a_warm_pool_and_raid0_exclude_each_other() -> None:
    assert "loraserve:gpuWarmPool keeps stopped instances" in problems(gpuWarmPool=True)


@pytest.mark.parametrize("address", ["charts.example.com", "ftp://charts.example.com", "https://", "oci:// x"])
def test_a_mirror_of_charts_needs_an_address_that_helm_can_read(address: str) -> None:
    assert "loraserve:chartRepository: give the address of a Helm repository" in problems(chartRepository=address)


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "0.0.0.0/1", "12.0.0.0/8"])
def test_production_refuses_an_open_api_endpoint(cidr: str) -> None:
    assert "loraserve:publicAccessCidrs opens the cluster's API" in problems("prod", publicAccessCidrs=[cidr])


def test_a_cluster_that_nobody_reaches_is_refused() -> None:
    told = problems("prod", privateAccessCidrs=None)
    assert "loraserve:publicAccessCidrs is empty, so nobody reaches the cluster's API" in told


def test_a_hub_token_in_clear_is_refused() -> None:
    with pytest.raises(ConfigError, match="pulumi config set --secret hubToken"):
        declare("dev", hubToken="hf_very_secret")


def test_the_creator_of_the_cluster_needs_no_access_entry() -> None:
    entry = {"name": "me", "principalArn": "arn:aws:iam::123456789012:role/deployer", "policy": "admin"}
    with pytest.raises(ConfigError, match="clusterAccess entry me is you"):
        declare("dev", clusterAccess=[entry])


@pytest.mark.parametrize(
    ("arn", "name"),
    [
        ("arn:aws:iam::123456789012:role/team/deployer", "deployer"),
        ("arn:aws:sts::123456789012:assumed-role/deployer/me@acme", "deployer"),
        ("arn:aws:iam::123456789012:user/anna", "anna"),
    ],
)
def test_a_principal_is_told_from_its_arn(arn: str, name: str) -> None:
    assert preflight.principal_name(arn) == name


def test_an_unknown_base_model_needs_its_shape() -> None:
    told = problems(baseModel="acme/own-13b")
    assert "loraserve:baseModelShape: nothing is known of acme/own-13b: give hiddenSize" in told


def test_a_base_model_with_its_shape_is_accepted() -> None:
    shape = json.dumps(OWN_MODEL_SHAPE)
    parsed = parse(stack_values("dev", baseModel="acme/own-1b", baseModelShape=shape))
    assert parsed.model_shape.head_dim == 64


def test_a_chat_template_that_is_not_there_is_refused() -> None:
    assert "loraserve:chatTemplateFile: there is no such file" in problems(chatTemplateFile="templates/none.jinja")


def test_a_vpc_too_small_for_its_subnets_is_refused() -> None:
    assert "loraserve:vpcCidr" in problems(vpcCidr="10.0.0.0/24")


def test_a_secret_never_shows_in_an_error_or_a_printout() -> None:
    parsed = parse(stack_values("dev", hubToken="hf_very_secret"))
    assert "hf_very_secret" not in repr(parsed)


def test_zones_that_do_not_offer_the_gpu_type_are_named_with_those_that_do() -> None:
    parsed = parse(stack_values("dev", availabilityZones=["eu-central-1a", "eu-central-1c"]))
    with pytest.raises(ConfigError, match=r"availabilityZones eu-central-1c do not offer g6\.xlarge.*offered by"):
        preflight.choose_zones(parsed, ["eu-central-1a", "eu-central-1b"], "eu-central-1", None)


def test_a_region_with_too_few_zones_for_the_gpu_type_is_refused() -> None:
    parsed = parse(stack_values("dev"))
    with pytest.raises(ConfigError, match="offered in eu-north-1 by none of its zones"):
        preflight.choose_zones(parsed, [], "eu-north-1", None)


def test_a_refused_configuration_declares_nothing() -> None:
    program = Program()
    with pytest.raises(ConfigError):
        run("dev", program=program, gpuMinSize=3)
    assert program.resources == []


def test_a_stack_file_for_another_account_declares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.declared.ACCOUNT", "210987654321")
    program = Program()
    with pytest.raises(ConfigError, match=r"aws:allowedAccountIds says this stack is for account 123456789012"):
        run("dev", program=program)
    assert program.resources == []


def test_base_weights_that_exceed_the_nodes_disk_are_refused() -> None:
    def mirror(gib: int) -> dict[str, Any]:
        return {"version": "v1", "digest": "sha256:" + "a" * 64, "sizeBytes": gib * 1024**3}

    parse(stack_values("dev", baseModelMirror=mirror(81)))
    told = problems(baseModelMirror=mirror(161))
    assert "base weights, caches and three adapters" in told
    assert "need 340 GiB, and pods may use 180 GiB of a node: set it to 426" in told
    told = problems(baseModelMirror=mirror(700), gpuInstanceType="p5.48xlarge")
    assert "baseModel has 700.0 GiB of weights, and a pod has 640 GiB" in told


def test_a_mirror_needs_a_model_that_can_be_named_in_the_bucket() -> None:
    mirror = {"version": "v1", "digest": "sha256:" + "a" * 64, "sizeBytes": 1}
    told = problems(baseModel="/models/mine", baseModelShape=OWN_MODEL_SHAPE, baseModelMirror=mirror)
    assert "baseModelMirror: '/models/mine' is no hub id" in told


def test_a_mirrored_model_needs_no_commit_in_production() -> None:
    mirror = {"version": "v1", "digest": "sha256:" + "a" * 64, "sizeBytes": 1}
    assert parse(stack_values("prod", baseModelRevision="main", baseModelMirror=mirror))


def many(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [adapter(f"tenant-{number}", **changes) for number in range(count)]


ALL_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("adapters", "changes", "slots"),
    [
        (many(50, sizeBytes=200_000_000), {}, 52),
        (many(32, rank=64, targetModules=ALL_LAYERS), {"adapterSlots": "8"}, 8),
        (many(32, rank=64, targetModules=ALL_LAYERS), {}, 16),
        (many(200), {}, 32),
    ],
    ids=["50 of 200 MB", "32 of rank 64 in 8 slots", "32 of rank 64", "200 tenants"],
)
def test_published_sizes_fit_a_card_of_24_gb(
    adapters: list[dict[str, Any]], changes: dict[str, Any], slots: int
) -> None:
    parsed = parse(stack_values("dev", adapters=adapters, **changes))
    assert parsed.envelope
    assert parsed.envelope.slots == slots
    assert plan_memory(parsed.serving).kv_tokens > 8 * parsed.max_model_len


def test_slots_are_chosen_from_few_numbers() -> None:
    told = problems(adapterSlots=10)
    assert "loraserve:adapterSlots: vLLM compiles anew for each number: choose one of 4, 8, 16, 32" in told
    assert parse(stack_values("dev", adapterSlots=16)).envelope
    assert parse(stack_values("dev", adapterSlots="0")).envelope is None


def test_what_is_dear_but_works_is_told_with_its_price() -> None:
    eight, quiet = many(8, targetModules=["q_proj", "v_proj"]), {"monitoringEnabled": False}
    assert list(advice(parse(stack_values("dev", adapters=eight, **quiet)))) == []
    (told,) = advice(parse(stack_values("dev", adapters=[*eight, adapter("wide", rank=256)], **quiet)))
    assert told.startswith("adapter wide alone makes every slot wider (rank 256, 4 layers): 16 slots")
    (shared,) = advice(parse(stack_values("dev", adapters=many(200), **quiet)))
    assert "share 32 slots" in shared
