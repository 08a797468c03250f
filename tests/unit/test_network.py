"""Subnets never overlap, and every zone finds its way out."""

from __future__ import annotations

from ipaddress import IPv4Network
from itertools import combinations
from typing import Any

import pytest

from infra.errors import ConfigError
from infra.network import plan_subnets
from infra.preflight import choose_zones
from infra.standing import Standing
from loraserve.planning.settings_parser import parse
from tests.stack_values import stack_values
from tests.unit.declared import Program, declare
from tests.unit.standing import standing


@pytest.mark.parametrize("cidr", ["10.0.0.0/16", "172.16.0.0/18", "192.168.0.0/20"])
@pytest.mark.parametrize("zones", [["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d", "e", "f", "g"]])
def test_subnets_lie_inside_the_vpc_and_do_not_overlap(cidr: str, zones: list[str]) -> None:
    vpc = IPv4Network(cidr)
    ranges = [block for plan in plan_subnets(vpc, zones) for block in (plan.private, plan.public)]
    assert len(ranges) == 2 * len(zones)
    assert all(block.subnet_of(vpc) for block in ranges)
    assert not any(one.overlaps(other) for one, other in combinations(ranges, 2))


@pytest.mark.parametrize(
    ("nat", "gateways", "instances"), [("gateway", 1, 0), ("gateway-per-zone", 2, 0), ("instance", 0, 1)]
)
def test_each_private_subnet_has_a_way_out(nat: str, gateways: int, instances: int) -> None:
    program = declare("dev", nat=nat)
    assert len(program.of_type("ec2/natGateway:NatGateway")) == gateways
    assert len(program.of_type("ec2/instance:Instance")) == instances
    ways_out = [r for r in program.of_type("ec2/route:Route") if "private" in r.name]
    assert len(ways_out) == 2
    assert all("natGatewayId" in route.inputs or "networkInterfaceId" in route.inputs for route in ways_out)


def test_s3_is_reached_without_paying_for_nat() -> None:
    endpoint = declare("dev").one("ec2/vpcEndpoint:VpcEndpoint").inputs
    assert endpoint["vpcEndpointType"] == "Gateway"
    assert len(endpoint["routeTableIds"]) == 2


def test_subnets_carry_the_tags_by_which_eks_places_load_balancers() -> None:
    subnets = {subnet.name: subnet.inputs["tags"] for subnet in declare("dev").of_type("ec2/subnet:Subnet")}
    for name, tags in subnets.items():
        role = "internal-elb" if "private" in name else "elb"
        assert tags[f"kubernetes.io/role/{role}"] == "1"
        assert tags["kubernetes.io/cluster/loraserve-dev"] == "shared"


def subnets(program: Program) -> set[tuple[str, str]]:
    found = [subnet.inputs for subnet in program.of_type("ec2/subnet:Subnet")]
    return {(subnet["cidrBlock"], subnet["availabilityZone"]) for subnet in found}


def test_an_address_range_belongs_to_a_zone_whatever_others_there_are() -> None:
    ranges = dict(subnets(declare("dev", offering=["eu-central-1b", "eu-central-1c"])))
    assert len(ranges) == 4
    for cidr, zone in subnets(declare("dev")):
        assert ranges.get(cidr, zone) == zone


def test_a_stack_stays_in_its_zones_when_aws_offers_the_type_in_an_earlier_one() -> None:
    first = declare("dev", offering=["eu-central-1b", "eu-central-1c"])
    later = declare("dev", standing=standing(zones=["eu-central-1b", "eu-central-1c"]))
    assert subnets(later) == subnets(first)


@pytest.mark.parametrize(
    ("settings", "offering", "told"),
    [
        (
            {"gpuInstanceType": "g6e.xlarge"},
            "ac",
            r"lives in eu-central-1a, eu-central-1b, and eu-central-1b do not offer g6e\.xlarge.* by eu-central-1a, "
            "eu-central-1c$",
        ),
        (
            {"availabilityZones": ["eu-central-1b", "eu-central-1d"]},
            "abcd",
            "leaves out eu-central-1a, .*keeps its zones",
        ),
        (
            {},
            "abc",
            "availabilityZoneCount 2 is less than eu-central-1a, eu-central-1b, eu-central-1c, and a cluster keeps",
        ),
    ],
)
def test_zones_that_the_stack_lives_in_are_kept_or_the_change_refused(
    settings: dict[str, Any], offering: str, told: str
) -> None:
    added = () if "gpuInstanceType" in settings else ("eu-central-1c",)
    lived_in = Standing("1.35", ("eu-central-1a", "eu-central-1b"), added, {})
    with pytest.raises(ConfigError, match=told):
        choose_zones(
            parse(stack_values("dev", **settings)), [f"eu-central-1{zone}" for zone in offering], "r", lived_in
        )


def test_a_third_zone_only_adds() -> None:
    before, after = declare("dev"), declare("dev", standing=standing(), availabilityZoneCount=3)
    grown = declare("dev", standing=standing(addedZones=["eu-central-1c"]), availabilityZoneCount=3)
    assert subnets(before) < subnets(after)
    assert {r.name for r in before.resources} < {r.name for r in after.resources}
    for kind in ("eks:index:Cluster", "ec2/instance:Instance", "eks/nodeGroup:NodeGroup"):
        for resource in before.of_type(kind):
            assert after.one(kind, resource.name).inputs == resource.inputs
    added = after.one("eks/nodeGroup:NodeGroup", "gpu-vllm-nodes-c").inputs
    assert added["subnetIds"] == ["loraserve-dev-private-eu-central-1c-id"]
    assert added["scalingConfig"]["minSize"] == 0
    assert {r.urn: r.inputs for r in grown.resources} == {r.urn: r.inputs for r in after.resources}


def test_zones_are_those_that_eks_hosts_a_control_plane_in() -> None:
    program = declare("dev", offering=["eu-central-1-ham-1a", "eu-central-1b", "eu-central-1c"])
    assert {zone for _, zone in subnets(program)} == {"eu-central-1b", "eu-central-1c"}


def test_only_zones_that_offer_the_gpu_type_are_used() -> None:
    program = declare("dev", offering=["eu-central-1b", "eu-central-1c"])
    zones = {subnet.inputs["availabilityZone"] for subnet in program.of_type("ec2/subnet:Subnet")}
    assert zones == {"eu-central-1b", "eu-central-1c"}
