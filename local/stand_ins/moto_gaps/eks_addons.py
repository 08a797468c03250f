"""EKS add-ons."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

from moto.core.responses import ActionResult
from moto.eks.exceptions import InvalidParameterException, ResourceInUseException
from moto.eks.models import Cluster

from local.stand_ins.moto_gaps.eks_base import EksCalls, addons, stamped, updated

_ADDONS = ("coredns", "kube-proxy", "vpc-cni", "aws-ebs-csi-driver", "eks-node-monitoring-agent")
_ADDON_VERSION = re.compile(r"v\d+\.\d+\.\d+-eksbuild\.\d+")
"""Any well-formed version is accepted; one must be named."""
_NEED_NODES = ("coredns", "aws-ebs-csi-driver")
"""Deployments, not DaemonSets: where there is no node they never become healthy."""


class AddonCalls(EksCalls):
    """The calls that create, describe, update, delete and list add-ons."""

    def create_addon(self) -> ActionResult:
        cluster, name = self.cluster(), self.params["addonName"]
        if name in addons(cluster):
            raise ResourceInUseException(message=f"Addon already exists. (addonName: {name})")
        self.refuse(name not in _ADDONS, f"Addon {name} is not known; known: {', '.join(_ADDONS)}")
        addon = stamped(self.params, "addonVersion", "configurationValues", "serviceAccountRoleArn", "tags") | {
            "addonArn": self.arn(f"addon/{cluster.name}/{name}/{uuid.uuid4()}"),
            "addonName": name,
            "clusterName": cluster.name,
            **_health(cluster, name),
        }
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

    def _addon(self) -> dict[str, Any]:
        return self.one(addons(self.cluster()), self._get_param("addonName"), "addon")

    def _check_addon(self, addon: dict[str, Any]) -> None:
        version = addon.get("addonVersion", "")
        self.refuse(not _ADDON_VERSION.fullmatch(version), f"Addon version {version!r} is not supported")
        try:
            json.loads(addon.get("configurationValues") or "{}")
        except ValueError as error:
            raise InvalidParameterException(message=f"ConfigurationValue is not in valid JSON: {error}") from error


def _health(cluster: Cluster, name: str) -> dict[str, Any]:
    if name not in _NEED_NODES or any(group.status == "ACTIVE" for group in cluster.nodegroups.values()):
        return {"health": {"issues": []}, "status": "ACTIVE"}
    issue = {"code": "InsufficientNumberOfReplicas", "message": "The add-on is unhealthy", "resourceIds": []}
    return {"health": {"issues": [issue]}, "status": "DEGRADED"}
