"""aws:ec2: launch templates and single instances."""

from __future__ import annotations

from typing import Any

from local.stand_ins.aws.network import Ec2Resource, spelled
from local.stand_ins.aws.shapes import camel, observed, pascal, pick, tag_list
from local.stand_ins.provider import UNKNOWN, Properties

_TEMPLATE_DATA = frozenset({"blockDeviceMappings", "metadataOptions", "tagSpecifications", "userData"})
_VERSIONS = ("latestVersion", "defaultVersion")
_FLAGS = {"true": True, "false": False}


class Volume(Ec2Resource):
    token = "aws:ebs/volume:Volume"
    kind = "volume"
    describe = ("describe_volumes", "VolumeIds", "Volumes")
    required = frozenset({"availabilityZone", "size", "type", "encrypted"})
    mutable = frozenset({"size", "type"})

    def make(self, inputs: Properties) -> str:
        wanted = {"Size": inputs["size"], "VolumeType": inputs["type"]} | pascal(pick(inputs, "availabilityZone"))
        made = self.api.create_volume(**wanted, Encrypted=inputs["encrypted"], **self.tagged(inputs))["VolumeId"]
        self.api.get_waiter("volume_available").wait(VolumeIds=[made], WaiterConfig={"Delay": 1})
        return made

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.described(resource_id)
        return found and found | {"arn": self.arn(resource_id), "type": found["volumeType"]}

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        if pick(olds, "size", "type") != pick(news, "size", "type"):
            self.api.modify_volume(VolumeId=resource_id, Size=news["size"], VolumeType=news["type"])

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_volume(VolumeId=resource_id)


class LaunchTemplate(Ec2Resource):
    """A change of the template makes a new version; instances take it when their group is told that version."""

    token = "aws:ec2/launchTemplate:LaunchTemplate"
    kind = "launch-template"
    describe = ("describe_launch_templates", "LaunchTemplateIds", "LaunchTemplates")
    optional = _TEMPLATE_DATA | {"name", "updateDefaultVersion"}
    mutable = _TEMPLATE_DATA | {"updateDefaultVersion"}
    name_property = "name"

    def make(self, inputs: Properties) -> str:
        created = self.api.create_launch_template(
            LaunchTemplateName=inputs["name"],
            LaunchTemplateData=_template_data(inputs),
            **self.tagged(inputs),
        )
        return created["LaunchTemplate"]["LaunchTemplateId"]

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.described(resource_id)
        if found is None:
            return None
        latest = self.api.describe_launch_template_versions(LaunchTemplateId=resource_id, Versions=["$Latest"])
        return _seen_data(latest["LaunchTemplateVersions"][0]["LaunchTemplateData"]) | {
            "arn": self.arn(resource_id),
            "name": found["launchTemplateName"],
            "latestVersion": found["latestVersionNumber"],
            "defaultVersion": found["defaultVersionNumber"],
            "tagsAll": found["tagsAll"],
        }

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        if _template_data(olds) == _template_data(news):
            return
        created = self.api.create_launch_template_version(
            LaunchTemplateId=resource_id,
            LaunchTemplateData=_template_data(news),
        )
        if news.get("updateDefaultVersion"):
            version = str(created["LaunchTemplateVersion"]["VersionNumber"])
            self.api.modify_launch_template(LaunchTemplateId=resource_id, DefaultVersion=version)

    def preview(self, inputs: Properties, outputs: Properties) -> Properties:
        """A changed template gets a version number that nobody knows yet, and its users change with it."""
        expected = super().preview(inputs, outputs)
        same = all(observed(inputs.get(key), outputs.get(key), key) == inputs.get(key) for key in _TEMPLATE_DATA)
        return expected if same or not outputs else expected | dict.fromkeys(_VERSIONS, UNKNOWN)

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_launch_template(LaunchTemplateId=resource_id)


def _template_data(inputs: Properties) -> dict[str, Any]:
    return pascal(_typed_devices(pick(inputs, *_TEMPLATE_DATA)))


def _seen_data(data: dict[str, Any]) -> Properties:
    seen = camel(data)
    specifications = seen.pop("tagSpecifications", [])
    if own := [item for item in specifications if item["resourceType"] != LaunchTemplate.kind]:
        seen["tagSpecifications"] = own
    return seen


