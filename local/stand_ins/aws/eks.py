"""aws:eks: the cluster, its node groups, add-ons and access entries."""

from __future__ import annotations

from typing import Any

from local.stand_ins.aws.resource import AwsResource
from local.stand_ins.aws.shapes import pick
from local.stand_ins.provider import Properties, ProviderError

_POLL = {"Delay": 1, "MaxAttempts": 1800}


class EksResource(AwsResource):
    """An EKS object: the API spells properties as Pulumi does, and tags by ARN."""

    service = "eks"
    taggable = True

    def retag(self, resource_id: str, outputs: Properties, added: dict[str, str], removed: list[str]) -> None:
        if added:
            self.api.tag_resource(resourceArn=outputs["arn"], tags=added)
        if removed:
            self.api.untag_resource(resourceArn=outputs["arn"], tagKeys=removed)

    def wait(self, state: str, **target: str) -> None:
        self.api.get_waiter(state).wait(**target, WaiterConfig=_POLL)


class Cluster(EksResource):
    token = "aws:eks/cluster:Cluster"
    required = frozenset({"roleArn", "vpcConfig"})
    optional = frozenset({"accessConfig", "enabledClusterLogTypes", "name", "upgradePolicy", "version"})
    mutable = frozenset({"accessConfig", "enabledClusterLogTypes", "upgradePolicy", "version", "vpcConfig"})
    name_property = "name"

    def make(self, inputs: Properties) -> str:
        name = inputs["name"]
        wanted = pick(inputs, "accessConfig", "roleArn", "upgradePolicy", "version")
        if inputs.get("enabledClusterLogTypes"):
            wanted["logging"] = _logging(inputs["enabledClusterLogTypes"])
        self.api.create_cluster(name=name, resourcesVpcConfig=inputs["vpcConfig"], tags=inputs["tagsAll"], **wanted)
        return name

    def settle(self, resource_id: str, inputs: Properties) -> None:
        self.wait("cluster_active", name=resource_id)

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.api.describe_cluster(name=resource_id)["cluster"]
        logs = found.get("logging", {}).get("clusterLogging", [])
        kept = pick(
            found,
            "accessConfig",
            "arn",
            "certificateAuthority",
            "endpoint",
            "name",
            "platformVersion",
            "roleArn",
            "status",
            "upgradePolicy",
            "version",
        )
        return kept | {
            "createdAt": found["createdAt"].isoformat(),
            "enabledClusterLogTypes": [kind for log in logs if log["enabled"] for kind in log["types"]],
            "identities": [{"oidcs": [{"issuer": found["identity"]["oidc"]["issuer"]}]}],
            "tagsAll": found.get("tags", {}),
            "vpcConfig": found["resourcesVpcConfig"],
        }

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        """AWS takes one kind of change per call."""
        for update in _cluster_updates(olds, news):
            self.api.update_cluster_config(name=resource_id, **update)
            self.wait("cluster_active", name=resource_id)
        if "version" in news and news["version"] != olds.get("version"):
            self.api.update_cluster_version(name=resource_id, version=news["version"])
            self.wait("cluster_active", name=resource_id)

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_cluster(name=resource_id)
        self.wait("cluster_deleted", name=resource_id)


def _cluster_updates(olds: Properties, news: Properties) -> list[dict[str, Any]]:
    def changed(key: str) -> bool:
        return key in news and news[key] != olds.get(key)

    updates = []
    if changed("vpcConfig"):
        updates.append({"resourcesVpcConfig": news["vpcConfig"]})
    if olds.get("enabledClusterLogTypes", []) != news.get("enabledClusterLogTypes", []):
        updates.append({"logging": _logging(news.get("enabledClusterLogTypes", []))})
    if changed("accessConfig"):
        updates.append({"accessConfig": pick(news["accessConfig"], "authenticationMode")})
    if changed("upgradePolicy"):
        updates.append({"upgradePolicy": news["upgradePolicy"]})
    return updates


def _logging(enabled: list[str]) -> dict[str, Any]:
    every = {"api", "audit", "authenticator", "controllerManager", "scheduler"}
    groups = [(sorted(enabled), True), (sorted(every - set(enabled)), False)]
    return {"clusterLogging": [{"types": types, "enabled": on} for types, on in groups if types]}


