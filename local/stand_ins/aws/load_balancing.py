"""aws:lb: a load balancer, its target group and listener; and the Auto Scaling group behind it."""

from __future__ import annotations

from typing import Any

from local.stand_ins.aws.resource import AwsResource
from local.stand_ins.aws.shapes import camel, pascal, pick, tag_list, tag_map
from local.stand_ins.provider import InvalidInput, Properties

_ATTRIBUTES = {
    "idleTimeout": "idle_timeout.timeout_seconds",
    "dropInvalidHeaderFields": "routing.http.drop_invalid_header_fields.enabled",
}
_LONGEST_NAME = 32


class _Balancing(AwsResource):
    """An object of ELBv2: its id is its ARN, and it is tagged by it."""

    service = "elbv2"
    taggable = True

    def retag(self, resource_id: str, outputs: Properties, added: dict[str, str], removed: list[str]) -> None:
        if added:
            self.api.add_tags(ResourceArns=[resource_id], Tags=tag_list(added))
        if removed:
            self.api.remove_tags(ResourceArns=[resource_id], TagKeys=removed)

    def tagged(self, inputs: Properties) -> dict[str, Any]:
        """The `Tags` argument of a create call, which must not be empty."""
        return {"Tags": tag_list(inputs["tagsAll"])} if inputs["tagsAll"] else {}

    def tags_of(self, arn: str) -> dict[str, str]:
        return tag_map(self.api.describe_tags(ResourceArns=[arn])["TagDescriptions"][0]["Tags"])


class _Named(_Balancing):
    name_property = "name"

    def check(self, name: str, news: Properties, olds: Properties, seed: bytes) -> Properties:
        inputs = super().check(name, news, olds, seed)
        if len(inputs["name"]) > _LONGEST_NAME:
            raise InvalidInput("name", f"{inputs['name']} is longer than the {_LONGEST_NAME} characters that AWS takes")
        return inputs


class LoadBalancer(_Named):
    token = "aws:lb/loadBalancer:LoadBalancer"
    required = frozenset({"internal", "loadBalancerType", "subnets", "securityGroups"})
    optional = frozenset({"name", *_ATTRIBUTES})
    mutable = frozenset({"subnets", "securityGroups", *_ATTRIBUTES})

    def make(self, inputs: Properties) -> str:
        created = self.api.create_load_balancer(
            Name=inputs["name"],
            Type=inputs["loadBalancerType"],
            Scheme="internal" if inputs["internal"] else "internet-facing",
            Subnets=inputs["subnets"],
            SecurityGroups=inputs["securityGroups"],
            **self.tagged(inputs),
        )
        arn = created["LoadBalancers"][0]["LoadBalancerArn"]
        self.api.get_waiter("load_balancer_available").wait(LoadBalancerArns=[arn], WaiterConfig={"Delay": 1})
        self.change(arn, {}, pick(inputs, *_ATTRIBUTES))
        return arn

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        [found] = self.api.describe_load_balancers(LoadBalancerArns=[resource_id])["LoadBalancers"]
        answer = self.api.describe_load_balancer_attributes(LoadBalancerArn=resource_id)["Attributes"]
        attributes = {attribute["Key"]: attribute["Value"] for attribute in answer}
        return {
            **{name: attributes.get(key) for name, key in _ATTRIBUTES.items()},
            "arn": resource_id,
            "dnsName": found["DNSName"],
            "internal": found["Scheme"] == "internal",
            "loadBalancerType": found["Type"],
            "name": found["LoadBalancerName"],
            "securityGroups": found["SecurityGroups"],
            "subnets": [zone["SubnetId"] for zone in found["AvailabilityZones"]],
            "tagsAll": self.tags_of(resource_id),
            "vpcId": found["VpcId"],
        }

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        balancer = {"LoadBalancerArn": resource_id}
        changed = {key for key in self.mutable if key in news and news[key] != olds.get(key)}
        if "subnets" in changed:
            self.api.set_subnets(**balancer, Subnets=news["subnets"])
        if "securityGroups" in changed:
            self.api.set_security_groups(**balancer, SecurityGroups=news["securityGroups"])
        if attributes := [
            {"Key": key, "Value": str(news[name]).lower()} for name, key in _ATTRIBUTES.items() if name in changed
        ]:
            self.api.modify_load_balancer_attributes(**balancer, Attributes=attributes)

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_load_balancer(LoadBalancerArn=resource_id)
        self.api.get_waiter("load_balancers_deleted").wait(LoadBalancerArns=[resource_id], WaiterConfig={"Delay": 1})


