"""aws:ec2: the network (VPC, subnets, routes, gateways, endpoints, security groups)."""

from __future__ import annotations

from typing import Any, ClassVar

from local.stand_ins.aws.resource import AwsResource
from local.stand_ins.aws.shapes import camel, pascal, pick, tag_list, tag_map
from local.stand_ins.provider import Properties


class Ec2Resource(AwsResource):
    """An EC2 object that is described by id through one call, and tagged by id."""

    service = "ec2"
    taggable = True
    kind: ClassVar[str]
    """EC2's name of the type in tag specifications, for example `internet-gateway`."""
    describe: ClassVar[tuple[str, str, str]]
    """The describe call, its parameter that takes ids, and the list in its answer."""

    def tagged(self, inputs: Properties) -> dict[str, Any]:
        """The `TagSpecifications` argument of a create call."""
        tags = tag_list(inputs["tagsAll"])
        return {"TagSpecifications": [{"ResourceType": self.kind, "Tags": tags}]} if tags else {}

    def described(self, resource_id: str) -> Properties | None:
        """The object in Pulumi's spelling, with `tagsAll`."""
        call, parameter, answer = self.describe
        items = getattr(self.api, call)(**{parameter: [resource_id]})[answer]
        return spelled(items[0]) if items else None

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        return self.described(resource_id)

    def arn(self, resource_id: str) -> str:
        return self.account.arn("ec2", f"{self.kind}/{resource_id}")

    def retag(self, resource_id: str, outputs: Properties, added: dict[str, str], removed: list[str]) -> None:
        if added:
            self.api.create_tags(Resources=[resource_id], Tags=tag_list(added))
        if removed:
            self.api.delete_tags(Resources=[resource_id], Tags=[{"Key": key} for key in removed])


def spelled(item: dict[str, Any]) -> Properties:
    """An EC2 answer in Pulumi's spelling: its tags are all tags, defaults included."""
    return camel({key: value for key, value in item.items() if key != "Tags"}) | {"tagsAll": tag_map(item.get("Tags"))}


class Vpc(Ec2Resource):
    token = "aws:ec2/vpc:Vpc"
    kind = "vpc"
    describe = ("describe_vpcs", "VpcIds", "Vpcs")
    required = frozenset({"cidrBlock"})
    optional = frozenset({"enableDnsHostnames", "enableDnsSupport"})
    mutable = frozenset({"enableDnsHostnames", "enableDnsSupport"})

    def make(self, inputs: Properties) -> str:
        vpc_id = self.api.create_vpc(CidrBlock=inputs["cidrBlock"], **self.tagged(inputs))["Vpc"]["VpcId"]
        self.api.get_waiter("vpc_available").wait(VpcIds=[vpc_id], WaiterConfig={"Delay": 1})
        self.change(vpc_id, {}, inputs)
        return vpc_id

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.described(resource_id)
        if found is None:
            return None
        for name in ("enableDnsHostnames", "enableDnsSupport"):
            answer = self.api.describe_vpc_attribute(VpcId=resource_id, Attribute=name)
            found[name] = answer[name[0].upper() + name[1:]]["Value"]
        return found | {"arn": self.arn(resource_id)} | self._defaults(resource_id)

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        defaults = {"enableDnsHostnames": False, "enableDnsSupport": True}
        for name, default in defaults.items():
            if news.get(name, default) != olds.get(name, default):
                value = pascal({name: {"value": news.get(name, default)}})
                self.api.modify_vpc_attribute(VpcId=resource_id, **value)

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_vpc(VpcId=resource_id)

    def _defaults(self, vpc_id: str) -> Properties:
        of_vpc = {"Name": "vpc-id", "Values": [vpc_id]}
        main = self.api.describe_route_tables(Filters=[of_vpc, {"Name": "association.main", "Values": ["true"]}])
        groups = self.api.describe_security_groups(Filters=[of_vpc, {"Name": "group-name", "Values": ["default"]}])
        table = main["RouteTables"][0]["RouteTableId"]
        return {
            "mainRouteTableId": table,
            "defaultRouteTableId": table,
            "defaultSecurityGroupId": groups["SecurityGroups"][0]["GroupId"],
        }