class NodeGroup(EksResource):
    token = "aws:eks/nodeGroup:NodeGroup"
    required = frozenset({"clusterName", "nodeRoleArn", "scalingConfig", "subnetIds"})
    optional = frozenset(
        {
            "amiType",
            "capacityType",
            "instanceTypes",
            "labels",
            "launchTemplate",
            "nodeGroupName",
            "nodeRepairConfig",
            "releaseVersion",
            "taints",
            "updateConfig",
            "version",
            "warmPoolConfig",
        }
    )
    _configured = ("nodeRepairConfig", "scalingConfig", "updateConfig", "warmPoolConfig")
    _versioned = ("launchTemplate", "releaseVersion", "version")
    mutable = frozenset({*_configured, *_versioned, "labels", "taints"})
    name_property = "nodeGroupName"

    def make(self, inputs: Properties) -> str:
        names = {"clusterName": inputs["clusterName"], "nodegroupName": inputs["nodeGroupName"]}
        same = ("amiType", "capacityType", "instanceTypes", "labels", "taints")
        self.api.create_nodegroup(
            **names,
            nodeRole=inputs["nodeRoleArn"],
            subnets=inputs["subnetIds"],
            tags=inputs["tagsAll"],
            **_template_as_text(pick(inputs, *same, *self._configured, *self._versioned)),
        )
        return f"{inputs['clusterName']}:{inputs['nodeGroupName']}"

    def settle(self, resource_id: str, inputs: Properties) -> None:
        from botocore.exceptions import WaiterError  # slow to import, and not for a preview

        try:
            self.wait("nodegroup_active", **_group(resource_id))
        except WaiterError as error:
            issues = error.last_response["nodegroup"]["health"]["issues"]
            raise ProviderError("; ".join(f"{issue['code']}: {issue['message']}" for issue in issues)) from error

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.api.describe_nodegroup(**_group(resource_id))["nodegroup"]
        groups = found["resources"]["autoScalingGroups"]
        kept = pick(
            found,
            "amiType",
            "capacityType",
            "clusterName",
            "instanceTypes",
            "labels",
            "status",
            "taints",
            *self._configured,
            *self._versioned,
        )
        return kept | {
            "arn": found["nodegroupArn"],
            "nodeGroupName": found["nodegroupName"],
            "nodeRoleArn": found["nodeRole"],
            "resources": [{"autoscalingGroups": [{"name": group["name"]} for group in groups]}],
            "subnetIds": found["subnets"],
            "tagsAll": found.get("tags", {}),
        }

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        config = {key: news[key] for key in self._configured if key in news and news[key] != olds.get(key)}
        if labels := _label_changes(olds.get("labels", {}), news.get("labels", {})):
            config["labels"] = labels
        if taints := _taint_changes(olds.get("taints", []), news.get("taints", [])):
            config["taints"] = taints
        if config:
            self.api.update_nodegroup_config(**_group(resource_id), **config)
            self.wait("nodegroup_active", **_group(resource_id))
        version = {key: news[key] for key in self._versioned if key in news and news[key] != olds.get(key)}
        if version:
            self.api.update_nodegroup_version(**_group(resource_id), **_template_as_text(version))
            self.wait("nodegroup_active", **_group(resource_id))

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_nodegroup(**_group(resource_id))
        self.wait("nodegroup_deleted", **_group(resource_id))


def _group(resource_id: str) -> dict[str, str]:
    cluster, name = resource_id.split(":")
    return {"clusterName": cluster, "nodegroupName": name}


def _template_as_text(inputs: Properties) -> Properties:
    template = inputs.get("launchTemplate")
    return inputs | ({"launchTemplate": {key: str(value) for key, value in template.items()}} if template else {})


def _label_changes(before: dict[str, str], after: dict[str, str]) -> dict[str, Any]:
    added = {key: value for key, value in after.items() if before.get(key) != value}
    return _without_empty(addOrUpdateLabels=added, removeLabels=sorted(before.keys() - after.keys()))


def _taint_changes(before: list[Properties], after: list[Properties]) -> dict[str, Any]:
    added = [taint for taint in after if taint not in before]
    return _without_empty(addOrUpdateTaints=added, removeTaints=[taint for taint in before if taint not in after])


def _without_empty(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in changes.items() if value}


