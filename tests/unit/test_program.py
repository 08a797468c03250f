"""The whole program under mocks, with the real stack files: what would hurt if it were otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from infra import names
from infra.serving_pod import grace_seconds
from loraserve.contract.agent_settings import AgentSettings
from loraserve.contract.desired_state import Envelope
from loraserve.planning.gpu_memory import GRAPH_SIZES
from loraserve.vllm_plugins import gpu_share
from tests.stack_values import CHECKOUT, adapter
from tests.unit.declared import Program, declare, environment_in_pod

STACKS = ["dev", "prod", "local"]


@pytest.fixture(scope="module", params=[(stack, preview) for stack in STACKS for preview in (False, True)], ids=str)
def program(request: pytest.FixtureRequest) -> Program:
    stack, preview = request.param
    return declare(stack, preview=preview, adapters=[adapter()])


@pytest.fixture(scope="module")
def dev() -> Program:
    return declare("dev", adapters=[adapter()])


@pytest.fixture(scope="module")
def prod() -> Program:
    return declare("prod", adapters=[adapter()])


def pod(program: Program) -> dict[str, Any]:
    return program.one("apps/v1:Deployment", names.VLLM).inputs["spec"]["template"]["spec"]


def vllm(program: Program) -> dict[str, Any]:
    return pod(program)["containers"][0]


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {variable["name"]: variable.get("value") for variable in container["env"]}


def told_to_agent(program: Program) -> AgentSettings:
    """What the agent reads of its environment."""
    return AgentSettings.from_environment(environment_in_pod(pod(program)["initContainers"][0]))


def restarts_announced(**changes: Any) -> list[str]:
    """What a preview says where an adapter of a larger rank was declared."""
    last = {"cluster": "loraserve-dev", "envelope": {"slots": 4, "rank": 8, "target_modules": ["k_proj"]}}
    program = declare("dev", preview=True, last_outputs=last, adapters=[adapter(rank=64)], **changes)
    return [message for message in program.messages if "restarts" in message]


def test_no_two_resources_share_a_urn(program: Program) -> None:
    urns = [resource.urn for resource in program.resources]
    assert len(urns) == len(set(urns))


def test_no_policy_holds_a_null(program: Program) -> None:
    assert program.policies()
    assert "null" not in json.dumps(program.policies())


def test_the_program_imports_without_the_serving_side() -> None:
    script = "import sys, infra.program; print([m for m in ('boto3', 'vllm', 'kubernetes') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_the_pod_tolerates_and_selects_exactly_the_gpu_group(program: Program) -> None:
    group = program.one("eks/nodeGroup:NodeGroup", names.GPU_NODE_GROUP).inputs
    taint = group["taints"][0]
    assert pod(program)["tolerations"] == [
        {"key": taint["key"], "operator": "Equal", "value": taint["value"], "effect": "NoSchedule"}
    ]
    assert pod(program)["nodeSelector"].items() <= group["labels"].items()


def test_a_gpu_start_compiles_no_module_twice_and_few_graphs(dev: Program) -> None:
    told = environment(vllm(dev))
    (cache,) = (mount for mount in vllm(dev)["volumeMounts"] if mount["name"] == "cache")
    assert told["PYTHONPYCACHEPREFIX"].startswith(cache["mountPath"] + "/")
    assert told["VLLM_WORKER_MULTIPROC_METHOD"] == "fork"
    (compilation,) = (flag for flag in vllm(dev)["args"] if flag.startswith("--compilation-config="))
    assert json.loads(compilation.partition("=")[2]) == {"cudagraph_capture_sizes": list(GRAPH_SIZES)}


def test_the_cpu_build_uses_the_modules_that_its_image_has_compiled() -> None:
    assert "PYTHONPYCACHEPREFIX" not in environment(vllm(declare("local", adapters=[adapter()])))


def test_kubernetes_objects_go_before_nodes_dns_and_cluster(dev: Program) -> None:
    provider = dev.one("pulumi:providers:kubernetes")
    needs = " ".join(provider.depends_on)
    assert "eks:index:Cluster" in needs
    assert needs.count("eks/nodeGroup:NodeGroup") == 2
    assert "loraserve-dev-coredns" in needs
    assert provider.inputs["enableConfigMapMutable"] == "true"


def test_custom_resources_go_before_the_operator_that_knows_them(dev: Program) -> None:
    monitor = dev.one("monitoring.coreos.com/v1:ServiceMonitor", names.VLLM)
    assert any("kube-prometheus-stack" in urn for urn in monitor.depends_on)


def test_protection_follows_one_setting(dev: Program, prod: Program) -> None:
    for program, protected in ((dev, False), (prod, True)):
        bucket = program.one("s3/bucket:Bucket")
        assert program.one("eks:index:Cluster").protect is protected
        assert bucket.protect is protected
        assert bucket.inputs["forceDestroy"] is not protected
        assert program.one("ecr/repository:Repository").inputs["forceDelete"] is not protected


def test_the_cluster_is_as_the_design_says(prod: Program) -> None:
    cluster = prod.one("eks:index:Cluster").inputs
    assert cluster["authenticationMode"] == "API"
    assert cluster["endpointPrivateAccess"] is True
    assert cluster["endpointPublicAccess"] is False
    assert cluster["upgradePolicy"] == {"supportType": "STANDARD"}
    assert cluster["skipDefaultNodeGroup"] is True
    assert cluster["vpcCniOptions"]["enableNetworkPolicy"] is True
    assert cluster["vpcCniOptions"]["enablePrefixDelegation"] is True
    assert cluster["vpcCniOptions"]["addonVersion"]


def test_access_to_the_cluster_comes_from_the_config() -> None:
    entry = {"name": "ops", "principalArn": "arn:aws:iam::123456789012:role/ops", "policy": "admin"}
    entries = declare("dev", clusterAccess=[entry]).one("eks:index:Cluster").inputs["accessEntries"]
    policy = entries["ops"]["accessPolicies"]["admin"]
    assert entries["ops"]["principalArn"] == entry["principalArn"]
    assert policy["policyArn"].endswith("AmazonEKSClusterAdminPolicy")


def test_a_private_api_admits_the_listed_ranges(prod: Program) -> None:
    rule = prod.one("vpc/securityGroupIngressRule:SecurityGroupIngressRule").inputs
    assert (rule["securityGroupId"], rule["cidrIpv4"], rule["fromPort"]) == ("sg-1", "192.168.0.0/24", 443)


@pytest.mark.parametrize(
    ("code", "short", "settings", "told"),
    [
        ("L-DB2E81BA", 4, {}, "2 x g6.xlarge need 8 vCPUs of 'Running On-Demand G and VT instances'"),
        (
            "L-3819A6DF",
            0,
            {"gpuSpot": True},
            "2 x g6.xlarge of Spot need 8 vCPUs of 'All G and VT Spot Instance Requests'",
        ),
        ("L-1216C47A", 5, {}, "2 x t3a.medium and the way out need 6 vCPUs of 'Running On-Demand Standard"),
        ("L-F678F1CE", 1, {}, "1 more of 'VPCs per Region', where 1 are used and 1 allowed"),
        ("L-0263D0A3", 0, {"nat": "gateway"}, "1 more of 'EC2-VPC Elastic IPs'"),
        (
            "L-FE5A380F",
            2,
            {"nat": "gateway-per-zone"},
            "1 more of 'NAT gateways per Availability Zone' in eu-central-1b",
        ),
    ],
)
def test_a_too_small_quota_is_told_before_anything_is_waited_for(
    code: str, short: float, settings: dict[str, Any], told: str
) -> None:
    gateways = ["nat-1", "nat-2"]
    said = " ".join(declare("dev", quotas={code: short}, nat_gateways=gateways, **settings).messages)
    assert told in said
    assert "request more under Service Quotas" in said


def test_enough_of_every_quota_is_not_spoken_of() -> None:
    enough = {"L-DB2E81BA": 8, "L-3819A6DF": 0, "L-1216C47A": 6, "L-F678F1CE": 2, "L-0263D0A3": 0, "L-FE5A380F": 0}
    assert not any("quota" in message for message in declare("dev", quotas=enough).messages)


def test_the_pod_is_hardened(program: Program) -> None:
    spec = pod(program)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    for container in [*spec["containers"], *spec["initContainers"]]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_every_path_vllm_writes_to_is_on_a_volume(dev: Program) -> None:
    container = vllm(dev)
    mounts = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    variables = {name: value for name, value in environment(container).items() if name != "PYTHONPATH"}
    paths = [value for value in variables.values() if value and value.startswith("/")]
    assert len(paths) >= 9
    assert all(any(path.startswith(mount) for mount in mounts) for path in paths)


def test_only_the_agent_holds_aws_credentials(dev: Program) -> None:
    agent = pod(dev)["initContainers"][0]
    assert environment(agent)["AWS_ROLE_ARN"]
    assert not [name for name in environment(vllm(dev)) if name.startswith("AWS_")]
    token_mounts = [mount for mount in vllm(dev)["volumeMounts"] if "aws" in mount["name"]]
    assert token_mounts == []
    annotations = dev.one("apps/v1:Deployment", names.VLLM).inputs["spec"]["template"]["metadata"]["annotations"]
    assert annotations["eks.amazonaws.com/skip-containers"] == vllm(dev)["name"]


def test_only_the_agent_may_ask_the_kubernetes_api_and_only_for_its_own_document(dev: Program) -> None:
    spec = pod(dev)
    mounting = [
        container["name"]
        for container in [*spec["initContainers"], *spec["containers"]]
        if any(mount["name"] == "kubernetes-api" for mount in container["volumeMounts"])
    ]
    assert mounting == ["agent"]
    watch, events = dev.one("rbac.authorization.k8s.io/v1:Role", "desired-state-follower").inputs["rules"]
    assert watch["resourceNames"] == [dev.one("core/v1:ConfigMap", "desired-state").inputs["metadata"]["name"]]
    assert (watch["resources"], watch["verbs"]) == (["configmaps"], ["get", "list", "watch"])
    assert (events["resources"], events["verbs"]) == (["events"], ["create"])
    binding = dev.one("rbac.authorization.k8s.io/v1:RoleBinding", "desired-state-follower").inputs
    assert [subject["name"] for subject in binding["subjects"]] == [spec["serviceAccountName"]]


def test_the_token_is_for_sts(dev: Program) -> None:
    volume = next(volume for volume in pod(dev)["volumes"] if "projected" in volume)
    token = volume["projected"]["sources"][0]["serviceAccountToken"]
    assert token["audience"] == "sts.amazonaws.com"
    assert environment(pod(dev)["initContainers"][0])["AWS_WEB_IDENTITY_TOKEN_FILE"].endswith(token["path"])


def test_a_slow_start_is_not_killed_in_a_loop(program: Program) -> None:
    probe = vllm(program)["startupProbe"]
    assert probe["initialDelaySeconds"] == 30
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 15 * 60


def test_probes_are_the_specified_ones(dev: Program) -> None:
    for name, delay, period in (("livenessProbe", 10, 30), ("readinessProbe", 5, 10)):
        probe = vllm(dev)[name]
        assert probe["httpGet"] == {"path": "/health", "port": 8000}
        assert (probe["initialDelaySeconds"], probe["periodSeconds"], probe["failureThreshold"]) == (delay, period, 3)


def test_a_stopping_pod_has_time_for_the_longest_generation() -> None:
    program = declare("dev", longestGenerationSeconds=300)
    assert pod(program)["terminationGracePeriodSeconds"] == grace_seconds(300)
    assert grace_seconds(300) >= vllm(program)["lifecycle"]["preStop"]["sleep"]["seconds"] + 300
    assert "--shutdown-timeout=300" in vllm(program)["args"]


def test_resources_are_the_specified_ones(dev: Program) -> None:
    resources = vllm(dev)["resources"]
    assert {key: resources["requests"][key] for key in ("cpu", "memory", "nvidia.com/gpu")} == {
        "cpu": "3000m",
        "memory": "12288Mi",
        "nvidia.com/gpu": "1",
    }
    assert resources["limits"] == {"cpu": "4000m", "memory": "14336Mi", "nvidia.com/gpu": "1"}


def test_a_model_is_spread_over_all_gpus_of_its_node() -> None:
    program = declare("dev", gpuInstanceType="g6.12xlarge")
    assert "--tensor-parallel-size=4" in vllm(program)["args"]
    resources = vllm(program)["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "4"
    assert resources["requests"]["cpu"] == "47000m"
    (shared,) = [volume for volume in pod(program)["volumes"] if volume["name"] == "shared-memory"]
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    tags = {tag.inputs["tag"]["key"]: tag.inputs["tag"]["value"] for tag in program.of_type("autoscaling/tag:Tag")}
    assert tags["k8s.io/cluster-autoscaler/node-template/resources/nvidia.com/gpu"] == "4"
    assert any("measured on one and two: it is unproven there" in message for message in program.messages)


def test_a_rolling_update_surges_only_where_a_node_can_be_bought() -> None:
    for replicas, surge, unavailable in ((1, 1, 0), (2, 0, 1)):
        strategy = (
            declare("dev", inferenceReplicas=replicas).one("apps/v1:Deployment", names.VLLM).inputs["spec"]["strategy"]
        )
        assert strategy["rollingUpdate"] == {"maxSurge": surge, "maxUnavailable": unavailable}


def test_an_added_adapter_changes_the_desired_state_and_not_the_pod() -> None:
    before = declare("dev", adapters=[adapter("one")])
    after = declare("dev", adapters=[adapter("one"), adapter("two")])
    assert before.one("apps/v1:Deployment", names.VLLM).inputs == after.one("apps/v1:Deployment", names.VLLM).inputs
    documents = [p.one("core/v1:ConfigMap", "desired-state").inputs["data"]["desired.json"] for p in (before, after)]
    assert [len(json.loads(document)["adapters"]) for document in documents] == [1, 2]


def test_the_agent_fills_less_than_would_get_the_pod_evicted(dev: Program) -> None:
    limit = told_to_agent(dev).adapter_disk_bytes
    volume = next(volume for volume in pod(dev)["volumes"] if volume["name"] == "adapters")
    assert limit < int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 1024**3


def test_the_agent_understands_what_the_pod_tells_it(program: Program) -> None:
    told, container = told_to_agent(program), pod(program)["initContainers"][0]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod(program)["volumes"]}
    document = program.one("core/v1:ConfigMap", names.DESIRED_STATE).inputs
    assert told.desired_file.name in document["data"]
    copy = volumes[mounts[str(told.desired_file.parent)]]
    assert copy["configMap"]["name"] == document["metadata"]["name"]
    assert told.kubernetes
    assert told.kubernetes.config_map == document["metadata"]["name"]
    assert str(told.kubernetes.credentials) in mounts
    assert "emptyDir" in volumes[mounts[str(told.adapter_dir)]]
    assert told.port == container["ports"][0]["containerPort"]
    assert told.vllm_url.endswith(f":{vllm(program)['ports'][0]['containerPort']:.0f}")


def test_the_agent_is_told_which_pod_it_is_in(dev: Program) -> None:
    sources = {entry["name"]: entry.get("valueFrom", {}) for entry in pod(dev)["initContainers"][0]["env"]}
    fields = {name: source["fieldRef"]["fieldPath"] for name, source in sources.items() if "fieldRef" in source}
    assert fields == AgentSettings.variables(
        kubernetes_namespace="metadata.namespace",
        kubernetes_pod_name="metadata.name",
        kubernetes_pod_uid="metadata.uid",
    )


def test_the_agent_shares_vllms_key(dev: Program) -> None:
    (name,) = AgentSettings.variables(vllm_api_key="")
    key = next(entry["valueFrom"] for entry in pod(dev)["initContainers"][0]["env"] if entry["name"] == name)
    assert key in [entry["valueFrom"] for entry in vllm(dev)["env"] if entry["name"] == "VLLM_API_KEY"]


def test_document_and_agent_are_told_what_vllm_is_started_with(dev: Program) -> None:
    document = json.loads(dev.one("core/v1:ConfigMap", "desired-state").inputs["data"]["desired.json"])
    envelope = document["envelope"]
    assert told_to_agent(dev).envelope == Envelope.model_validate(envelope)
    assert f"--max-loras={envelope['slots']}" in vllm(dev)["args"]
    assert f"--max-lora-rank={envelope['rank']}" in vllm(dev)["args"]
    assert set(envelope["targetModules"]) <= set(vllm(dev)["args"])


def test_leaving_the_envelope_is_announced_in_preview() -> None:
    (told,) = restarts_announced(inferenceReplicas=1)
    assert "this restarts vLLM" in told
    assert "rank 8 -> 64" in told


def test_no_restart_is_announced_where_nothing_runs() -> None:
    assert restarts_announced(inferenceReplicas=0, scalingEnabled=False) == []
    assert restarts_announced(inferenceReplicas=0)  # what sleeps now may be awake when it is applied


def test_a_first_update_announces_no_restart() -> None:
    assert not any("restarts" in message for message in declare("dev", adapters=[adapter()]).messages)


def test_the_first_adapter_changes_none_of_vllms_flags() -> None:
    assert vllm(declare("dev"))["args"] == vllm(declare("dev", adapters=[adapter()]))["args"]


def test_a_model_without_slots_is_served_without_lora_flags() -> None:
    args = vllm(declare("dev", adapterSlots="0"))["args"]
    assert args[0] == "TheBloke/Mistral-7B-v0.1-AWQ"
    assert not any("-lora" in arg for arg in args)


def test_the_agent_and_the_gate_know_the_base_model() -> None:
    program = declare("dev", acceptedBaseIds=["mistralai/Mistral-7B-v0.1"])
    base = json.loads(program.one("core/v1:ConfigMap", "desired-state").inputs["data"]["desired.json"])["base"]
    assert base["acceptedIds"] == ["mistralai/Mistral-7B-v0.1"]
    assert base["shape"]["numHiddenLayers"] == 32
    assert base["shape"]["modules"]["k_proj"] == [4096, 1024]


MIRROR = {"version": "v1", "digest": "sha256:" + "a" * 64, "sizeBytes": 4 * 1024**3}


@pytest.fixture(scope="module")
def mirrored() -> Program:
    return declare("dev", baseModelMirror=MIRROR)


def test_mirrored_weights_are_fetched_before_vllm_starts(mirrored: Program) -> None:
    agent = pod(mirrored)["initContainers"][0]
    assert agent["restartPolicy"] == "Always"
    assert agent["startupProbe"]["httpGet"] == {"path": "/startupz", "port": 9090}
    assert agent["startupProbe"]["periodSeconds"] * agent["startupProbe"]["failureThreshold"] >= 15 * 60


def test_vllm_loads_the_folder_that_the_agent_fills_and_asks_no_hub(mirrored: Program) -> None:
    args = vllm(mirrored)["args"]
    assert args[0] == str(told_to_agent(mirrored).base_folder)
    assert "--served-model-name=TheBloke/Mistral-7B-v0.1-AWQ" in args
    assert not any("revision" in arg for arg in args)
    assert environment(vllm(mirrored))["HF_HUB_OFFLINE"] == "1"
    base = json.loads(mirrored.one("core/v1:ConfigMap", "desired-state").inputs["data"]["desired.json"])["base"]
    assert base["mirror"] == MIRROR


def test_only_the_agent_writes_what_vllm_loads(mirrored: Program) -> None:
    for name in ("base", "adapters"):
        mounts = [
            next(mount for mount in container["volumeMounts"] if mount["name"] == name)
            for container in (pod(mirrored)["initContainers"][0], vllm(mirrored))
        ]
        assert mounts[0]["mountPath"] == mounts[1]["mountPath"]
        assert [mount.get("readOnly", False) for mount in mounts] == [False, True]


def test_every_mount_has_its_volume_and_every_volume_a_mount(mirrored: Program, program: Program) -> None:
    for declaring in (mirrored, program):
        spec = pod(declaring)
        containers = [*spec["initContainers"], *spec["containers"]]
        mounted = {mount["name"] for container in containers for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_volumes_fit_the_disk_that_the_pod_asks_for(mirrored: Program, dev: Program) -> None:
    for program in (mirrored, dev):
        volumes = [volume["emptyDir"] for volume in pod(program)["volumes"] if "emptyDir" in volume]
        assert all("sizeLimit" in volume for volume in volumes)
        gib = [int(v["sizeLimit"].removesuffix("Gi")) for v in volumes if "medium" not in v]
        asked = vllm(program)["resources"]["requests"]["ephemeral-storage"]
        assert sum(gib) <= int(asked.removesuffix("Gi"))


def test_other_mirrored_weights_replace_the_pod(mirrored: Program) -> None:
    other = declare("dev", baseModelMirror=MIRROR | {"digest": "sha256:" + "b" * 64})
    assert vllm(other)["args"] != vllm(mirrored)["args"]


def test_a_chat_template_is_mounted(tmp_path: Any) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    program = declare("dev", chatTemplateFile=str(template))
    flag = next(arg for arg in vllm(program)["args"] if arg.startswith("--chat-template="))
    mount = next(mount for mount in vllm(program)["volumeMounts"] if mount["name"] == "files")
    assert flag.removeprefix("--chat-template=").startswith(mount["mountPath"])
    assert program.one("core/v1:ConfigMap", "vllm-files").inputs["data"]["chat_template.jinja"] == "{{ messages }}"


def test_the_default_base_model_which_has_no_chat_template_is_given_one() -> None:
    program = declare("dev")
    assert any(arg.startswith("--chat-template=") for arg in vllm(program)["args"])
    assert "[INST]" in program.one("core/v1:ConfigMap", "vllm-files").inputs["data"]["chat_template.jinja"]


def test_vllm_heeds_the_priorities_that_the_gateway_gives(dev: Program) -> None:
    assert "--scheduling-policy=priority" in vllm(dev)["args"]


def test_parsers_of_tools_and_reasoning_are_named_to_vllm(dev: Program) -> None:
    chosen = vllm(declare("dev", toolCallParser="hermes", reasoningParser="qwen3"))["args"]
    added = {"--enable-auto-tool-choice", "--tool-call-parser=hermes", "--reasoning-parser=qwen3"}
    assert set(chosen) - set(vllm(dev)["args"]) == added


def test_vllm_knows_what_has_to_stay_free_beside_its_share() -> None:
    """A logit takes 16 bytes where it is sorted: 256 rows of a vocabulary of 32,000, and of 128,256."""
    llama = declare("dev", baseModel="meta-llama/Llama-3.2-3B-Instruct")
    spare = [environment(vllm(program))[gpu_share.SPARE_VARIABLE] for program in (declare("dev"), llama)]
    assert spare == ["125", "501"]


def test_vllm_is_started_by_its_command_and_finds_the_guard_of_its_routes(dev: Program) -> None:
    container = vllm(dev)
    assert container["command"] == ["vllm", "serve"]
    module, _, _ = next(arg for arg in container["args"] if arg.startswith("--middleware=")).rpartition(".")
    mount = next(mount for mount in container["volumeMounts"] if mount["name"] == "files")
    assert environment(container)["PYTHONPATH"] == mount["mountPath"]
    files = dev.one("core/v1:ConfigMap", "vllm-files").inputs["data"]
    assert f"{module.removeprefix('--middleware=')}.py" in files


def test_no_user_of_a_node_is_a_user_of_ours(dev: Program) -> None:
    users = [d.inputs["spec"]["template"]["spec"]["securityContext"] for d in dev.of_type("apps/v1:Deployment")]
    assert len(users) == 2
    assert all(user["runAsUser"] > 10_000 and user["runAsGroup"] > 10_000 for user in users)


def test_a_gated_models_token_travels_as_a_secret_only() -> None:
    program = declare("dev", hubToken="hf_very_secret", secrets=["hubToken"])
    variable = next(v for v in vllm(program)["env"] if v["name"] == "HF_TOKEN")
    assert "secretKeyRef" in variable["valueFrom"]
    holders = {r.type for r in program.resources if "hf_very_secret" in json.dumps(r.inputs)}
    assert holders == {"kubernetes:core/v1:Secret"}


def test_one_disruption_at_a_time_never_blocks_a_node_upgrade(dev: Program) -> None:
    budgets = dev.of_type("policy/v1:PodDisruptionBudget")
    assert {budget.name: budget.inputs["spec"]["maxUnavailable"] for budget in budgets} == {"vllm": 1, "gateway": 1}


def test_images_are_pinned(dev: Program) -> None:
    images = [c["image"] for c in [*pod(dev)["containers"], *pod(dev)["initContainers"]]]
    assert images[0].partition("@")[0] == "docker.io/vllm/vllm-openai:v0.32.0"
    assert "@sha256:" in images[1]


def test_the_serving_namespace_enforces_restricted_pods(dev: Program) -> None:
    labels = dev.one("core/v1:Namespace", names.SERVING_NAMESPACE).inputs["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