class Subnet(Ec2Resource):
    token = "aws:ec2/subnet:Subnet"
    kind = "subnet"
    describe = ("describe_subnets", "SubnetIds", "Subnets")
    required = frozenset({"vpcId", "cidrBlock"})
    optional = frozenset({"availabilityZone", "mapPublicIpOnLaunch"})
    mutable = frozenset({"mapPublicIpOnLaunch"})

    def make(self, inputs: Properties) -> str:
        wanted = pascal(pick(inputs, "vpcId", "cidrBlock", "availabilityZone"))
        subnet_id = self.api.create_subnet(**wanted, **self.tagged(inputs))["Subnet"]["SubnetId"]
        self.change(subnet_id, {}, inputs)
        return subnet_id

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.described(resource_id)
        return found and found | {"arn": found["subnetArn"]}

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        public = news.get("mapPublicIpOnLaunch", False)
        if public != olds.get("mapPublicIpOnLaunch", False):
            self.api.modify_subnet_attribute(SubnetId=resource_id, MapPublicIpOnLaunch={"Value": public})

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_subnet(SubnetId=resource_id)


class InternetGateway(Ec2Resource):
    token = "aws:ec2/internetGateway:InternetGateway"
    kind = "internet-gateway"
    describe = ("describe_internet_gateways", "InternetGatewayIds", "InternetGateways")
    optional = frozenset({"vpcId"})

    def make(self, inputs: Properties) -> str:
        gateway = self.api.create_internet_gateway(**self.tagged(inputs))["InternetGateway"]["InternetGatewayId"]
        if "vpcId" in inputs:
            self.api.attach_internet_gateway(InternetGatewayId=gateway, VpcId=inputs["vpcId"])
        return gateway

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.described(resource_id)
        if found is None:
            return None
        attached = found.pop("attachments")
        return found | {"arn": self.arn(resource_id), "vpcId": attached[0]["vpcId"] if attached else None}

    def remove(self, resource_id: str, inputs: Properties) -> None:
        for attachment in (self.described(resource_id) or {}).get("attachments", []):
            self.api.detach_internet_gateway(InternetGatewayId=resource_id, VpcId=attachment["vpcId"])
        self.api.delete_internet_gateway(InternetGatewayId=resource_id)


class Eip(Ec2Resource):
    token = "aws:ec2/eip:Eip"
    kind = "elastic-ip"
    describe = ("describe_addresses", "AllocationIds", "Addresses")
    optional = frozenset({"domain"})

    def make(self, inputs: Properties) -> str:
        allocated = self.api.allocate_address(Domain=inputs.get("domain", "vpc"), **self.tagged(inputs))
        return allocated["AllocationId"]

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.described(resource_id)
        return found and found | {"arn": self.arn(resource_id)}

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.release_address(AllocationId=resource_id)


class NatGateway(Ec2Resource):
    token = "aws:ec2/natGateway:NatGateway"
    kind = "natgateway"
    describe = ("describe_nat_gateways", "NatGatewayIds", "NatGateways")
    required = frozenset({"subnetId"})
    optional = frozenset({"allocationId"})

    def make(self, inputs: Properties) -> str:
        wanted = pascal(pick(inputs, "subnetId", "allocationId"))
        return self.api.create_nat_gateway(**wanted, **self.tagged(inputs))["NatGateway"]["NatGatewayId"]

    def settle(self, resource_id: str, inputs: Properties) -> None:
        self._wait("nat_gateway_available", resource_id)

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.described(resource_id)
        if found is None or found["state"] in ("deleting", "deleted"):
            return None
        address = found.pop("natGatewayAddresses")[0]
        return found | pick(address, "allocationId", "publicIp", "privateIp", "networkInterfaceId", "associationId")

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_nat_gateway(NatGatewayId=resource_id)
        self._wait("nat_gateway_deleted", resource_id)

    def _wait(self, state: str, gateway: str) -> None:
        self.api.get_waiter(state).wait(NatGatewayIds=[gateway], WaiterConfig={"Delay": 2, "MaxAttempts": 300})


