"""The VPC: private subnets for nodes over two or three zones, a way out, and a free path to S3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from textwrap import dedent

import pulumi
import pulumi_aws as aws

from infra.tags import stack_tag
from loraserve.planning.instance_types import NAT_INSTANCE_TYPE, NAT_VOLUME_GIB

_NAT_IMAGE = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-arm64"
_NAT_USER_DATA = dedent("""\
    #!/bin/bash
    set -euo pipefail
    # 512 MB and no swap: the package manager would be killed.
    dd if=/dev/zero of=/swap bs=1M count=1024
    chmod 600 /swap
    mkswap /swap
    swapon /swap
    dnf install --assumeyes iptables-services
    echo net.ipv4.ip_forward=1 > /etc/sysctl.d/90-nat.conf
    sysctl --load /etc/sysctl.d/90-nat.conf
    iptables --flush FORWARD
    iptables --table nat --append POSTROUTING --out-interface "$(ip -o route show default | cut -d' ' -f5 | head -n 1)" --jump MASQUERADE
    service iptables save
    systemctl enable --now iptables
    """)


@dataclass(frozen=True)
class ZonePlan:
    """Address ranges of one zone."""

    zone: str
    private: IPv4Network
    public: IPv4Network


def plan_subnets(vpc: IPv4Network, zones: Sequence[str]) -> list[ZonePlan]:
    """A quarter of the VPC per zone for nodes and pods; the last quarter is shared by the small public subnets."""
    *privates, shared = vpc.subnets(prefixlen_diff=2)
    publics = shared.subnets(prefixlen_diff=4)
    return [ZonePlan(zone, private, public) for zone, private, public in zip(zones, privates, publics, strict=False)]


class Network(pulumi.ComponentResource):
    """VPC, subnets, routes, NAT and the S3 gateway endpoint, for the one cluster of the same name."""

    def __init__(
        self,
        name: str,
        *,
        cidr: IPv4Network,
        zones: Sequence[str],
        nat: str,
        region: str,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:Network", name, None, opts)
        self._name = name
        self._child = pulumi.ResourceOptions(parent=self)
        self._plans = plan_subnets(cidr, zones)
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
        private = {p.zone: self._create_subnet("private", p.zone, p.private, private_tags) for p in self._plans}
        public = {p.zone: self._create_subnet("public", p.zone, p.public, public_tags) for p in self._plans}
        internet = self._create_internet_route(public)
        ways_out = self._create_nat(nat, public, internet)
        private_tables = self._create_private_routes(private, ways_out)
        aws.ec2.VpcEndpoint(
            f"{name}-s3",
            vpc_id=self.vpc.id,
            service_name=f"com.amazonaws.{region}.s3",
            vpc_endpoint_type="Gateway",
            route_table_ids=[table.id for table in private_tables],
            tags=self._tags("s3"),
            opts=self._child,
        )
        self.private_subnet_ids: list[pulumi.Output[str]] = [subnet.id for subnet in private.values()]
        self.public_subnet_ids: list[pulumi.Output[str]] = [subnet.id for subnet in public.values()]
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
        self, nat: str, public: dict[str, aws.ec2.Subnet], internet: aws.ec2.Route
    ) -> dict[str, dict[str, pulumi.Output[str]]]:
        """The default route's target for each zone's private subnet."""
        zones = list(public)
        opts = pulumi.ResourceOptions(parent=self, depends_on=[internet])
        if nat == "instance":
            interface = self._create_nat_instance(public[zones[0]], opts).primary_network_interface_id
            return {zone: {"network_interface_id": interface} for zone in zones}
        served_by = {zone: zone if nat == "gateway-per-zone" else zones[0] for zone in zones}
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
        image = aws.ssm.get_parameter(name=_NAT_IMAGE)
        return aws.ec2.Instance(
            name,
            ami=image.value,
            instance_type=NAT_INSTANCE_TYPE,
            subnet_id=subnet.id,
            vpc_security_group_ids=[group.id],
            associate_public_ip_address=True,
            source_dest_check=False,
            user_data=_NAT_USER_DATA,
            user_data_replace_on_change=True,
            # The default, unlimited, bills what exceeds the credits.
            credit_specification={"cpu_credits": "standard"},
            metadata_options={"http_tokens": "required", "http_put_response_hop_limit": 1},
            root_block_device={
                "volume_type": "gp3",
                "volume_size": NAT_VOLUME_GIB,
                "encrypted": True,
                "tags": stack_tag(),
            },
            tags=self._tags("nat"),
            opts=pulumi.ResourceOptions.merge(
                opts, pulumi.ResourceOptions(depends_on=[inside, outside], ignore_changes=["ami"])
            ),
        )

    def _create_private_routes(
        self, private: dict[str, aws.ec2.Subnet], ways_out: dict[str, dict[str, pulumi.Output[str]]]
    ) -> list[aws.ec2.RouteTable]:
        tables = []
        for zone, subnet in private.items():
            name = f"{self._name}-private-{zone}"
            table = aws.ec2.RouteTable(name, vpc_id=self.vpc.id, tags=self._tags(f"private-{zone}"), opts=self._child)
            aws.ec2.Route(
                name, route_table_id=table.id, destination_cidr_block="0.0.0.0/0", opts=self._child, **ways_out[zone]
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
