"""The gateway and its scaling as the program declares them."""

from __future__ import annotations

from typing import Any, cast

import pytest

from infra import names
from infra.scaling import cooldown_seconds
from loraserve.contract.gateway_settings import GatewaySettings
from loraserve.contract.keys import KeyRing, create_key
from loraserve.gateway.app import Gateway, InnerApi
from loraserve.planning.cold_start import HOLD_SECONDS
from loraserve.planning.settings_parser import InvalidSettings, parse
from tests.stack_values import adapter, stack_values
from tests.unit.declared import Program, declare, environment_in_pod

CERTIFICATE = "arn:aws:acm:eu-central-1:123456789012:certificate/0123"
_, KEY = create_key("team-a", ("aws-rag-qa",), 600)
ENTRY = KEY.model_dump(mode="json", by_alias=True)
KEY_1 = ENTRY | {"models": ["*"]}
KEY_2 = KEY_1 | {"id": "other", "requestsPerMinute": 60}


@pytest.fixture(scope="module")
def dev() -> Program:
    return declare("dev", adapters=[adapter()], gatewayKeys=[ENTRY])


@pytest.fixture(scope="module")
def with_balancer() -> Program:
    return declare("dev", gatewayCertificateArn=CERTIFICATE)


def deployment(program: Program) -> dict[str, Any]:
    return program.one("apps/v1:Deployment", names.GATEWAY).inputs["spec"]


def pod(program: Program) -> dict[str, Any]:
    return deployment(program)["template"]["spec"]


def container(program: Program) -> dict[str, Any]:
    (only,) = pod(program)["containers"]
    return only


def told(program: Program) -> GatewaySettings:
    """What the gateway reads of its environment."""
    return GatewaySettings.from_environment(environment_in_pod(container(program)))


def scaled_object(program: Program) -> dict[str, Any]:
    return program.one("keda.sh/v1alpha1:ScaledObject").inputs["spec"]


def test_the_gateway_understands_what_the_pod_tells_it(dev: Program) -> None:
    settings = told(dev)
    assert (settings.port, settings.metrics_port, settings.tls_port) == (8080, 9091, None)
    assert settings.vllm_service == dev.one("core/v1:Service", names.VLLM_SERVICE).inputs["metadata"]["name"]
    assert settings.gateway_service == dev.one("core/v1:Service", names.GATEWAY).inputs["metadata"]["name"]
    document = dev.one("core/v1:ConfigMap", settings.desired_config_map).inputs
    assert settings.desired_key in document["data"]
    assert settings.wait_seconds == HOLD_SECONDS


def test_it_holds_no_request_that_nothing_would_wake_the_model_for() -> None:
    assert told(declare("dev", scalingEnabled=False)).wait_seconds == 0
    assert told(declare("dev", scalingEnabled=False, inferenceReplicas=1)).wait_seconds == HOLD_SECONDS


def test_it_shares_vllms_key(dev: Program) -> None:
    entry = next(entry for entry in container(dev)["env"] if entry["name"] == "GATEWAY_VLLM_API_KEY")
    reference = entry["valueFrom"]["secretKeyRef"]
    secret = dev.one("core/v1:Secret", reference["name"]).inputs
    assert reference["key"] in secret["stringData"]


def test_only_digests_of_keys_are_in_the_cluster(dev: Program) -> None:
    volume, _ = pod(dev)["volumes"]
    secret = dev.one("core/v1:Secret", volume["secret"]["secretName"]).inputs
    mount = container(dev)["volumeMounts"][0]
    file = told(dev).keys_file
    assert str(file.parent) == mount["mountPath"]
    assert KeyRing.parse(secret["stringData"][file.name]).keys == (KEY,)


def test_it_writes_what_was_used_into_the_stacks_bucket_with_a_role_of_its_own(dev: Program) -> None:
    _, volume = pod(dev)["volumes"]
    _, mount = container(dev)["volumeMounts"]
    variables = {entry["name"]: entry.get("value") for entry in container(dev)["env"]}
    (token,) = volume["projected"]["sources"]
    file = f"{mount['mountPath']}/{token['serviceAccountToken']['path']}"
    assert (volume["name"], file) == (mount["name"], variables["AWS_WEB_IDENTITY_TOKEN_FILE"])
    assert token["serviceAccountToken"]["audience"] == "sts.amazonaws.com"
    assert variables["AWS_ROLE_ARN"] == "arn:aws:mock:::loraserve-dev-gateway"
    assert variables["GATEWAY_USAGE_BUCKET"]


def test_it_may_see_which_pods_there_are_and_what_they_shall_serve(dev: Program) -> None:
    slices, document = dev.one("rbac.authorization.k8s.io/v1:Role", names.GATEWAY).inputs["rules"]
    assert (slices["apiGroups"], slices["resources"]) == (["discovery.k8s.io"], ["endpointslices"])
    assert (document["resources"], document["resourceNames"]) == (["configmaps"], ["desired-state"])
    assert {verb for rule in (slices, document) for verb in rule["verbs"]} == {"get", "list", "watch"}
    (subject,) = dev.one("rbac.authorization.k8s.io/v1:RoleBinding", names.GATEWAY).inputs["subjects"]
    assert subject["name"] == pod(dev)["serviceAccountName"]