class TargetGroup(_Named):
    token = "aws:lb/targetGroup:TargetGroup"
    required = frozenset({"port", "protocol", "targetType", "vpcId"})
    optional = frozenset({"name", "healthCheck"})
    mutable = frozenset({"healthCheck"})

    def make(self, inputs: Properties) -> str:
        wanted = pascal(pick(inputs, *self.required, "name")) | _health_check(inputs)
        created = self.api.create_target_group(**wanted, **self.tagged(inputs))
        return created["TargetGroups"][0]["TargetGroupArn"]

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        [found] = self.api.describe_target_groups(TargetGroupArns=[resource_id])["TargetGroups"]
        return pick(camel(found), *self.required) | {
            "arn": resource_id,
            "healthCheck": {
                "protocol": found["HealthCheckProtocol"],
                "interval": found["HealthCheckIntervalSeconds"],
                "path": found.get("HealthCheckPath"),
                "matcher": found.get("Matcher", {}).get("HttpCode"),
            },
            "name": found["TargetGroupName"],
            "tagsAll": self.tags_of(resource_id),
        }

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        if checked := _health_check(news):
            self.api.modify_target_group(TargetGroupArn=resource_id, **checked)

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_target_group(TargetGroupArn=resource_id)


def _health_check(inputs: Properties) -> dict[str, Any]:
    spelled = {"protocol": "HealthCheckProtocol", "interval": "HealthCheckIntervalSeconds", "path": "HealthCheckPath"}
    checked = dict(inputs.get("healthCheck") or {})
    matcher = {"Matcher": {"HttpCode": checked.pop("matcher")}} if "matcher" in checked else {}
    return {spelled[key]: value for key, value in checked.items()} | matcher


class Listener(_Balancing):
    token = "aws:lb/listener:Listener"
    required = frozenset({"loadBalancerArn", "port", "protocol", "defaultActions"})
    optional = frozenset({"certificateArn", "sslPolicy"})
    mutable = frozenset({"certificateArn", "defaultActions", "port", "protocol", "sslPolicy"})

    def make(self, inputs: Properties) -> str:
        created = self.api.create_listener(
            LoadBalancerArn=inputs["loadBalancerArn"], **_listener(inputs), **self.tagged(inputs)
        )
        return created["Listeners"][0]["ListenerArn"]

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        [found] = self.api.describe_listeners(ListenerArns=[resource_id])["Listeners"]
        kept = pick(camel(found), "loadBalancerArn", "port", "protocol", "sslPolicy", "defaultActions")
        certificates = [{"certificateArn": one["CertificateArn"]} for one in found.get("Certificates", [])[:1]]
        return kept | {"arn": resource_id, "tagsAll": self.tags_of(resource_id)} | (certificates or [{}])[0]

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        before = _listener(olds)
        if changed := {key: value for key, value in _listener(news).items() if before.get(key) != value}:
            self.api.modify_listener(ListenerArn=resource_id, **changed)

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_listener(ListenerArn=resource_id)


def _listener(inputs: Properties) -> dict[str, Any]:
    wanted = pascal(pick(inputs, "port", "protocol", "sslPolicy", "defaultActions"))
    if certificate := inputs.get("certificateArn"):
        wanted["Certificates"] = [{"CertificateArn": certificate}]
    return wanted


class AutoscalingAttachment(AwsResource):
    """The instances of an Auto Scaling group as targets: those of now and those to come."""

    token = "aws:autoscaling/attachment:Attachment"
    service = "autoscaling"
    required = frozenset({"autoscalingGroupName", "lbTargetGroupArn"})

    def make(self, inputs: Properties) -> str:
        self.api.attach_load_balancer_target_groups(**_attached(inputs))
        return f"{inputs['autoscalingGroupName']}-{inputs['lbTargetGroupArn']}"

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        group = inputs["autoscalingGroupName"]
        found = self.api.describe_load_balancer_target_groups(AutoScalingGroupName=group)["LoadBalancerTargetGroups"]
        arns = [item["LoadBalancerTargetGroupARN"] for item in found]
        return pick(inputs, *self.required) if inputs["lbTargetGroupArn"] in arns else None

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.detach_load_balancer_target_groups(**_attached(inputs))


def _attached(inputs: Properties) -> dict[str, Any]:
    return {
        "AutoScalingGroupName": inputs["autoscalingGroupName"],
        "TargetGroupARNs": [inputs["lbTargetGroupArn"]],
    }
