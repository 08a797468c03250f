"""Rules about pods, in whatever makes them, and about charts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from policy.rule import Declared, each, is_on, rule

_POD = "kubernetes:core/v1:Pod"
_CRON_JOB = "kubernetes:batch/v1:CronJob"
_SERVERS = tuple(f"kubernetes:apps/v1:{kind}" for kind in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"))
_WITH_TEMPLATE = (*_SERVERS, "kubernetes:batch/v1:Job")
_CHARTS = ("kubernetes:helm.sh/v4:Chart", "kubernetes:helm.sh/v3:Chart", "kubernetes:helm.sh/v3:Release")
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_VERSIONED = re.compile(r":[^:/@]*\d[^:/@]*$")
"""A tag with a number in it; `latest`, `main` and `stable` have none."""
_EXACT = re.compile(r"v?\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
_HARMLESS_CAPABILITIES = {"NET_BIND_SERVICE"}


def _pod(declared: Declared) -> Mapping[str, Any]:
    """The pod's spec; empty where no pod is made."""
    spec = declared.properties.get("spec") or {}
    if declared.type == _POD:
        return spec
    if declared.type == _CRON_JOB:
        spec = (spec.get("jobTemplate") or {}).get("spec") or {}
    elif declared.type not in _WITH_TEMPLATE:
        return {}
    return (spec.get("template") or {}).get("spec") or {}


def _containers(declared: Declared) -> Iterator[Mapping[str, Any]]:
    return each(_pod(declared), "initContainers", "containers")


def _deployment(container: Mapping[str, Any], **pod: Any) -> Declared:
    spec = {"containers": [{"name": "server"} | dict(container)], **pod}
    return Declared(_SERVERS[0], {"spec": {"template": {"spec": spec}}})


@rule(
    violating=_deployment({"image": "docker.io/vllm/vllm-openai:latest"}),
    conforming=_deployment({"image": "docker.io/vllm/vllm-openai:v0.32.0"}),
)
def unpinned_images(declared: Declared) -> Iterator[str]:
    """What runs today runs tomorrow: an image has a digest, or at least a version in its tag."""
    for container in _containers(declared):
        image = container.get("image") or ""
        if not _DIGEST.search(image) and not _VERSIONED.search(image):
            yield f"{container.get('name')} runs {image or 'no image'}: name a version, or better a digest"


@rule(
    violating=Declared(_CHARTS[0], {"chart": "keda", "version": "^2.21.0"}),
    conforming=Declared(_CHARTS[0], {"chart": "keda", "version": "2.21.1"}),
)
def unpinned_charts(declared: Declared) -> Iterator[str]:
    """A chart has one version, not a range of them."""
    if declared.type not in _CHARTS or "chart" not in declared.properties:
        return  # of a component that a plugin makes, the engine shows a pack no inputs: the unit tests judge those
    version = str(declared.properties.get("version") or "")
    if not _EXACT.fullmatch(version):
        yield f"version {version or 'is left out'}: name one, such as 2.21.1"


_BOUNDED = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}}


@rule(
    violating=_deployment({"resources": {"limits": {"memory": "1Gi"}}}), conforming=_deployment({"resources": _BOUNDED})
)
def missing_limits(declared: Declared) -> Iterator[str]:
    """A container asks for what it needs (CPU, memory), and is ended before it takes the memory of others."""
    for container in _containers(declared):
        resources = container.get("resources") or {}
        requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
        missing = [f"requests.{key}" for key in ("cpu", "memory") if not requests.get(key)]
        missing += [] if limits.get("memory") else ["limits.memory"]
        if missing:
            yield f"{container.get('name')} lacks {', '.join(missing)}"


_PROBED = {"readinessProbe": {"httpGet": {"path": "/readyz"}}, "livenessProbe": {"httpGet": {"path": "/livez"}}}


@rule(violating=_deployment({}), conforming=_deployment(_PROBED))
def missing_probes(declared: Declared) -> Iterator[str]:
    """A server that hangs is restarted, and one that is not ready gets no requests; what ends by itself needs neither."""
    if declared.type not in _SERVERS:
        return
    sidecars = [c for c in each(_pod(declared), "initContainers") if c.get("restartPolicy") == "Always"]
    for container in [*sidecars, *each(_pod(declared), "containers")]:
        if missing := [key for key in _PROBED if not container.get(key)]:
            yield f"{container.get('name')} lacks {', '.join(missing)}"


_HARDENED = {
    "securityContext": {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
}


@rule(violating=_deployment({"securityContext": {"runAsNonRoot": True}}), conforming=_deployment(_HARDENED))
def missing_security_context(declared: Declared) -> Iterator[str]:
    """The restricted level of Kubernetes' pod security standards, and a root file system that nobody writes to."""
    whole = _pod(declared).get("securityContext") or {}
    for container in _containers(declared):
        own = container.get("securityContext") or {}
        profile = own.get("seccompProfile") or whole.get("seccompProfile") or {}
        held = {
            "runAsNonRoot": is_on(own.get("runAsNonRoot", whole.get("runAsNonRoot"))),
            "allowPrivilegeEscalation: false": own.get("allowPrivilegeEscalation") is False,
            "readOnlyRootFilesystem": is_on(own.get("readOnlyRootFilesystem")),
            "capabilities.drop: [ALL]": "ALL" in each(own.get("capabilities") or {}, "drop"),
            "seccompProfile RuntimeDefault": profile.get("type") in ("RuntimeDefault", "Localhost"),
        }
        if missing := [what for what, holds in held.items() if not holds]:
            yield f"{container.get('name')} lacks {', '.join(missing)}"


@rule(violating=_deployment({}, hostNetwork=True), conforming=_deployment({}, hostNetwork=False))
def privileged_pods(declared: Declared) -> Iterator[str]:
    """No pod has a part of its node: namespaces, folders, capabilities."""
    pod = _pod(declared)
    yield from (f"{key}: leave it out" for key in ("hostNetwork", "hostPID", "hostIPC") if is_on(pod.get(key)))
    for volume in each(pod, "volumes"):
        if volume.get("hostPath"):
            yield f"volume {volume.get('name')} is a folder of the node: use an emptyDir or a claim"
    for container in _containers(declared):
        context = container.get("securityContext") or {}
        if is_on(context.get("privileged")):
            yield f"{container.get('name')} is privileged: leave it out"
        if added := set(each(context.get("capabilities") or {}, "add")) - _HARMLESS_CAPABILITIES:
            yield f"{container.get('name')} adds the capabilities {', '.join(sorted(added))}: leave them out"
