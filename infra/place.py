"""The cluster that a stack serves in: its own, or that of another stack of this project, whose outputs tell of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi

from infra.cluster import Cluster
from infra.iam import TokenIssuer
from infra.names import cluster_name
from infra.network import Network, Zones
from infra.standing import OF
from loraserve.contract.addresses import SERVING_NAMESPACE
from loraserve.planning.stack_settings import Settings

_PLACE, _KUBECONFIG = "place", "kubeconfig"
"""Outputs that other stacks read."""


@dataclass(frozen=True)
class Place:
    """`needs` is what nodes come after, where this stack has it."""

    cluster: str
    kubeconfig: pulumi.Input[str]
    tokens: TokenIssuer
    zones: Zones
    private_subnets: Mapping[str, pulumi.Input[str]]
    vpc_cidr: pulumi.Input[str]
    suffix: str = ""
    """Of names that a cluster has once: empty for the stack whose cluster it is."""
    needs: Sequence[pulumi.Resource] = ()
    image: pulumi.Input[str] | None = None
    """Of our own code, which the other stack has built."""


def suffix(settings: Settings) -> str:
    """What ends the names of a stack in another one's cluster. `-of-` cannot be taken for the name of a spot or zone's group."""
    return f"{OF}{pulumi.get_stack()}" if settings.cluster_stack else ""


def serving_namespace(settings: Settings) -> str:
    """Where this stack's gateway and vLLM run."""
    return f"{SERVING_NAMESPACE}{suffix(settings)}"


def own(cluster: Cluster, network: Network, settings: Settings) -> Place:
    """The cluster that this stack declares; its outputs tell other stacks of it."""
    place = Place(
        cluster.name,
        cluster.kubeconfig,
        cluster.tokens,
        network.zones,
        network.private_subnets,
        str(settings.vpc_cidr),
        needs=[cluster.eks, network],
    )
    told = {
        "providerArn": place.tokens.provider_arn,
        "issuer": place.tokens.issuer,
        "privateSubnets": dict(place.private_subnets),
        "vpcCidr": place.vpc_cidr,
    }
    pulumi.export(_PLACE, told)
    pulumi.export(_KUBECONFIG, pulumi.Output.secret(place.kubeconfig))
    return place


def of_another(settings: Settings, zones: Zones) -> Place:
    """The cluster of the stack that `clusterStack` names; `zones` are what AWS says of it."""
    assert settings.cluster_stack
    stack = f"{pulumi.get_organization()}/{pulumi.get_project()}/{settings.cluster_stack}"
    reference = pulumi.StackReference(stack)
    told: pulumi.Output[Any] = reference.require_output(_PLACE)
    return Place(
        cluster_name(settings.cluster_stack),
        reference.require_output(_KUBECONFIG),
        TokenIssuer(told["providerArn"], told["issuer"]),
        zones,
        {zone: told["privateSubnets"][zone] for zone in zones.all},
        told["vpcCidr"],
        suffix(settings),
        image=reference.require_output("image"),
    )