def _typed_devices(inputs: Properties) -> Properties:
    """Block devices carry their flags as text in Pulumi; the API wants booleans."""
    devices = [
        device | {"ebs": {key: _FLAGS.get(value, value) for key, value in device["ebs"].items()}}
        for device in inputs.get("blockDeviceMappings", [])
    ]
    return inputs | ({"blockDeviceMappings": devices} if devices else {})


class Instance(Ec2Resource):
    token = "aws:ec2/instance:Instance"
    kind = "instance"
    required = frozenset({"ami", "instanceType", "subnetId"})
    optional = frozenset(
        {
            "associatePublicIpAddress",
            "creditSpecification",
            "metadataOptions",
            "rootBlockDevice",
            "sourceDestCheck",
            "userData",
            "userDataReplaceOnChange",
            "vpcSecurityGroupIds",
        }
    )
    mutable = frozenset({"sourceDestCheck", "userDataReplaceOnChange", "vpcSecurityGroupIds"})

    def make(self, inputs: Properties) -> str:
        wanted = {
            "ImageId": inputs["ami"],
            "InstanceType": inputs["instanceType"],
            **pascal(pick(inputs, "metadataOptions", "userData")),
            **_network(inputs),
            **self.tagged(inputs),
        }
        if root := dict(inputs.get("rootBlockDevice", {})):
            tags = tag_list(root.pop("tags", {}))
            wanted.setdefault("TagSpecifications", []).append({"ResourceType": "volume", "Tags": tags})
            ebs = pascal({"deleteOnTermination": True} | root)
            wanted["BlockDeviceMappings"] = [{"DeviceName": "/dev/xvda", "Ebs": ebs}]
        return self.api.run_instances(**wanted, MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]

    def settle(self, resource_id: str, inputs: Properties) -> None:
        self.api.get_waiter("instance_running").wait(InstanceIds=[resource_id], WaiterConfig={"Delay": 2})
        self.change(resource_id, {}, pick(inputs, "sourceDestCheck"))

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        reservations = self.api.describe_instances(InstanceIds=[resource_id])["Reservations"]
        if not reservations or reservations[0]["Instances"][0]["State"]["Name"] in ("shutting-down", "terminated"):
            return None
        found = spelled(reservations[0]["Instances"][0])
        kept = pick(found, "instanceType", "subnetId", "privateIp", "publicIp", "privateDns", "publicDns", "tagsAll")
        return kept | {
            "ami": found["imageId"],
            "arn": self.arn(resource_id),
            "availabilityZone": found["placement"]["availabilityZone"],
            "instanceState": found["state"]["name"],
            "primaryNetworkInterfaceId": found["networkInterfaces"][0]["networkInterfaceId"],
            "privateIp": found.get("privateIpAddress"),
            "publicIp": found.get("publicIpAddress"),
            "sourceDestCheck": found.get("sourceDestCheck", True),
            "vpcSecurityGroupIds": [group["groupId"] for group in found["networkInterfaces"][0]["groups"]],
        }

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        checked = news.get("sourceDestCheck", True)
        if checked != olds.get("sourceDestCheck", True):
            self.api.modify_instance_attribute(InstanceId=resource_id, SourceDestCheck={"Value": checked})
        groups = news.get("vpcSecurityGroupIds")
        if groups and groups != olds.get("vpcSecurityGroupIds"):
            found = self.find(resource_id, news) or {}
            interface = found["primaryNetworkInterfaceId"]
            self.api.modify_network_interface_attribute(NetworkInterfaceId=interface, Groups=groups)

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.terminate_instances(InstanceIds=[resource_id])
        self.api.get_waiter("instance_terminated").wait(InstanceIds=[resource_id], WaiterConfig={"Delay": 2})


def _network(inputs: Properties) -> dict[str, Any]:
    interface = {"DeviceIndex": 0, "SubnetId": inputs["subnetId"]}
    if "vpcSecurityGroupIds" in inputs:
        interface["Groups"] = inputs["vpcSecurityGroupIds"]
    if "associatePublicIpAddress" in inputs:
        interface["AssociatePublicIpAddress"] = inputs["associatePublicIpAddress"]
    return {"NetworkInterfaces": [interface]}