class Addon(EksResource):
    token = "aws:eks/addon:Addon"
    required = frozenset({"clusterName", "addonName", "addonVersion"})
    _settings = frozenset({"addonVersion", "configurationValues", "serviceAccountRoleArn"})
    _conflicts = frozenset({"resolveConflictsOnCreate", "resolveConflictsOnUpdate"})
    mutable = _settings | _conflicts
    optional = mutable - required

    def make(self, inputs: Properties) -> str:
        names = pick(inputs, "clusterName", "addonName")
        conflicts = {"resolveConflicts": inputs.get("resolveConflictsOnCreate", "NONE")}
        self.api.create_addon(**names, **pick(inputs, *self._settings), **conflicts, tags=inputs["tagsAll"])
        return f"{inputs['clusterName']}:{inputs['addonName']}"

    def settle(self, resource_id: str, inputs: Properties) -> None:
        self.wait("addon_active", **_addon(resource_id))

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.api.describe_addon(**_addon(resource_id))["addon"]
        return pick(found, "clusterName", "addonName", *self._settings) | {
            "arn": found["addonArn"],
            "createdAt": found["createdAt"].isoformat(),
            "modifiedAt": found["modifiedAt"].isoformat(),
            "tagsAll": found.get("tags", {}),
        }

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        if pick(olds, *self._settings) == pick(news, *self._settings):
            return
        conflicts = {"resolveConflicts": news.get("resolveConflictsOnUpdate", "NONE")}
        self.api.update_addon(**_addon(resource_id), **pick(news, *self._settings), **conflicts)
        self.wait("addon_active", **_addon(resource_id))

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_addon(**_addon(resource_id))
        self.wait("addon_deleted", **_addon(resource_id))


def _addon(resource_id: str) -> dict[str, str]:
    cluster, name = resource_id.split(":")
    return {"clusterName": cluster, "addonName": name}


class AccessEntry(EksResource):
    token = "aws:eks/accessEntry:AccessEntry"
    required = frozenset({"clusterName", "principalArn"})
    optional = frozenset({"kubernetesGroups"})
    mutable = optional

    def make(self, inputs: Properties) -> str:
        self.api.create_access_entry(**pick(inputs, *self.required, "kubernetesGroups"), tags=inputs["tagsAll"])
        return f"{inputs['clusterName']}:{inputs['principalArn']}"

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.api.describe_access_entry(**_entry(resource_id))["accessEntry"]
        kept = pick(found, *self.required) | {
            "accessEntryArn": found["accessEntryArn"],
            "arn": found["accessEntryArn"],
            "createdAt": found["createdAt"].isoformat(),
            "modifiedAt": found["modifiedAt"].isoformat(),
            "tagsAll": found.get("tags", {}),
        }
        return kept | (pick(found, "kubernetesGroups") if found["kubernetesGroups"] else {})

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        groups = news.get("kubernetesGroups", [])
        if groups != olds.get("kubernetesGroups", []):
            self.api.update_access_entry(**_entry(resource_id), kubernetesGroups=groups)

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_access_entry(**_entry(resource_id))


def _entry(resource_id: str) -> dict[str, str]:
    cluster, principal = resource_id.split(":", 1)
    return {"clusterName": cluster, "principalArn": principal}


class AccessPolicyAssociation(AwsResource):
    token = "aws:eks/accessPolicyAssociation:AccessPolicyAssociation"
    service = "eks"
    required = frozenset({"clusterName", "principalArn", "policyArn", "accessScope"})

    def make(self, inputs: Properties) -> str:
        self.api.associate_access_policy(**inputs)
        return "#".join(inputs[key] for key in ("clusterName", "principalArn", "policyArn"))

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        cluster, principal, policy = resource_id.split("#")
        answer = self.api.list_associated_access_policies(clusterName=cluster, principalArn=principal)
        for found in answer["associatedAccessPolicies"]:
            if found["policyArn"] == policy:
                return {
                    "accessScope": found["accessScope"],
                    "associatedAt": found["associatedAt"].isoformat(),
                    "modifiedAt": found["modifiedAt"].isoformat(),
                }
        return None

    def remove(self, resource_id: str, inputs: Properties) -> None:
        cluster, principal, policy = resource_id.split("#")
        self.api.disassociate_access_policy(clusterName=cluster, principalArn=principal, policyArn=policy)
