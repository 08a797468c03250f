"""`helm.sh/v4:Chart` where no chart repository can be reached: one receipt of the chart instead of its objects.

The receipt is a ConfigMap, so that the order, the changes and the removal of charts are exercised by the engine.
"""

from __future__ import annotations

import json
from typing import Any

import grpc
from google.protobuf import struct_pb2
from pulumi.runtime.proto import provider_pb2, resource_pb2, resource_pb2_grpc

from local.stand_ins.kubernetes.kinds import CONFIG_MAP
from local.stand_ins.provider import ConstructRequest, InvalidInput, Properties
from local.stand_ins.values import UNKNOWN, contains_unknown, resource_reference, secret, to_struct

CHART = "kubernetes:helm.sh/v4:Chart"

_REQUIRED = frozenset({"chart", "version", "namespace"})
_OPTIONAL = frozenset({"repositoryOpts", "values"})


def construct_chart(request: ConstructRequest) -> provider_pb2.ConstructResponse:
    """Registers the component and its receipt. Raises InvalidInput for an unknown or missing property."""
    _check(request.inputs)
    raw = request.raw
    with grpc.insecure_channel(raw.monitorEndpoint) as channel:
        monitor = resource_pb2_grpc.ResourceMonitorStub(channel)
        component = monitor.RegisterResource(_component(request))
        receipt = monitor.RegisterResource(_receipt(request, component.urn))
        outputs = to_struct({"resources": [resource_reference(receipt.urn, receipt.id)]})
        monitor.RegisterResourceOutputs(resource_pb2.RegisterResourceOutputsRequest(urn=component.urn, outputs=outputs))
    return provider_pb2.ConstructResponse(urn=component.urn, state=outputs)


def _check(inputs: Properties) -> None:
    known = _REQUIRED | _OPTIONAL
    for key in sorted(inputs.keys() - known):
        raise InvalidInput(key, f"the stand-in chart takes no such property; known: {', '.join(sorted(known))}")
    for key in sorted(_REQUIRED - inputs.keys()):
        raise InvalidInput(key, "a chart needs this property; versions are pinned")
    repository = inputs.get("repositoryOpts") or {}
    if not str(inputs["chart"]).startswith("oci://") and not repository.get("repo"):
        raise InvalidInput("repositoryOpts.repo", "needed, unless the chart is an oci:// address")
    for key in sorted(repository.keys() - {"repo"}):
        raise InvalidInput(f"repositoryOpts.{key}", "the stand-in chart takes no such property")


def _component(request: ConstructRequest) -> resource_pb2.RegisterResourceRequest:
    raw = request.raw
    return resource_pb2.RegisterResourceRequest(
        type=request.type,
        name=request.name,
        parent=raw.parent,
        custom=False,
        object=raw.inputs,
        acceptSecrets=True,
        protect=raw.protect,
        aliases=raw.aliases,
        dependencies=raw.dependencies,
        propertyDependencies=_dependencies(raw),
        providers=raw.providers,
        deletedWith=raw.deletedWith,
        supportsPartialValues=True,
    )


def _receipt(request: ConstructRequest, parent: str) -> resource_pb2.RegisterResourceRequest:
    raw = request.raw
    return resource_pb2.RegisterResourceRequest(
        type=CONFIG_MAP.token,
        name=f"{request.name}-receipt",
        parent=parent,
        custom=True,
        object=_receipt_object(request),
        acceptSecrets=True,
        provider=raw.providers.get("kubernetes", ""),
        # All inputs end in the receipt's data, so it depends on all that they depend on.
        dependencies=sorted({urn for part in raw.inputDependencies.values() for urn in part.urns}),
        deletedWith=raw.deletedWith,
        supportsPartialValues=True,
    )


def _receipt_object(request: ConstructRequest) -> struct_pb2.Struct:
    inputs = request.inputs
    data = {
        "chart": inputs["chart"],
        "version": inputs["version"],
        "repository": (inputs.get("repositoryOpts") or {}).get("repo", ""),
        "values": _values_text(inputs.get("values") or {}),
    }
    has_secrets = to_struct(inputs, request.raw.inputs) != to_struct(inputs)
    return to_struct(
        {
            "apiVersion": CONFIG_MAP.api_version,
            "kind": CONFIG_MAP.name,
            "metadata": {"name": f"chart-{request.name}", "namespace": inputs["namespace"]},
            "data": secret(data) if has_secrets else data,
        }
    )


def _values_text(values: Any) -> str:
    return UNKNOWN if contains_unknown(values) else json.dumps(values, indent=2, sort_keys=True)


def _dependencies(raw: provider_pb2.ConstructRequest) -> dict[str, Any]:
    dependencies = resource_pb2.RegisterResourceRequest.PropertyDependencies
    return {key: dependencies(urns=part.urns) for key, part in raw.inputDependencies.items()}
