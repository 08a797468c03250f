"""When an object counts as ready, and what to say when it does not become so."""

from __future__ import annotations

import time
from collections.abc import Callable

from local.stand_ins.kubernetes.cluster import ApiError, Cluster
from local.stand_ins.kubernetes.kinds import Kind
from local.stand_ins.provider import Properties, ProviderError, cancelled, current_operation, report

SKIP_AWAIT = "pulumi.com/skipAwait"
TIMEOUT = "pulumi.com/timeoutSeconds"

_DEFAULT_TIMEOUT_S = 600.0
_SHORTEST_POLL_S, _LONGEST_POLL_S = 0.05, 1.0


class NotReadyError(Exception):
    """The object exists but is not ready. `live` is its last state, `reasons` are for people."""

    def __init__(self, live: Properties, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.live = live
        self.reasons = reasons


class _FailedError(Exception):
    """The object will not become ready by waiting."""


def until_ready(cluster: Cluster, kind: Kind, live: Properties) -> Properties:
    """Waits until the object is ready and returns it. Raises NotReadyError after the time limit or on failure."""
    unready = _READY.get(kind.name)
    if unready is None or _skips(live):
        return live
    deadline, shown, pause = time.monotonic() + _time_limit(live), "", _SHORTEST_POLL_S
    namespace, name = live["metadata"].get("namespace", ""), live["metadata"]["name"]
    while True:
        try:
            reason = unready(cluster, live)
        except _FailedError as error:
            raise NotReadyError(live, [str(error), *_pod_troubles(cluster, live)]) from error
        if reason is None:
            return live
        if cancelled.is_set():
            raise NotReadyError(live, [f"interrupted while waiting: {reason}"])
        if time.monotonic() > deadline:
            limit = f"not ready within {_time_limit(live):.0f} s: {reason}"
            raise NotReadyError(live, [limit, *_pod_troubles(cluster, live)])
        if reason != shown:
            report(reason)
            shown = reason
        pause = _sleep(pause)
        seen = cluster.get(kind, namespace, name)
        if seen is None:
            raise NotReadyError(live, ["it was deleted by someone else while this waited for it"])
        live = seen


def until_gone(cluster: Cluster, kind: Kind, inputs: Properties) -> None:
    """Waits until the object no longer exists. Raises ProviderError that says what holds it."""
    if _skips(inputs):
        return
    namespace, name = inputs["metadata"].get("namespace", ""), inputs["metadata"]["name"]
    deadline = time.monotonic() + _time_limit(inputs)
    uid, pause = None, _SHORTEST_POLL_S
    while (live := cluster.get(kind, namespace, name)) and uid in (None, live["metadata"]["uid"]):
        uid = live["metadata"]["uid"]
        if cancelled.is_set() or time.monotonic() > deadline:
            raise ProviderError(f"{kind.name} {name} is still being deleted; {_what_holds(live)}")
        pause = _sleep(pause)


def _sleep(pause: float) -> float:
    """Sleeps for `pause` seconds and returns the next, longer pause."""
    cancelled.wait(pause)
    return min(pause * 2, _LONGEST_POLL_S)


def _what_holds(live: Properties) -> str:
    conditions = live.get("status", {}).get("conditions", [])
    held = [c["message"] for c in conditions if c["type"].startswith("Namespace") and c["status"] == "True"]
    finalizers = live["metadata"].get("finalizers") or live.get("spec", {}).get("finalizers") or []
    held += [f"its finalizers {', '.join(finalizers)} wait for their controllers"] if finalizers else []
    return "; ".join(held) or "its dependents are not gone yet"


def _skips(manifest: Properties) -> bool:
    return _annotation(manifest, SKIP_AWAIT) == "true"


def _annotation(manifest: Properties, name: str) -> str | None:
    return (manifest["metadata"].get("annotations") or {}).get(name)


def _time_limit(manifest: Properties) -> float:
    """Seconds: the program's customTimeouts, else the annotation, else ten minutes."""
    return current_operation().timeout or float(_annotation(manifest, TIMEOUT) or _DEFAULT_TIMEOUT_S)


# One function per kind: None where the object is ready, else what is still missing.


def _namespace(_: Cluster, live: Properties) -> str | None:
    phase = live.get("status", {}).get("phase")
    return None if phase == "Active" else f"the namespace is {phase or 'not active yet'}"


def _deployment(_: Cluster, live: Properties) -> str | None:
    status, wanted = live.get("status", {}), live["spec"].get("replicas", 1)
    if status.get("observedGeneration", 0) < live["metadata"]["generation"]:
        return "waiting for the Deployment controller"
    progressing = _condition(live, "Progressing")
    if progressing.get("reason") == "ProgressDeadlineExceeded":
        raise _FailedError(progressing["message"])
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    if updated < wanted or available < wanted:
        return f"{available} of {wanted} replicas are available ({updated} of the new version)"
    surplus = status.get("replicas", 0) - updated
    return f"{surplus} replicas of the old version are still there" if surplus else None


def _service(cluster: Cluster, live: Properties) -> str | None:
    spec = live["spec"]
    if spec.get("type") == "ExternalName" or spec.get("clusterIP") == "None" or not spec.get("selector"):
        return None
    if spec.get("type") == "LoadBalancer" and not live.get("status", {}).get("loadBalancer", {}).get("ingress"):
        return "the load balancer has no address yet"
    slices = cluster.list(
        f"/apis/discovery.k8s.io/v1/namespaces/{live['metadata']['namespace']}/endpointslices",
        labelSelector=f"kubernetes.io/service-name={live['metadata']['name']}",
    )
    endpoints = [endpoint for item in slices for endpoint in item.get("endpoints") or []]
    if any(endpoint.get("conditions", {}).get("ready") for endpoint in endpoints):
        return None
    return f"the Service has no ready pod behind it (selector {_selector(spec['selector'])})"


_READY: dict[str, Callable[[Cluster, Properties], str | None]] = {
    "Namespace": _namespace,
    "Deployment": _deployment,
    "Service": _service,
}


def _condition(live: Properties, kind: str) -> Properties:
    conditions = live.get("status", {}).get("conditions") or []
    return next((condition for condition in conditions if condition["type"] == kind), {})


def _selector(labels: Properties) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _pod_troubles(cluster: Cluster, live: Properties) -> list[str]:
    """Why the pods of a workload are not ready: the scheduler's and the kubelet's own words, each once."""
    try:
        troubles = [trouble for pod in _pods(cluster, live) for trouble in _troubles_of(cluster, pod)]
    except ApiError as error:
        return [f"its pods cannot be listed: {error}"]
    return list(dict.fromkeys(troubles))


def _pods(cluster: Cluster, live: Properties) -> list[Properties]:
    selector = live.get("spec", {}).get("selector") or {}
    labels = selector.get("matchLabels") if live["kind"] != "Service" else selector
    if not labels:
        return []
    return cluster.list(f"/api/v1/namespaces/{live['metadata']['namespace']}/pods", labelSelector=_selector(labels))


def _troubles_of(cluster: Cluster, pod: Properties) -> list[str]:
    metadata, status = pod["metadata"], pod.get("status", {})
    troubles = []
    if (scheduled := _condition(pod, "PodScheduled")).get("status") == "False":
        troubles.append(f"pod {metadata['name']}: {scheduled.get('message') or scheduled.get('reason')}")
    containers = (status.get("initContainerStatuses") or []) + (status.get("containerStatuses") or [])
    for container in containers:
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") != "PodInitializing":
            troubles.append(
                f"pod {metadata['name']}, container {container['name']}: "
                f"{waiting.get('reason')} {waiting.get('message', '')}".rstrip()
            )
    events = cluster.list(
        f"/api/v1/namespaces/{metadata['namespace']}/events",
        fieldSelector=f"involvedObject.uid={metadata['uid']},type=Warning",
    )
    return troubles + [f"pod {metadata['name']}: {event['reason']}: {event['message']}" for event in events[-3:]]
