"""Subnets never overlap, and every zone finds its way out."""

from __future__ import annotations

from ipaddress import IPv4Network
from itertools import combinations

import pytest

from infra.network import plan_subnets
from tests.unit.declared import declare


@pytest.mark.parametrize("cidr", ["10.0.0.0/16", "172.16.0.0/18", "192.168.0.0/20"])
@pytest.mark.parametrize("zones", [["a", "b"], ["a", "b", "c"]])
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


def test_only_zones_that_offer_the_gpu_type_are_used() -> None:
    program = declare("dev", offering=["eu-central-1b", "eu-central-1c"])
    zones = {subnet.inputs["availabilityZone"] for subnet in program.of_type("ec2/subnet:Subnet")}
    assert zones == {"eu-central-1b", "eu-central-1c"}
