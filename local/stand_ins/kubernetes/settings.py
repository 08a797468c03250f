"""The provider's configuration, and the connection that it describes."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from local.stand_ins.provider import InvalidInput, Properties, contains_unknown

if TYPE_CHECKING:
    from local.stand_ins.kubernetes.cluster import Cluster

_SETTINGS = {"clusterIdentifier", "context", "enableServerSideApply", "kubeconfig", "namespace", "version"}
_FLAGS = {
    "deleteUnreachable": "delete_unreachable",
    "enableConfigMapMutable": "config_map_mutable",
    "enablePatchForce": "patch_force",
    "enableSecretMutable": "secret_mutable",
    "upsertExistingObjects": "upsert",
}


@dataclass(frozen=True)
class Settings:
    """What the provider was configured with; the names are those of the real provider, shortened."""

    kubeconfig: Properties
    context: str | None = None
    namespace: str | None = None
    delete_unreachable: bool = False
    config_map_mutable: bool = False
    patch_force: bool = False
    secret_mutable: bool = False
    upsert: bool = False

    @cached_property
    def active_context(self) -> Properties:
        """The `context` part of the kubeconfig's chosen entry. Raises InvalidInput where there is none."""
        name = self.context or self.kubeconfig.get("current-context")
        for entry in self.kubeconfig.get("contexts") or []:
            if entry["name"] == name:
                return entry["context"]
        raise InvalidInput("context", f"the kubeconfig has no context named {name!r}")

    @property
    def server(self) -> str:
        """The URL of the API server."""
        clusters = {entry["name"]: entry["cluster"] for entry in self.kubeconfig.get("clusters") or []}
        return clusters[self.active_context["cluster"]]["server"]

    @property
    def default_namespace(self) -> str:
        """Where an object goes that names no namespace."""
        return self.namespace or self.active_context.get("namespace") or "default"


def parse_settings(config: Properties) -> Settings:
    """Raises InvalidInput for what this stand-in does not know or cannot do."""
    config = {key: _decoded(value) for key, value in config.items()}
    known = _SETTINGS | _FLAGS.keys()
    for key in sorted(config.keys() - known):
        raise InvalidInput(key, f"the stand-in kubernetes provider takes no such setting; known: {sorted(known)}")
    if config.get("enableServerSideApply", True) is not True:
        raise InvalidInput("enableServerSideApply", "only server-side apply is supported; leave the setting out")
    if not config.get("kubeconfig"):
        raise InvalidInput("kubeconfig", "missing; pass the program's own kubernetes.Provider to this resource")
    flags = {name: config.get(key) is True for key, name in _FLAGS.items()}
    settings = Settings(_kubeconfig(config["kubeconfig"]), config.get("context"), config.get("namespace"), **flags)
    _ = settings.active_context
    return settings


def replaces_every_object(olds: Properties, news: Properties) -> frozenset[str]:
    """The settings whose change means another cluster: the identifier where one is set, else the server's URL."""
    if "clusterIdentifier" in olds or "clusterIdentifier" in news:
        changed = olds.get("clusterIdentifier") != news.get("clusterIdentifier")
        return frozenset({"clusterIdentifier"} if changed else ())
    if contains_unknown(olds) or contains_unknown(news):
        return frozenset()
    changed = parse_settings(olds).server != parse_settings(news).server
    return frozenset({"kubeconfig"} if changed else ())


class Connection:
    """The configured provider; the cluster is contacted only once something must be read or changed there."""

    def __init__(self) -> None:
        self._settings: Settings | None = None
        self._cluster: Cluster | None = None
        self._lock = threading.Lock()

    def configure(self, config: Properties) -> None:
        self._settings = parse_settings(config)

    @property
    def settings(self) -> Settings:
        assert self._settings, "the engine configures a provider before it uses it"
        return self._settings

    @property
    def cluster(self) -> Cluster:
        """Loads the Kubernetes client on first use: an unchanged stack never needs it."""
        from local.stand_ins.kubernetes.cluster import Cluster

        with self._lock:
            if self._cluster is None:
                self._cluster = Cluster(self.settings.kubeconfig, self.settings.context)
            return self._cluster


def _decoded(value: Any) -> Any:
    """The SDK sends booleans and objects as JSON text."""
    return json.loads(value) if value in ("true", "false") else value


def _kubeconfig(text: str) -> Properties:
    """The kubeconfig from its content or from the path of a file."""
    content = text if "\n" in text or text.lstrip().startswith("{") else _file_content(text)
    kubeconfig = yaml.safe_load(content)
    if not isinstance(kubeconfig, dict):
        raise InvalidInput("kubeconfig", "neither a kubeconfig nor the path of one")
    return kubeconfig


def _file_content(path: str) -> str:
    try:
        return Path(path).expanduser().read_text()
    except OSError as error:
        raise InvalidInput("kubeconfig", f"cannot read the file {path}: {error.strerror}") from error
