"""aws:ec2/securityGroup and aws:vpc's rules of it."""

from __future__ import annotations

from typing import Any, ClassVar

from local.plugins.aws.network import Ec2Resource
from local.plugins.aws.shapes import pick
from local.plugins.provider import Properties


class SecurityGroup(Ec2Resource):
    """A group without inline rules: like the real provider it takes away AWS's default egress rule."""

    token = "aws:ec2/securityGroup:SecurityGroup"
    kind = "security-group"
    describe = ("describe_security_groups", "GroupIds", "SecurityGroups")
    required = frozenset({"vpcId"})
    optional = frozenset({"name", "description", "revokeRulesOnDelete"})
    mutable = frozenset({"revokeRulesOnDelete"})
    name_property = "name"

    def check(self, name: str, news: Properties, olds: Properties, seed: bytes) -> Properties:
        return {"description": "Managed by Pulumi"} | super().check(name, news, olds, seed)

    def make(self, inputs: Properties) -> str:
        group_id = self.api.create_security_group(
            GroupName=inputs["name"],
            Description=inputs["description"],
            VpcId=inputs["vpcId"],
            **self.tagged(inputs),
        )["GroupId"]
        default_egress = self._group(group_id)["IpPermissionsEgress"]
        if default_egress:
            self.api.revoke_security_group_egress(GroupId=group_id, IpPermissions=default_egress)
        return group_id

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.described(resource_id)
        if found is None:
            return None
        found["name"] = found.pop("groupName")
        return pick(found, "name", "description", "vpcId", "ownerId", "tagsAll") | {"arn": self.arn(resource_id)}

    def remove(self, resource_id: str, inputs: Properties) -> None:
        if inputs.get("revokeRulesOnDelete"):
            group = self._group(resource_id)
            if group["IpPermissions"]:
                self.api.revoke_security_group_ingress(GroupId=resource_id, IpPermissions=group["IpPermissions"])
            if group["IpPermissionsEgress"]:
                self.api.revoke_security_group_egress(GroupId=resource_id, IpPermissions=group["IpPermissionsEgress"])
        self.api.delete_security_group(GroupId=resource_id)

    def _group(self, group_id: str) -> dict[str, Any]:
        return self.api.describe_security_groups(GroupIds=[group_id])["SecurityGroups"][0]


class _Rule(Ec2Resource):
    """One rule of a security group. Replaced when it changes."""

    kind = "security-group-rule"
    describe = ("describe_security_group_rules", "SecurityGroupRuleIds", "SecurityGroupRules")
    required = frozenset({"securityGroupId", "ipProtocol"})
    optional = frozenset(
        {"fromPort", "toPort", "cidrIpv4", "cidrIpv6", "prefixListId", "referencedSecurityGroupId", "description"}
    )
    direction: ClassVar[str]

    def make(self, inputs: Properties) -> str:
        authorize = getattr(self.api, f"authorize_security_group_{self.direction}")
        answer = authorize(
            GroupId=inputs["securityGroupId"], IpPermissions=[_permission(inputs)], **self.tagged(inputs)
        )
        return answer["SecurityGroupRules"][0]["SecurityGroupRuleId"]

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.described(resource_id)
        if found is None:
            return None
        found["securityGroupId"] = found.pop("groupId")
        found["referencedSecurityGroupId"] = found.pop("referencedGroupInfo", {}).get("groupId")
        found = pick(found, "ipProtocol", "securityGroupId", "tagsAll", *self.optional)
        return found | {"securityGroupRuleId": resource_id, "arn": self.arn(resource_id)}

    def remove(self, resource_id: str, inputs: Properties) -> None:
        revoke = getattr(self.api, f"revoke_security_group_{self.direction}")
        revoke(GroupId=inputs["securityGroupId"], SecurityGroupRuleIds=[resource_id])


class SecurityGroupIngressRule(_Rule):
    token = "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule"
    direction = "ingress"


class SecurityGroupEgressRule(_Rule):
    token = "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule"
    direction = "egress"


_SOURCES = {
    "cidrIpv4": ("IpRanges", "CidrIp"),
    "cidrIpv6": ("Ipv6Ranges", "CidrIpv6"),
    "prefixListId": ("PrefixListIds", "PrefixListId"),
    "referencedSecurityGroupId": ("UserIdGroupPairs", "GroupId"),
}


def _permission(inputs: Properties) -> dict[str, Any]:
    permission: dict[str, Any] = {"IpProtocol": inputs["ipProtocol"]}
    ports = {"FromPort": inputs.get("fromPort"), "ToPort": inputs.get("toPort")}
    permission |= {key: port for key, port in ports.items() if port is not None}
    for key, (ranges, field) in _SOURCES.items():
        if key in inputs:
            note = {"Description": inputs["description"]} if "description" in inputs else {}
            permission[ranges] = [{field: inputs[key]} | note]
    return permission
