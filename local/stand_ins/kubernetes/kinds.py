"""The kinds of Kubernetes objects that this program emits; every other kind is an error."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind. `immutable` are the dotted paths that the API server refuses to change: a change replaces the object."""

    api_version: str
    name: str
    plural: str
    namespaced: bool = True
    immutable: tuple[str, ...] = ()

    @property
    def token(self) -> str:
        group_version = self.api_version if "/" in self.api_version else f"core/{self.api_version}"
        return f"kubernetes:{group_version}:{self.name}"

    def path(self, namespace: str = "", name: str = "") -> str:
        """The object's path on the API server, or the collection's where no name is given."""
        root = "/apis" if "/" in self.api_version else "/api"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{root}/{self.api_version}{scope}/{self.plural}" + (f"/{name}" if name else "")


def _cluster(api_version: str, name: str, plural: str, *immutable: str) -> Kind:
    return Kind(api_version, name, plural, False, immutable)


def _namespaced(api_version: str, name: str, plural: str, *immutable: str) -> Kind:
    return Kind(api_version, name, plural, True, immutable)


CONFIG_MAP = _namespaced("v1", "ConfigMap", "configmaps", "immutable")
SECRET = _namespaced("v1", "Secret", "secrets", "type", "immutable")

KINDS = (
    _cluster("v1", "Namespace", "namespaces"),
    _namespaced("v1", "ServiceAccount", "serviceaccounts"),
    _namespaced("v1", "Service", "services", "spec.clusterIP"),
    CONFIG_MAP,
    SECRET,
    _namespaced("apps/v1", "Deployment", "deployments", "spec.selector"),
    _namespaced("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    _namespaced("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    _cluster(
        "storage.k8s.io/v1",
        "StorageClass",
        "storageclasses",
        *("parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"),
    ),
    _namespaced("rbac.authorization.k8s.io/v1", "Role", "roles"),
    _namespaced("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings", "roleRef"),
    _namespaced("keda.sh/v1alpha1", "ScaledObject", "scaledobjects"),
    _namespaced("monitoring.coreos.com/v1", "PrometheusRule", "prometheusrules"),
    _namespaced("monitoring.coreos.com/v1", "ServiceMonitor", "servicemonitors"),
)
