"""EC2: a teardown in the wrong order is refused as AWS refuses it (moto deletes what is still in use); consoles;
routes of a gateway endpoint whose route tables change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moto.core.responses import ActionResult
from moto.core.types import Base64EncodedString
from moto.core.utils import utcnow
from moto.ec2.exceptions import DependencyViolationError
from moto.ec2.models import EC2Backend
from moto.ec2.models.instances import Instance
from moto.ec2.responses.general import General
from moto.elbv2.models import elbv2_backends

from infra.nat import READY


def install() -> None:
    """Makes the deletion of subnets, security groups and VPCs as strict as AWS is, and instances clean up."""
    _guard("delete_subnet", _subnet_in_use)
    _guard("delete_security_group", _group_in_use)
    _guard("delete_vpc", _vpc_in_use)
    _delete_interfaces_with_instances()
    _delete_interfaces_with_nat_gateways()
    _route_with_endpoints()
    General.get_console_output = _console


def _console(self: General) -> ActionResult:
    """What an instance prints that does as its user data says: a NAT instance, that requests come back."""
    instance = self.ec2_backend.get_instance(self._get_param("InstanceId"))
    told = instance.user_data.decode() if instance.user_data else ""
    printed = Base64EncodedString.from_raw_string(READY if READY in told else "login:")
    return ActionResult({"InstanceId": instance.id, "Timestamp": utcnow(), "Output": printed})


def _guard(method: str, in_use: Callable[..., str | None]) -> None:
    original = getattr(EC2Backend, method)

    def guarded(backend: EC2Backend, *args: Any, **kwargs: Any) -> Any:
        if reason := in_use(backend, *args, **kwargs):
            raise DependencyViolationError(reason)
        return original(backend, *args, **kwargs)

    setattr(EC2Backend, method, guarded)


def _delete_interfaces_with_instances() -> None:
    """The interface that an instance is launched with goes when the instance goes; moto would keep it."""
    terminate = Instance.terminate

    def terminate_with_interfaces(self: Instance) -> Any:
        for interface in self.nics.values():
            interface.delete_on_termination = True
        return terminate(self)

    Instance.terminate = terminate_with_interfaces


def _delete_interfaces_with_nat_gateways() -> None:
    """So does a NAT gateway's, and its address is free again."""
    delete = EC2Backend.delete_nat_gateway

    def delete_with_interface(self: EC2Backend, nat_gateway_id: str) -> Any:
        gateway = delete(self, nat_gateway_id)
        for address in gateway.address_set:
            if association := address.get("associationId"):
                self.disassociate_address(association_id=association)
            self.delete_network_interface(address["networkInterfaceId"])
        return gateway

    EC2Backend.delete_nat_gateway = delete_with_interface


def _route_with_endpoints() -> None:
    """A route table that is added to a gateway endpoint gets its route; without it moto could not delete the endpoint."""
    modify = EC2Backend.modify_vpc_endpoint

    def modify_with_routes(self: EC2Backend, vpc_id: str, *args: Any, **kwargs: Any) -> None:
        endpoint = self.get_vpc_end_point(vpc_id)
        prefixes, before = endpoint.destination_prefix_list_id, set(endpoint.route_table_ids)
        modify(self, vpc_id, *args, **kwargs)
        after = set(endpoint.route_table_ids)
        for table in after - before:
            self.create_route(table, None, gateway_id=vpc_id, destination_prefix_list_id=prefixes)
        for table in before - after:
            self.delete_route(table, "", destination_prefix_list_id=prefixes)

    EC2Backend.modify_vpc_endpoint = modify_with_routes


def _subnet_in_use(backend: EC2Backend, subnet_id: str) -> str | None:
    interfaces = [interface.id for interface in backend.enis.values() if interface.subnet.id == subnet_id]
    gateways = [
        gateway.id
        for gateway in backend.nat_gateways.values()
        if gateway.subnet_id == subnet_id and gateway.state != "deleted"
    ]
    balancers = [
        balancer.name
        for balancer in elbv2_backends[backend.account_id][backend.region_name].load_balancers.values()
        if any(subnet.id == subnet_id for subnet in balancer.subnets)
    ]
    users = interfaces or gateways or balancers
    return f"The subnet '{subnet_id}' has dependencies ({users[0]}) and cannot be deleted." if users else None


def _group_in_use(backend: EC2Backend, name: str | None = None, group_id: str | None = None) -> str | None:
    for interface in backend.enis.values():
        if any(group.id == group_id for group in interface.group_set):
            return f"resource {group_id} has a dependent object ({interface.id})"
    for balancer in elbv2_backends[backend.account_id][backend.region_name].load_balancers.values():
        if group_id in (balancer.security_groups or []):
            return f"resource {group_id} has a dependent object ({balancer.name})"
    return None


def _vpc_in_use(backend: EC2Backend, vpc_id: str) -> str | None:
    groups = [group.id for group in backend.groups[vpc_id].values() if group.name != "default"]
    gateways = [
        gateway.id for gateway in backend.internet_gateways.values() if gateway.vpc and gateway.vpc.id == vpc_id
    ]
    endpoints = [
        endpoint.id
        for endpoint in backend.vpc_end_points.values()
        if endpoint.vpc_id == vpc_id and endpoint.state != "deleted"
    ]
    users = groups or gateways or endpoints
    return f"The vpc '{vpc_id}' has dependencies ({users[0]}) and cannot be deleted." if users else None
