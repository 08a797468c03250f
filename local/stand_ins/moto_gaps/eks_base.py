"""What the parts of the EKS extension share. Objects that moto has no class for are dicts kept on their cluster."""

from __future__ import annotations

import uuid
from typing import Any

from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from moto.eks.exceptions import InvalidParameterException, ResourceNotFoundException
from moto.eks.models import Cluster
from moto.eks.responses import EKSResponse

DEFAULT_VERSION = "1.35"


class EksCalls(EKSResponse):
    """A part of the EKS API: each method answers the call of its name, with the call's parameters in `params`."""

    def __init__(self) -> None:
        super().__init__()
        self.automated_parameter_parsing = True

    def cluster(self) -> Cluster:
        return self.eks_backend.describe_cluster(self._get_param("clusterName") or self._get_param("name"))

    def one(self, items: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
        if name not in items:
            raise ResourceNotFoundException(message=f"No {kind} found for name: {name}.")
        return items[name]

    def arn(self, resource: str) -> str:
        return f"arn:{self.eks_backend.partition}:eks:{self.region}:{self.current_account}:{resource}"

    def refuse(self, wrong: bool, message: str) -> None:
        if wrong:
            raise InvalidParameterException(message=message)


def addons(cluster: Cluster) -> dict[str, dict[str, Any]]:
    return vars(cluster)["addons"]


def entries(cluster: Cluster) -> dict[str, dict[str, Any]]:
    return vars(cluster)["access_entries"]


def stamped(params: dict[str, Any], *keys: str, created: bool = True) -> dict[str, Any]:
    """The given parameters of a new or changed object with its times (and tags, for a new one)."""
    item = {key: params[key] for key in keys if params.get(key) is not None} | {"modifiedAt": utcnow()}
    return {"tags": {}, "createdAt": utcnow()} | item if created else item


def updated(kind: str) -> ActionResult:
    update = {"id": str(uuid.uuid4()), "status": "Successful", "type": kind, "params": [], "errors": []}
    return ActionResult({"update": update | {"createdAt": utcnow()}})