def test_two_replicas_are_replaced_one_after_the_other_and_never_wait_for_a_gpu_node(dev: Program) -> None:
    assert deployment(dev)["replicas"] == 2
    assert deployment(dev)["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert not pod(dev)["tolerations"]


def test_a_stopping_gateway_has_the_time_it_takes_to_drain(dev: Program) -> None:
    leaving = container(dev)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(dev)["terminationGracePeriodSeconds"] > leaving + told(dev).drain_seconds


def test_probes_ask_what_the_gateway_answers(dev: Program) -> None:
    api = InnerApi(cast(Gateway, None))  # naming its routes asks nothing of it
    routes = {route.resource.canonical for route in api.application().router.routes() if route.resource}
    probes = [container(dev)[probe]["httpGet"] for probe in ("readinessProbe", "livenessProbe")]
    assert {probe["path"] for probe in probes} <= routes
    assert {probe["port"] for probe in probes} == {told(dev).metrics_port}


def test_the_pod_is_hardened(dev: Program) -> None:
    assert container(dev)["securityContext"]["readOnlyRootFilesystem"] is True
    assert container(dev)["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod(dev)["securityContext"]["runAsNonRoot"] is True


def test_the_way_in_is_a_port_forward_unless_a_certificate_is_given(dev: Program) -> None:
    assert dev.one("core/v1:Service", names.GATEWAY).inputs["spec"]["type"] == "ClusterIP"
    assert not dev.of_type("lb/loadBalancer:LoadBalancer")


def test_the_load_balancer_is_internal_and_speaks_tls_on_both_sides(with_balancer: Program) -> None:
    balancer = with_balancer.one("lb/loadBalancer:LoadBalancer").inputs
    listener = with_balancer.one("lb/listener:Listener").inputs
    targets = with_balancer.one("lb/targetGroup:TargetGroup").inputs
    (port,) = with_balancer.one("core/v1:Service", names.GATEWAY_ENDPOINT).inputs["spec"]["ports"]

    assert balancer["internal"] is True
    assert (listener["port"], listener["protocol"], listener["certificateArn"]) == (443, "HTTPS", CERTIFICATE)
    assert (targets["port"], targets["protocol"]) == (port["nodePort"], "HTTPS")
    assert port["targetPort"] == told(with_balancer).tls_port


def test_the_load_balancer_bears_the_longest_silence_of_an_answer() -> None:
    program = declare("dev", gatewayCertificateArn=CERTIFICATE, gatewayWaitSeconds=900, longestGenerationSeconds=300)
    balancer, gateway = program.one("lb/loadBalancer:LoadBalancer").inputs, told(program)

    assert balancer["loadBalancerType"] == "application", "a TLS listener of any other ends what is silent for 350 s"
    assert balancer["idleTimeout"] > gateway.wait_seconds + gateway.stall_seconds
    assert gateway.balancer_idle_seconds == balancer["idleTimeout"]


def test_the_load_balancer_reaches_the_system_nodes_port_and_nothing_else(with_balancer: Program) -> None:
    (port,) = with_balancer.one("core/v1:Service", names.GATEWAY_ENDPOINT).inputs["spec"]["ports"]
    out = with_balancer.one(
        "vpc/securityGroupEgressRule:SecurityGroupEgressRule", "loraserve-dev-gateway-to-nodes"
    ).inputs
    attachment = with_balancer.one("autoscaling/attachment:Attachment").inputs
    assert (out["fromPort"], out["toPort"]) == (port["nodePort"], port["nodePort"])
    assert out["referencedSecurityGroupId"] == "sg-1"
    assert attachment["autoscalingGroupName"] == f"asg-{names.SYSTEM_NODE_GROUP}"


# Scaling.


def test_vllm_goes_from_the_fewest_to_the_most_replicas() -> None:
    spec = scaled_object(declare("dev", inferenceReplicas=1, inferenceMaxReplicas=2))
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 2)
    assert spec["scaleTargetRef"]["name"] == names.VLLM


def test_any_request_wakes_vllm_and_keeps_it_awake(dev: Program) -> None:
    spec = scaled_object(dev)
    assert spec["minReplicaCount"] == 0
    waking = [t for t in spec["triggers"] if t["metadata"]["activationTargetValue"] == "0"]
    assert {trigger["metadata"]["valueLocation"] for trigger in waking} == {"waiting", "running"}
    assert {trigger["metadata"]["aggregationType"] for trigger in waking} == {"sum"}


def test_a_full_kv_cache_asks_for_another_replica_and_wakes_nothing(dev: Program) -> None:
    (trigger,) = (t for t in scaled_object(dev)["triggers"] if t["metadata"]["valueLocation"] == "kvCacheUsage")
    assert trigger["metricType"] == "Value", "the replicas there are, times usage over target"
    tolerance = 0.1  # of kube-controller-manager, within which an autoscaler does nothing
    assert float(trigger["metadata"]["targetValue"]) * (1 + tolerance) == pytest.approx(0.85, abs=0.005)
    assert float(trigger["metadata"]["activationTargetValue"]) >= 1
    assert trigger["metadata"]["aggregationType"] == "max", "every gateway tells of the same pods"


def test_the_signal_is_asked_of_every_gateway_where_each_serves_it(dev: Program) -> None:
    urls = {trigger["metadata"]["url"] for trigger in scaled_object(dev)["triggers"]}
    service = dev.one("core/v1:Service", names.GATEWAY).inputs
    port = next(port for port in service["spec"]["ports"] if port["name"] == "metrics")
    assert port["targetPort"] == told(dev).metrics_port
    assert urls == {f"http://gateway.{names.SERVING_NAMESPACE}.svc.cluster.local:{told(dev).metrics_port}/scale"}


def test_an_update_leaves_the_number_of_replicas_to_the_autoscaler(dev: Program) -> None:
    assert dev.one("apps/v1:Deployment", names.VLLM).ignore_changes == ["spec.replicas"]
    assert not declare("dev", scalingEnabled=False).one("apps/v1:Deployment", names.VLLM).ignore_changes


@pytest.mark.parametrize(("minutes", "pod_seconds"), [(4, 90), (10, 450), (60, 3450)])
def test_pod_and_node_idle_times_add_up_to_what_is_configured(minutes: int, pod_seconds: int) -> None:
    """The half minute that is missing is what a pod takes to end and the autoscaler to look."""
    settings = parse(stack_values("dev", gpuIdleMinutes=minutes))
    assert cooldown_seconds(settings) == pod_seconds
    assert pod_seconds + settings.node_idle_minutes * 60 + 30 == minutes * 60


def test_the_scaled_object_goes_before_the_operator_that_takes_off_its_finalizer(dev: Program) -> None:
    needs = " ".join(dev.one("keda.sh/v1alpha1:ScaledObject").depends_on)
    assert "Chart::keda" in needs
    assert "Deployment::vllm" in needs
    assert "Service::gateway" in needs


def test_a_rolling_update_has_room_at_the_most_replicas() -> None:
    def strategy(most: int) -> dict[str, int]:
        program = declare("dev", inferenceMaxReplicas=most, gpuMaxSize=2)
        return program.one("apps/v1:Deployment", names.VLLM).inputs["spec"]["strategy"]["rollingUpdate"]

    assert strategy(1) == {"maxSurge": 1, "maxUnavailable": 0}
    assert strategy(2) == {"maxSurge": 0, "maxUnavailable": 1}


def test_without_scaling_there_is_no_keda() -> None:
    program = declare("dev", scalingEnabled=False)
    assert not program.of_type("keda.sh/v1alpha1:ScaledObject")
    assert not [chart for chart in program.of_type("Chart") if chart.name == "keda"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inferenceMaxReplicas": 3}, "inferenceMaxReplicas 3 needs as many GPU nodes"),
        ({"gpuIdleMinutes": 2}, "gpuIdleMinutes 2 leaves no time"),
        ({"gatewayReplicas": 1}, "gatewayReplicas"),
        ({"gatewayCertificateArn": "my-certificate"}, "give the ARN of an ACM certificate"),
        (
            {"gatewayCertificateArn": CERTIFICATE, "gatewayWaitSeconds": 3811},
            "gatewayWaitSeconds 3811 and longestGenerationSeconds 120 let an answer be silent for 4001 s",
        ),
        ({"longestGenerationSeconds": 3600}, "longestGenerationSeconds 3600 is more than a node that goes gives"),
        ({"gatewayKeys": [KEY_1, KEY_2]}, "the keys of team-a have different requestsPerMinute"),
        ({"gatewayKeys": [KEY_1 | {"expiresAt": "soon"}]}, "gatewayKeys[0].expiresAt"),
        ({"gatewayKeys": [KEY_1 | {"expiresAt": "2030-01-01T00:00:00"}]}, "timezone"),
        ({"gatewayKeys": [ENTRY]}, "names aws-rag-qa, which is not declared"),
        ({"gatewayKeys": [ENTRY | {"models": ["*"]}] * 2}, "two keys have the name"),
        ({"gatewayKeys": [ENTRY | {"key": "lsk-…"}]}, "key: is not a known key"),
        ({"gatewayKeys": [ENTRY | {"sha256": "secret"}]}, "64 hexadecimal digits"),
    ],
)
def test_a_bad_setting_is_refused_with_the_fix(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        parse(stack_values("dev", **changes))
    assert message in str(refused.value)