class RouteTable(Ec2Resource):
    token = "aws:ec2/routeTable:RouteTable"
    kind = "route-table"
    describe = ("describe_route_tables", "RouteTableIds", "RouteTables")
    required = frozenset({"vpcId"})

    def make(self, inputs: Properties) -> str:
        return self.api.create_route_table(VpcId=inputs["vpcId"], **self.tagged(inputs))["RouteTable"]["RouteTableId"]

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.described(resource_id)
        return found and pick(found, "vpcId", "ownerId", "tagsAll") | {"arn": self.arn(resource_id)}

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_route_table(RouteTableId=resource_id)


class Route(AwsResource):
    token = "aws:ec2/route:Route"
    service = "ec2"
    targets = frozenset({"gatewayId", "natGatewayId", "networkInterfaceId"})
    required = frozenset({"routeTableId", "destinationCidrBlock"})
    optional = targets
    mutable = targets

    def make(self, inputs: Properties) -> str:
        self.api.create_route(**pascal(inputs))
        return f"r-{inputs['routeTableId']}_{inputs['destinationCidrBlock']}"

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        tables = self.api.describe_route_tables(RouteTableIds=[inputs["routeTableId"]])["RouteTables"]
        for route in tables[0]["Routes"]:
            if route.get("DestinationCidrBlock") == inputs["destinationCidrBlock"]:
                return pick(camel(route), "destinationCidrBlock", *self.targets, "instanceId", "origin", "state")
        return None

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        self.api.replace_route(**pascal(news))

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_route(**pascal(pick(inputs, "routeTableId", "destinationCidrBlock")))


class RouteTableAssociation(AwsResource):
    token = "aws:ec2/routeTableAssociation:RouteTableAssociation"
    service = "ec2"
    required = frozenset({"routeTableId", "subnetId"})

    def make(self, inputs: Properties) -> str:
        return self.api.associate_route_table(**pascal(inputs))["AssociationId"]

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        only = [{"Name": "association.route-table-association-id", "Values": [resource_id]}]
        for table in self.api.describe_route_tables(Filters=only)["RouteTables"]:
            for association in table["Associations"]:
                if association["RouteTableAssociationId"] == resource_id:
                    return pick(camel(association), "routeTableId", "subnetId")
        return None

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.disassociate_route_table(AssociationId=resource_id)


class VpcEndpoint(Ec2Resource):
    token = "aws:ec2/vpcEndpoint:VpcEndpoint"
    kind = "vpc-endpoint"
    describe = ("describe_vpc_endpoints", "VpcEndpointIds", "VpcEndpoints")
    required = frozenset({"vpcId", "serviceName"})
    optional = frozenset({"vpcEndpointType", "routeTableIds"})
    mutable = frozenset({"routeTableIds"})

    def make(self, inputs: Properties) -> str:
        wanted = pascal(pick(inputs, "vpcId", "serviceName", "vpcEndpointType", "routeTableIds"))
        return self.api.create_vpc_endpoint(**wanted, **self.tagged(inputs))["VpcEndpoint"]["VpcEndpointId"]

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.described(resource_id)
        if found is None or found.get("state") == "deleted":
            return None
        lists = self.api.describe_prefix_lists(Filters=[{"Name": "prefix-list-name", "Values": [found["serviceName"]]}])
        if lists["PrefixLists"]:
            found["prefixListId"] = lists["PrefixLists"][0]["PrefixListId"]
        return found | {"arn": self.arn(resource_id)}

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        before, after = set(olds.get("routeTableIds", [])), set(news.get("routeTableIds", []))
        wanted: dict[str, Any] = {}
        if after - before:
            wanted["AddRouteTableIds"] = sorted(after - before)
        if before - after:
            wanted["RemoveRouteTableIds"] = sorted(before - after)
        if wanted:
            self.api.modify_vpc_endpoint(VpcEndpointId=resource_id, **wanted)

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_vpc_endpoints(VpcEndpointIds=[resource_id])
