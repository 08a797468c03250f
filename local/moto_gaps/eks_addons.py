"""EKS add-ons."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

from moto.core.responses import ActionResult
from moto.eks.exceptions import InvalidParameterException, ResourceInUseException

from local.moto_gaps.eks_base import DEFAULT_VERSION, EksCalls, addons, stamped, updated

_ADDON_VERSIONS = {
    "1.34": {
        "coredns": ["v1.12.4-eksbuild.1", "v1.12.3-eksbuild.1"],
        "kube-proxy": ["v1.34.1-eksbuild.2", "v1.34.0-eksbuild.2"],
        "vpc-cni": ["v1.20.4-eksbuild.1", "v1.20.3-eksbuild.1"],
        "aws-ebs-csi-driver": ["v1.52.1-eksbuild.1", "v1.51.0-eksbuild.1"],
    },
    "1.35": {
        "coredns": ["v1.13.2-eksbuild.1", "v1.12.4-eksbuild.1"],
        "kube-proxy": ["v1.35.0-eksbuild.2", "v1.34.1-eksbuild.2"],
        "vpc-cni": ["v1.21.1-eksbuild.3", "v1.21.1-eksbuild.1", "v1.20.4-eksbuild.1"],
        "aws-ebs-csi-driver": ["v1.56.0-eksbuild.1", "v1.55.0-eksbuild.1"],
    },
}
"""Newest first. A sample: any well-formed version of a known add-on is accepted."""
_ADDON_VERSION = re.compile(r"v\d+\.\d+\.\d+-eksbuild\.\d+")


class AddonCalls(EksCalls):
    """The calls that create, describe, update, delete and list add-ons."""

    def create_addon(self) -> ActionResult:
        cluster, name = self.cluster(), self.params["addonName"]
        if name in addons(cluster):
            raise ResourceInUseException(message=f"Addon already exists. (addonName: {name})")
        versions = _ADDON_VERSIONS.get(cluster.version, _ADDON_VERSIONS[DEFAULT_VERSION])
        self.refuse(name not in versions, f"Addon {name} is not known; known: {', '.join(versions)}")
        addon = stamped(self.params, "addonVersion", "configurationValues", "serviceAccountRoleArn", "tags") | {
            "addonArn": self.arn(f"addon/{cluster.name}/{name}/{uuid.uuid4()}"),
            "addonName": name,
            "clusterName": cluster.name,
            "health": {"issues": []},
            "status": "ACTIVE",
        }
        addon.setdefault("addonVersion", versions[name][0])
        self._check_addon(addon)
        addons(cluster)[name] = addon
        return ActionResult({"addon": addon})

    def describe_addon(self) -> ActionResult:
        return ActionResult({"addon": self._addon()})

    def list_addons(self) -> ActionResult:
        return ActionResult({"addons": sorted(addons(self.cluster()))})

    def update_addon(self) -> ActionResult:
        keys = ("addonVersion", "configurationValues", "serviceAccountRoleArn")
        changed = self._addon() | stamped(self.params, *keys, created=False)
        self._check_addon(changed)
        self._addon().update(changed)
        return updated("AddonUpdate")

    def delete_addon(self) -> ActionResult:
        addon = self._addon()
        del addons(self.cluster())[addon["addonName"]]
        return ActionResult({"addon": addon | {"status": "DELETING"}})

    def describe_addon_versions(self) -> ActionResult:
        wanted, kubernetes = self.params.get("addonName"), self.params.get("kubernetesVersion", DEFAULT_VERSION)
        return ActionResult(
            {
                "addons": [
                    {"addonName": name, "addonVersions": _compatible(versions, kubernetes)}
                    for name, versions in _ADDON_VERSIONS.get(kubernetes, {}).items()
                    if wanted in (None, name)
                ]
            }
        )

    def _addon(self) -> dict[str, Any]:
        return self.one(addons(self.cluster()), self._get_param("addonName"), "addon")

    def _check_addon(self, addon: dict[str, Any]) -> None:
        known = _ADDON_VERSION.fullmatch(addon["addonVersion"])
        self.refuse(not known, f"Addon version {addon['addonVersion']} is not supported")
        try:
            json.loads(addon.get("configurationValues") or "{}")
        except ValueError as error:
            raise InvalidParameterException(message=f"ConfigurationValue is not in valid JSON: {error}") from error


def _compatible(versions: list[str], kubernetes: str) -> list[dict[str, Any]]:
    """The default version of an add-on is the one before its newest, as EKS mostly has it."""
    default = versions[min(1, len(versions) - 1)]
    return [
        {
            "addonVersion": version,
            "architecture": ["amd64", "arm64"],
            "compatibilities": [{"clusterVersion": kubernetes, "defaultVersion": version == default}],
        }
        for version in versions
    ]
