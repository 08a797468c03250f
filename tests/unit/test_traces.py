"""Where a stack's spans go, as gateway and vLLM are told."""

from __future__ import annotations

from typing import Any

import pytest

from loraserve.planning import traces
from loraserve.planning.settings_parser import InvalidSettings, parse
from tests.stack_values import stack_values
from tests.unit.declared import declare

COLLECTOR = "http://collector.observability.svc:4318"


def told(address: str) -> dict[str, dict[str, Any]]:
    """The containers of gateway and vLLM, by name."""
    pods = [
        each.inputs["spec"]["template"]["spec"] for each in declare("dev", tracesEndpoint=address).of_type("Deployment")
    ]
    return {container["name"]: container for pod in pods for container in pod["containers"]}


def variables(container: dict[str, Any]) -> dict[str, str | None]:
    return {each["name"]: each.get("value") for each in container["env"]}


def test_gateway_and_vllm_are_told_of_the_collector() -> None:
    containers = told(f"{COLLECTOR}/")
    assert variables(containers["gateway"])["GATEWAY_TRACES_URL"] == f"{COLLECTOR}/v1/traces"
    assert f"--otlp-traces-endpoint={COLLECTOR}/v1/traces" in containers["vllm"]["args"]
    assert variables(containers["vllm"])["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"


def test_by_itself_nothing_is_traced() -> None:
    for container in told("").values():
        assert not [name for name in variables(container) if "TRACES" in name]
        assert "otlp" not in str(container.get("args"))


@pytest.mark.parametrize(
    ("address", "port", "namespace"),
    [
        (COLLECTOR, 4318, "observability"),
        ("http://tempo.monitoring.svc.cluster.local:4318", 4318, "monitoring"),
        ("https://otlp.example.com", 443, None),
        ("http://10.1.2.3:4318", 4318, None),
    ],
)
def test_a_collector_in_the_cluster_is_told_by_its_name(address: str, port: int, namespace: str | None) -> None:
    assert (traces.port(address), traces.namespace(address)) == (port, namespace)


@pytest.mark.parametrize("address", ["collector:4318", "grpc://collector:4317", "https://user:secret@otlp.example.com"])
def test_what_is_no_collector_is_refused(address: str) -> None:
    with pytest.raises(InvalidSettings, match="tracesEndpoint: must be the address of a collector"):
        parse(stack_values("dev", tracesEndpoint=address))
