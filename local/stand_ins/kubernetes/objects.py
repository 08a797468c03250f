"""Creates, compares, updates, reads and deletes any Kubernetes object of a known kind."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

from local.stand_ins.kubernetes.kinds import CONFIG_MAP, SECRET, Kind
from local.stand_ins.kubernetes.settings import Connection
from local.stand_ins.provider import (
    UNKNOWN,
    Diff,
    InvalidInput,
    PartlyCreated,
    Properties,
    ProviderError,
    ReadResult,
    ResourceType,
    autoname,
    current_operation,
    secret,
)

if TYPE_CHECKING:
    from local.stand_ins.kubernetes.cluster import ApiError

AUTONAMED = "pulumi.com/autonamed"
PATCH_FORCE = "pulumi.com/patchForce"

_MUTABLE_DATA = ("data", "binaryData", "stringData")
_NOT_DECLARED = ("__defaults", "__internal", "status")


class KubernetesObject(ResourceType):
    """One kind of object. Its id is `namespace/name`, or `name` for a cluster-scoped kind."""

    def __init__(self, kind: Kind, connection: Connection) -> None:
        self._kind = kind
        self._connection = connection

    def check(self, name: str, news: Properties, olds: Properties, seed: bytes) -> Properties:
        inputs = {key: value for key, value in news.items() if key not in _NOT_DECLARED}
        inputs |= {"apiVersion": self._kind.api_version, "kind": self._kind.name}
        metadata = inputs.get("metadata") or {}
        if metadata == UNKNOWN:
            return inputs
        if "generateName" in metadata:
            raise InvalidInput("metadata.generateName", "not supported here; leave it out to have a name generated")
        if not self._kind.namespaced and "namespace" in metadata:
            raise InvalidInput("metadata.namespace", f"a {self._kind.name} belongs to no namespace; leave it out")
        metadata = _named(metadata, name, olds.get("metadata") or {}, seed)
        if self._kind.namespaced:
            metadata = {"namespace": self._connection.settings.default_namespace} | metadata
        return inputs | {"metadata": metadata}

    def diff(self, olds: Properties, news: Properties) -> Diff:
        changed = frozenset(key for key in olds.keys() | news.keys() if olds.get(key) != news.get(key))
        replaces = frozenset(path for path in self._replacing_paths() if _at(olds, path) != _at(news, path))
        same_name = _key(olds) == _key(news) and not _annotated(news, AUTONAMED)
        return Diff(changed, replaces, delete_before_replace=same_name)

    def create(self, inputs: Properties) -> tuple[str, Properties]:
        namespace, name = _key(inputs)
        if not self._connection.settings.upsert and self._connection.cluster.get(self._kind, namespace, name):
            raise ProviderError(
                f"{self._kind.name} {_id(inputs)} exists already and is not in this stack's state; delete it, import "
                "it, or set upsert_existing_objects on the kubernetes provider to take it over"
            )
        return _id(inputs), self._apply_and_await(inputs)

    def update(self, resource_id: str, olds: Properties, news: Properties, outputs: Properties) -> Properties:
        return self._apply_and_await(news)

    def read(self, resource_id: str, inputs: Properties, outputs: Properties) -> ReadResult | None:
        live = self._connection.cluster.get(self._kind, *_key(inputs))
        if live is None:
            return None
        declared = self._with_defaults(inputs)
        return ReadResult(_drifted(inputs, _readable(declared), _readable(live)), self._outputs(live, inputs))

    def delete(self, resource_id: str, inputs: Properties, outputs: Properties) -> None:
        from local.stand_ins.kubernetes.cluster import UnreachableError
        from local.stand_ins.kubernetes.waiting import until_gone

        cluster = self._connection.cluster
        try:
            cluster.delete(self._kind, *_key(inputs))
            until_gone(cluster, self._kind, inputs)
        except UnreachableError as error:
            if not self._connection.settings.delete_unreachable:
                raise UnreachableError(
                    f"{error}; where the cluster is gone for good, delete_unreachable on the kubernetes provider "
                    "drops its objects from the state"
                ) from error

    def _replacing_paths(self) -> tuple[str, ...]:
        paths = ("metadata.name", "metadata.namespace", *self._kind.immutable)
        settings = self._connection.settings
        mutable = {CONFIG_MAP: settings.config_map_mutable, SECRET: settings.secret_mutable}.get(self._kind, True)
        return paths if mutable else paths + _MUTABLE_DATA

    def _apply_and_await(self, inputs: Properties) -> Properties:
        from local.stand_ins.kubernetes.waiting import NotReadyError, until_ready

        live = self._apply(inputs)
        try:
            live = until_ready(self._connection.cluster, self._kind, live)
        except NotReadyError as error:
            outputs = self._outputs(error.live, inputs)
            raise PartlyCreated(_id(inputs), outputs, inputs, error.reasons) from error
        return self._outputs(live, inputs)

    def _apply(self, inputs: Properties) -> Properties:
        from local.stand_ins.kubernetes.cluster import ApiError

        force = self._connection.settings.patch_force or _annotated(inputs, PATCH_FORCE)
        try:
            return self._connection.cluster.apply(self._kind, self._manifest(inputs), _field_manager(), force=force)
        except ApiError as error:
            raise self._explained(error, inputs) from error

    def _with_defaults(self, inputs: Properties) -> Properties:
        """The inputs as the API server would store them: with defaults, and values in their canonical form."""
        from local.stand_ins.kubernetes.cluster import ApiError

        manifest = _manifest(inputs)
        try:
            return self._connection.cluster.apply(self._kind, manifest, _field_manager(), force=True, dry_run=True)
        except ApiError:  # an edit that the inputs cannot undo in place, as in an immutable field
            return manifest

    def _manifest(self, inputs: Properties) -> Properties:
        """What to apply: the inputs, with the live value wherever the program ignores changes."""
        manifest = _manifest(inputs)
        ignored = current_operation().ignore_changes
        if ignored and (live := self._connection.cluster.get(self._kind, *_key(inputs))):
            for path in ignored:
                _copy(live, manifest, path)
        return manifest

    def _outputs(self, live: Properties, inputs: Properties) -> Properties:
        outputs = live | {"metadata": {key: v for key, v in live["metadata"].items() if key != "managedFields"}}
        if self._kind == SECRET:
            outputs |= {key: secret(part[key]) for part in (live, inputs) for key in _MUTABLE_DATA if key in part}
        return outputs

    def _explained(self, error: ApiError, inputs: Properties) -> Exception:
        subject = f"{self._kind.name} {_id(inputs)}"
        if error.status == 409:
            return ProviderError(
                f'{subject}: {error}. To take these fields back, annotate the object with {PATCH_FORCE}: "true" (or '
                "set enable_patch_force on the provider); to leave them to the other manager, take them out of the "
                "program or name them in ignore_changes"
            )
        if error.status == 404:
            missing = f"{self._kind.api_version} {self._kind.name}"
            return ProviderError(
                f"{subject}: {error}. Either its namespace does not exist, or the cluster does not know {missing} yet: "
                "make this resource depend on what brings it (a Namespace, a CustomResourceDefinition, a chart)"
            )
        return ProviderError(f"{subject}: {error}")


def _named(metadata: Properties, name: str, old_metadata: Properties, seed: bytes) -> Properties:
    """Metadata with a name: the program's, else the generated one the object has already, else a new one."""
    if metadata.get("name"):
        return metadata
    was_generated = _annotated({"metadata": old_metadata}, AUTONAMED)
    generated = old_metadata["name"] if was_generated else autoname(name, seed, digits=8)
    annotations = (metadata.get("annotations") or {}) | {AUTONAMED: "true"}
    return metadata | {"name": generated, "annotations": annotations}


