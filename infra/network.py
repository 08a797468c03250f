"""The VPC: private subnets for nodes over two or three zones, a way out, and a free path to S3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

import pulumi
import pulumi_aws as aws

from infra import nat
from infra.tags import stack_tag
from loraserve.planning.instance_types import NAT_INSTANCE_TYPE, NAT_VOLUME_GIB


@dataclass(frozen=True)
class Zones:
    """Availability zones: those of the cluster, for its whole life, and those that its network got later."""

    cluster: tuple[str, ...]
    added: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        return self.cluster + self.added


@dataclass(frozen=True)
class ZonePlan:
    """Address ranges of one zone."""

    zone: str
    private: IPv4Network
    public: IPv4Network


def plan_subnets(vpc: IPv4Network, zones: Sequence[str]) -> list[ZonePlan]:
    """An eighth of the VPC per zone for nodes and pods, by the zone's letter: what others there are moves nothing.

    The last eighth is shared by the small public subnets. Zones are named REGION and a letter from a to g.
    """
    *privates, shared = vpc.subnets(prefixlen_diff=3)
    publics = list(shared.subnets(prefixlen_diff=3))
    return [ZonePlan(zone, privates[_letter(zone)], publics[_letter(zone)]) for zone in zones]


def _letter(zone: str) -> int:
    return ord(zone[-1]) - ord("a")


class Network(pulumi.ComponentResource):
    """VPC, subnets, routes, NAT and the S3 gateway endpoint, for the one cluster of the same name."""

    def __init__(
        self,
        name: str,
        *,
        cidr: IPv4Network,
        zones: Zones,
        way_out: str,
        region: str,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:Network", name, None, opts)
        self._name = name
        self._region = region
        self._child = pulumi.ResourceOptions(parent=self)
        self.zones = zones
        plans = plan_subnets(cidr, zones.all)
        self.vpc = aws.ec2.Vpc(
            name,
            cidr_block=str(cidr),
            enable_dns_hostnames=True,
            enable_dns_support=True,
            tags=self._tags(),
            opts=self._child,
        )
        cluster_tag = {f"kubernetes.io/cluster/{name}": "shared"}
        private_tags = cluster_tag | {"kubernetes.io/role/internal-elb": "1"}
        public_tags = cluster_tag | {"kubernetes.io/role/elb": "1"}
        private = {p.zone: self._create_subnet("private", p.zone, p.private, private_tags) for p in plans}
        public = {p.zone: self._create_subnet("public", p.zone, p.public, public_tags) for p in plans}
        internet = self._create_internet_route(public)
        ways_out = self._create_nat(way_out, public, internet)
        proof = nat.proof(f"{name}-nat", region) if way_out == "instance" else None
        private_tables = self._create_private_routes(private, ways_out, proof)
        aws.ec2.VpcEndpoint(
            f"{name}-s3",
            vpc_id=self.vpc.id,
            service_name=f"com.amazonaws.{region}.s3",
            vpc_endpoint_type="Gateway",
            route_table_ids=[table.id for table in private_tables],
            tags=self._tags("s3"),
            opts=self._child,
        )
        self.private_subnets: dict[str, pulumi.Output[str]] = {zone: subnet.id for zone, subnet in private.items()}
        self.public_subnets: dict[str, pulumi.Output[str]] = {zone: subnet.id for zone, subnet in public.items()}
        self.register_outputs({"vpcId": self.vpc.id})

    def _create_subnet(self, kind: str, zone: str, cidr: IPv4Network, tags: dict[str, str]) -> aws.ec2.Subnet:
        return aws.ec2.Subnet(
            f"{self._name}-{kind}-{zone}",
            vpc_id=self.vpc.id,
            availability_zone=zone,
            cidr_block=str(cidr),
            map_public_ip_on_launch=False,
            tags=self._tags(f"{kind}-{zone}") | tags,
            opts=self._child,
        )

    def _create_internet_route(self, public: dict[str, aws.ec2.Subnet]) -> aws.ec2.Route:
        gateway = aws.ec2.InternetGateway(self._name, vpc_id=self.vpc.id, tags=self._tags(), opts=self._child)
        table = aws.ec2.RouteTable(
            f"{self._name}-public", vpc_id=self.vpc.id, tags=self._tags("public"), opts=self._child
        )
        for zone, subnet in public.items():
            self._associate(f"public-{zone}", table, subnet)
        return aws.ec2.Route(
            f"{self._name}-internet",
            route_table_id=table.id,
            destination_cidr_block="0.0.0.0/0",
            gateway_id=gateway.id,
            opts=self._child,
        )

    def _create_nat(
        self, way_out: str, public: dict[str, aws.ec2.Subnet], internet: aws.ec2.Route
    ) -> dict[str, dict[str, pulumi.Output[str]]]:
        """The default route's target for each zone's private subnet."""
        zones = self.zones.all
        opts = pulumi.ResourceOptions(parent=self, depends_on=[internet])
        if way_out == "instance":
            interface = self._create_nat_instance(public[zones[0]], opts).primary_network_interface_id
            return {zone: {"network_interface_id": interface} for zone in zones}
        served_by = {zone: zone if way_out == "gateway-per-zone" else zones[0] for zone in zones}
        gateways = {
            zone: self._create_nat_gateway(zone, public[zone], opts) for zone in sorted(set(served_by.values()))
        }
        return {zone: {"nat_gateway_id": gateways[served_by[zone]].id} for zone in zones}

    def _create_nat_gateway(
        self, zone: str, subnet: aws.ec2.Subnet, opts: pulumi.ResourceOptions
    ) -> aws.ec2.NatGateway:
        name = f"{self._name}-nat-{zone}"
        address = aws.ec2.Eip(name, domain="vpc", tags=self._tags(f"nat-{zone}"), opts=opts)
        return aws.ec2.NatGateway(
            name, allocation_id=address.id, subnet_id=subnet.id, tags=self._tags(f"nat-{zone}"), opts=opts
        )

    def _create_nat_instance(self, subnet: aws.ec2.Subnet, opts: pulumi.ResourceOptions) -> aws.ec2.Instance:
        name = f"{self._name}-nat"
        group = aws.ec2.SecurityGroup(
            name, vpc_id=self.vpc.id, description="NAT instance", tags=self._tags("nat"), opts=self._child
        )
        everything = {"security_group_id": group.id, "ip_protocol": "-1"}
        inside = aws.vpc.SecurityGroupIngressRule(
            f"{name}-from-vpc", **everything, cidr_ipv4=self.vpc.cidr_block, opts=self._child
        )
        outside = aws.vpc.SecurityGroupEgressRule(f"{name}-out", **everything, cidr_ipv4="0.0.0.0/0", opts=self._child)
        return aws.ec2.Instance(
            name,
            ami=aws.ssm.get_parameter(name=nat.image_parameter()).value,
            instance_type=NAT_INSTANCE_TYPE,
            subnet_id=subnet.id,
            vpc_security_group_ids=[group.id],
            associate_public_ip_address=True,
            source_dest_check=False,
            user_data=nat.user_data(self._region),
            user_data_replace_on_change=True,
            # Cents for a burst; without credits left it would crawl while nodes pull images.
            credit_specification={"cpu_credits": "unlimited"},
            metadata_options={"http_tokens": "required", "http_put_response_hop_limit": 1},
            root_block_device={
                "volume_type": "gp3",
                "volume_size": NAT_VOLUME_GIB,
                "encrypted": True,
                "tags": stack_tag(),
            },
            tags=self._tags("nat"),
            opts=pulumi.ResourceOptions.merge(
                opts, pulumi.ResourceOptions(depends_on=[inside, outside], replace_on_changes=["#initerror"])
            ),
        )

    def _create_private_routes(
        self,
        private: dict[str, aws.ec2.Subnet],
        ways_out: dict[str, dict[str, pulumi.Output[str]]],
        proof: pulumi.ResourceHookBinding | None,
    ) -> list[aws.ec2.RouteTable]:
        tables = []
        opts = pulumi.ResourceOptions(parent=self, hooks=proof)
        for zone, subnet in private.items():
            name = f"{self._name}-private-{zone}"
            table = aws.ec2.RouteTable(name, vpc_id=self.vpc.id, tags=self._tags(f"private-{zone}"), opts=self._child)
            aws.ec2.Route(
                name, route_table_id=table.id, destination_cidr_block="0.0.0.0/0", opts=opts, **ways_out[zone]
            )
            self._associate(f"private-{zone}", table, subnet)
            tables.append(table)
        return tables

    def _associate(self, suffix: str, table: aws.ec2.RouteTable, subnet: aws.ec2.Subnet) -> None:
        aws.ec2.RouteTableAssociation(
            f"{self._name}-{suffix}", route_table_id=table.id, subnet_id=subnet.id, opts=self._child
        )

    def _tags(self, suffix: str = "") -> dict[str, str]:
        return {"Name": f"{self._name}-{suffix}" if suffix else self._name}
