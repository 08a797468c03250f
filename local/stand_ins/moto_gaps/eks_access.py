"""EKS access entries and the access policies associated with them."""

from __future__ import annotations

import uuid
from typing import Any

from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from moto.eks.exceptions import ResourceInUseException, ResourceNotFoundException
from moto.eks.models import Cluster

from local.stand_ins.moto_gaps.eks_base import EksCalls, entries, stamped


class AccessCalls(EksCalls):
    """The calls on access entries."""

    def create_access_entry(self) -> ActionResult:
        cluster, principal = self.cluster(), self.params["principalArn"]
        self.refuse(
            vars(cluster)["access_config"]["authenticationMode"] == "CONFIG_MAP",
            "The cluster's authentication mode must be set to one of [API, API_AND_CONFIG_MAP]",
        )
        if principal in entries(cluster):
            message = "The specified access entry resource is already in use on this cluster."
            raise ResourceInUseException(message=message)
        entry = self.new_entry(cluster, principal, "STANDARD", self.params)
        return ActionResult({"accessEntry": entry})

    def describe_access_entry(self) -> ActionResult:
        return ActionResult({"accessEntry": self._entry()})

    def update_access_entry(self) -> ActionResult:
        entry = self._entry()
        entry["kubernetesGroups"] = self.params["kubernetesGroups"]
        return ActionResult({"accessEntry": entry})

    def list_access_entries(self) -> ActionResult:
        return ActionResult({"accessEntries": sorted(entries(self.cluster()))})

    def delete_access_entry(self) -> ActionResult:
        del entries(self.cluster())[self._entry()["principalArn"]]
        return ActionResult({})

    def associate_access_policy(self) -> ActionResult:
        policy = {"policyArn": self.params["policyArn"], "accessScope": self.params["accessScope"]}
        policy |= {"associatedAt": utcnow(), "modifiedAt": utcnow()}
        entry = self._entry()
        entry["policies"][policy["policyArn"]] = policy
        return ActionResult(_named(entry) | {"associatedAccessPolicy": policy})

    def disassociate_access_policy(self) -> ActionResult:
        if self._entry()["policies"].pop(self._get_param("policyArn"), None) is None:
            raise ResourceNotFoundException(message="The specified policyArn is not associated with the access entry.")
        return ActionResult({})

    def list_associated_access_policies(self) -> ActionResult:
        entry = self._entry()
        return ActionResult(_named(entry) | {"associatedAccessPolicies": list(entry["policies"].values())})

    def _entry(self) -> dict[str, Any]:
        return self.one(entries(self.cluster()), self._get_param("principalArn"), "access entry")

    def new_entry(self, cluster: Cluster, principal: str, kind: str, given: dict[str, Any]) -> dict[str, Any]:
        entry = stamped(given, "tags") | {
            "accessEntryArn": self.arn(f"access-entry/{cluster.name}/{principal.rpartition(':')[2]}/{uuid.uuid4()}"),
            "clusterName": cluster.name,
            "kubernetesGroups": given.get("kubernetesGroups", []),
            "policies": {},
            "principalArn": principal,
            "type": kind,
            "username": principal,
        }
        entries(cluster)[principal] = entry
        return entry


def _named(entry: dict[str, Any]) -> dict[str, Any]:
    return {"clusterName": entry["clusterName"], "principalArn": entry["principalArn"]}
