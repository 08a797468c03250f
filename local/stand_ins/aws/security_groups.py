"""aws:ec2/securityGroup and aws:vpc's rules of it."""

from __future__ import annotations

from typing import Any, ClassVar

from local.stand_ins.aws.network import Ec2Resource
from local.stand_ins.aws.shapes import pascal, pick
from local.stand_ins.provider import Properties


class SecurityGroup(Ec2Resource):
    """A group without inline rules: like the real provider it takes away AWS's default egress rule."""

    token = "aws:ec2/securityGroup:SecurityGroup"
    kind = "security-group"
    describe = ("describe_security_groups", "GroupIds", "SecurityGroups")
    required = frozenset({"vpcId"})
    optional = frozenset({"name", "description"})
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
        group = self.api.describe_security_groups(GroupIds=[group_id])["SecurityGroups"][0]
        if default_egress := group["IpPermissionsEgress"]:
            self.api.revoke_security_group_egress(GroupId=group_id, IpPermissions=default_egress)
        return group_id

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.described(resource_id)
        if found is None:
            return None
        found["name"] = found.pop("groupName")
        return pick(found, "name", "description", "vpcId", "ownerId", "tagsAll") | {"arn": self.arn(resource_id)}

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_security_group(GroupId=resource_id)


class _Rule(Ec2Resource):
    """One rule of a security group. Replaced when it changes."""

    kind = "security-group-rule"
    describe = ("describe_security_group_rules", "SecurityGroupRuleIds", "SecurityGroupRules")
    required = frozenset({"securityGroupId", "ipProtocol"})
    optional = frozenset({"cidrIpv4", "fromPort", "referencedSecurityGroupId", "toPort"})
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
        found["referencedSecurityGroupId"] = found.get("referencedGroupInfo", {}).get("groupId")
        found = pick(found, "tagsAll", *self.required, *self.optional)
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


def _permission(inputs: Properties) -> dict[str, Any]:
    permission = pascal(pick(inputs, "ipProtocol", "fromPort", "toPort"))
    if "referencedSecurityGroupId" in inputs:
        return permission | {"UserIdGroupPairs": [{"GroupId": inputs["referencedSecurityGroupId"]}]}
    return permission | {"IpRanges": [{"CidrIp": inputs["cidrIpv4"]}]}
