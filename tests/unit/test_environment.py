"""What a pod tells its process: all of it or an error, nothing misspelt, and one definition for both sides."""

from pathlib import Path
from typing import Any

import pytest

from loraserve.contract.agent_settings import AgentSettings, PodSettings
from loraserve.contract.desired_state import Envelope
from loraserve.contract.environment import InvalidEnvironment, ProcessSettings
from loraserve.contract.gateway_settings import GatewaySettings

KUBELETS = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
PODS = {
    "AGENT_KUBERNETES_NAMESPACE": "ml-models",
    "AGENT_KUBERNETES_POD_NAME": "vllm-0",
    "AGENT_KUBERNETES_POD_UID": "uid-1",
    "AGENT_KUBERNETES_CONFIG_MAP": "desired-state",
}
EVERYTHING: list[tuple[type[ProcessSettings], dict[str, Any]]] = [
    (
        AgentSettings,
        {
            "desired_file": Path("/etc/desired.json"),
            "kubernetes_url": "https://10.0.0.1:443",
            "kubernetes_namespace": "ml-models",
            "kubernetes_pod_uid": "uid-1",
            "kubernetes_pod_name": "vllm-0",
            "kubernetes_config_map": "desired-state",
            "adapter_disk_bytes": 7,
            "port": 1234,
            "envelope": Envelope(slots=2, rank=8, target_modules=("q_proj",)),
        },
    ),
    (
        GatewaySettings,
        {
            "kubernetes_url": "http://127.0.0.1:1",
            "kubernetes_namespace": "ml-models",
            "kubernetes_credentials": Path("/credentials"),
            "vllm_service": "vllm-service",
            "gateway_service": "gateway",
            "desired_config_map": "desired-state",
            "vllm_api_key": "key",
            "tls_port": 8443,
            "wait_seconds": 0,
            "balancer_idle_seconds": 60,
        },
    ),
]


def test_outside_a_pod_the_agent_follows_the_file_alone() -> None:
    assert AgentSettings.from_environment({}).kubernetes is None


def test_in_a_pod_the_agent_knows_its_api_server_and_itself() -> None:
    assert AgentSettings.from_environment(KUBELETS | PODS).kubernetes == PodSettings(
        url="https://10.0.0.1:443",
        namespace="ml-models",
        pod_name="vllm-0",
        pod_uid="uid-1",
        config_map="desired-state",
    )


@pytest.mark.parametrize("missing", [*KUBELETS, *PODS])
def test_a_part_of_a_pods_variables_is_an_error_that_names_the_missing_one(missing: str) -> None:
    """Else the agent would follow the slow copy for ever, and nobody would notice."""
    for left_out in ({missing}, {missing} | PODS.keys() - {next(iter(PODS))}):
        environment = {name: value for name, value in (KUBELETS | PODS).items() if name not in left_out}
        with pytest.raises(InvalidEnvironment, match=missing):
            AgentSettings.from_environment(environment)


def test_a_pod_that_tells_nothing_of_itself_is_an_error() -> None:
    with pytest.raises(InvalidEnvironment) as refused:
        AgentSettings.from_environment(KUBELETS)
    assert [line.partition(":")[0] for line in str(refused.value).splitlines()] == list(PODS)


def test_pods_variables_without_the_kubelets_are_an_error() -> None:
    with pytest.raises(InvalidEnvironment, match="AGENT_KUBERNETES_URL: is missing"):
        AgentSettings.from_environment(PODS)


@pytest.mark.parametrize(
    ("settings", "misspelt", "meant"),
    [
        (AgentSettings, "AGENT_KUBERNETES_CONFIGMAP", "AGENT_KUBERNETES_CONFIG_MAP"),
        (AgentSettings, "AGENT_pod_resources.ADAPTER_DISK_BYTES", "AGENT_ADAPTER_DISK_BYTES"),
        (GatewaySettings, "GATEWAY_WAIT_SECOND", "GATEWAY_WAIT_SECONDS"),
    ],
)
def test_a_misspelt_variable_is_an_error_that_names_the_one_that_was_meant(
    settings: type[ProcessSettings], misspelt: str, meant: str
) -> None:
    with pytest.raises(InvalidEnvironment, match=rf"{misspelt} is no variable .* did you mean {meant}\?"):
        settings.from_environment({misspelt: "1"})


def test_a_variable_like_no_other_is_an_error_that_lists_what_there_is() -> None:
    with pytest.raises(
        InvalidEnvironment, match="there are AGENT_LOG_FORMAT, AGENT_DESIRED_FILE, AGENT_KUBERNETES_URL, "
    ):
        AgentSettings.from_environment({"AGENT_42": "1"})


def test_an_address_of_ipv6_is_written_as_urls_do() -> None:
    told = AgentSettings.from_environment(KUBELETS | PODS | {"KUBERNETES_SERVICE_HOST": "fd00::1"})
    assert told.kubernetes
    assert told.kubernetes.url == "https://[fd00::1]:443"


@pytest.mark.parametrize(("settings", "values"), EVERYTHING)
def test_what_is_written_is_what_is_read(settings: type[ProcessSettings], values: dict[str, Any]) -> None:
    read = settings.from_environment(settings.variables(**values)).model_dump()
    for name, value in values.items():
        outer, _, inner = name.partition("kubernetes_")
        assert (read["kubernetes"][inner] if inner else read[outer]) == (
            value.model_dump() if isinstance(value, Envelope) else value
        )


def test_what_the_process_does_not_read_cannot_be_written() -> None:
    with pytest.raises(TypeError, match="has no kubernetes_configmap"):
        AgentSettings.variables(kubernetes_configmap="desired-state")


def test_what_is_none_is_not_written() -> None:
    assert AgentSettings.variables(base_folder=None, port=1) == {"AGENT_PORT": "1"}