def _key(inputs: Properties) -> tuple[str, str]:
    metadata = inputs["metadata"]
    return metadata.get("namespace", ""), metadata.get("name", "")


def _id(inputs: Properties) -> str:
    return "/".join(part for part in _key(inputs) if part)


def _annotated(inputs: Properties, annotation: str) -> bool:
    metadata = inputs.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    return isinstance(annotations, dict) and annotations.get(annotation) == "true"


def _field_manager() -> str:
    """One manager per resource, the same in every run, so that a run that was cut short leaves no other owner."""
    return "pulumi-kubernetes-" + hashlib.sha256(current_operation().urn.encode()).hexdigest()[:8]


def _manifest(inputs: Properties) -> Properties:
    """The inputs as the API server takes them. `stringData` becomes `data`, whose keys can also be taken away again."""
    if "stringData" not in inputs:
        return dict(inputs)
    encoded = {key: base64.b64encode(text.encode()).decode() for key, text in inputs["stringData"].items()}
    manifest = {key: value for key, value in inputs.items() if key != "stringData"}
    return manifest | {"data": inputs.get("data", {}) | encoded}


def _readable(manifest: Properties) -> Properties:
    """A Secret's data also as `stringData`, so that it can be compared with inputs given that way."""
    if manifest["kind"] != SECRET.name:
        return manifest
    data = manifest.get("data") or {}
    return manifest | {"stringData": {key: base64.b64decode(v).decode(errors="replace") for key, v in data.items()}}


def _drifted(inputs: Any, declared: Any, live: Any) -> Any:
    """`inputs`, with the live value wherever the live object differs from what was declared."""
    if live == declared:
        return inputs
    if isinstance(inputs, dict) and isinstance(declared, dict) and isinstance(live, dict):
        return {key: _drifted(value, declared.get(key), live[key]) for key, value in inputs.items() if key in live}
    lists = isinstance(inputs, list) and isinstance(declared, list) and isinstance(live, list)
    if lists and len(inputs) == len(declared) == len(live):
        return [_drifted(*items) for items in zip(inputs, declared, live, strict=True)]
    return live


def _at(inputs: Any, path: str) -> Any:
    for key in path.split("."):
        inputs = inputs.get(key) if isinstance(inputs, dict) else None
    return inputs


def _copy(source: Properties, target: Properties, path: str) -> None:
    """Makes `target` agree with `source` at a dotted path."""
    key, _, rest = path.partition(".")
    if key not in source:
        target.pop(key, None)
    elif rest and isinstance(source[key], dict):
        target[key] = dict(target.get(key) or {})
        _copy(source[key], target[key], rest)
    else:
        target[key] = source[key]
